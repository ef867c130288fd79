"""Whether a machine can run pools, and what to do where it cannot: facts in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure"]

MIN_PYTHON = (3, 11)
LITTLE_MEMORY = 2 * 2**30
LITTLE_DISK = 256 * 2**20
FEW_FILES = 1024
GIB = 2**30

AFFINITY_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES")
"""They pin threads to cores by their own count, against the cores that a worker is pinned to."""
WATCHED_VARIABLES = (*AFFINITY_VARIABLES, "OMP_WAIT_POLICY", "CUDA_LAUNCH_BLOCKING")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package as the project asks for it.

    Args:
        wanted: versions that fit, for instance ``>=26``.
        installed: None if it is missing.
        extra: which extra asks for it; empty if it is always needed.
    """

    name: str
    wanted: str
    installed: str | None
    fits: bool
    extra: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that pools write into.

    Args:
        problem: why it cannot be used; empty if it can.
        hint: what to do about that, where the problem does not say so itself.
        essential: nothing runs without it.
        free_bytes: room on its disk; None if unknown.
    """

    purpose: str
    path: str
    problem: str = ""
    hint: str = ""
    essential: bool = True
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TorchFacts:
    """What a child process saw that imported torch.

    Args:
        problem: why it could not; empty if it could.
        built_for: ``CUDA 12.8``, ``ROCm 6.4``, or empty for a build for the CPU.
        devices: a line each.
        capability: of the CPU, by torch's name.
        openmp: libraries of OpenMP that were loaded.
    """

    problem: str = ""
    version: str = ""
    built_for: str = ""
    devices: tuple[str, ...] = ()
    capability: str = ""
    openmp: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process that holds a GPU. ``ours``: it belongs to a pool of this user that runs."""

    pid: int
    name: str
    used: str
    ours: bool


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Something of a pool that is gone. ``remedy``: what removes it."""

    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found on a machine.

    Args:
        cpu_limit: cores' worth of time that a control group allows, or None.
        memory_bytes: what this process may still take.
        device_files: device files of GPUs that are there.
        visible: ``CUDA_VISIBLE_DEVICES``, or None.
        gpu_processes: None if nobody could tell.
        open_files: how many this process may have.
        pidfd: whether processes can be watched by descriptor.
        environ: those of ``WATCHED_VARIABLES`` that are set.
        pools: names of those that run.
    """

    python: tuple[int, int, int]
    packages: tuple[Package, ...]
    torch: TorchFacts
    device_files: tuple[str, ...]
    visible: str | None
    gpu_processes: tuple[GpuProcess, ...] | None
    cores: int
    cpu_limit: float | None
    memory_bytes: int
    places: tuple[Place, ...]
    open_files: int
    pidfd: bool
    environ: Mapping[str, str]
    leftovers: tuple[Leftover, ...]
    pools: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice`` says what to do, unless all is well."""

    check: str
    level: Level
    text: str
    advice: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, in the order in which to mend things."""
    return [
        *_python(facts),
        *_packages(facts),
        *_torch(facts.torch),
        *_devices(facts),
        *_gpu_processes(facts),
        *_cores(facts),
        *_memory(facts),
        *(finding for place in facts.places for finding in _place(place)),
        *_limits(facts),
        *_environment(facts),
        *_leftovers(facts),
    ]


def _python(facts: Facts) -> Iterator[Finding]:
    text = ".".join(map(str, facts.python))
    if facts.python >= MIN_PYTHON:
        yield Finding("python", "ok", text)
    else:
        yield Finding("python", "failure", text, f"Use Python {'.'.join(map(str, MIN_PYTHON))} or newer.")


def _packages(facts: Facts) -> Iterator[Finding]:
    needed = [package for package in facts.packages if not package.extra]
    bad = [package for package in needed if not package.fits]
    for package in bad:
        have = f"{package.installed} is installed" if package.installed else "is missing"
        advice = f"Install it: pip install '{package.name}{package.wanted}'"
        yield Finding("packages", "failure", f"{package.name} {have}, {package.wanted or 'any'} is needed", advice)
    if not bad:
        yield Finding("packages", "ok", ", ".join(f"{package.name} {package.installed}" for package in needed))
    for extra in sorted({package.extra for package in facts.packages} - {""}):
        yield from _extra(extra, [package for package in facts.packages if package.extra == extra])


def _extra(extra: str, packages: list[Package]) -> Iterator[Finding]:
    missing = [package for package in packages if not package.fits]
    if not missing:
        text = ", ".join(f"{package.name} {package.installed}" for package in packages)
        yield Finding(f"extra {extra}", "ok", text)
        return
    purpose = {
        "data": "Hugging Face data sets cannot be given to batch_infer",
        "fast": "on a CPU, attention and small operations are not compiled and models run slower",
        "gguf": ".gguf files are not read",
        "metrics": "--metrics cannot be used",
        "serve": "samplerpool serve cannot be used",
    }.get(extra, "what it is for cannot be used")
    names = ", ".join(package.name for package in missing)
    advice = f"If you need that: pip install 'samplerpool[{extra}]'"
    yield Finding(f"extra {extra}", "warning", f"without {names}, {purpose}", advice)


def _torch(torch: TorchFacts) -> Iterator[Finding]:
    if torch.problem:
        advice = "Try python -c 'import torch' and mend what it says; no model can run without it."
        yield Finding("torch", "failure", f"torch cannot be used: {torch.problem}", advice)
        return
    built_for = f"for {torch.built_for}" if torch.built_for else "for the CPU only"
    yield Finding("torch", "ok", f"{torch.version}, built {built_for}; CPU: {torch.capability or 'unknown'}")
    kinds = {library.split(".")[0].split("-")[0] for library in torch.openmp}
    if len(kinds) > 1:
        text = f"several libraries of OpenMP are loaded together: {', '.join(torch.openmp)}"
        yield Finding("openmp", "warning", text, "Install torch and numpy from one source: their threads get in each "
                      "other's way.")  # fmt: skip


def _devices(facts: Facts) -> Iterator[Finding]:
    torch, hidden = facts.torch, facts.visible is not None
    if torch.devices:
        yield Finding("devices", "ok", "; ".join(torch.devices))
    elif torch.problem:
        return
    elif facts.device_files and hidden:
        text = f"GPUs are there, and CUDA_VISIBLE_DEVICES={facts.visible!r} leaves none"
        yield Finding("devices", "warning", text, "Unset CUDA_VISIBLE_DEVICES, or name devices that are there.")
    elif facts.device_files and not torch.built_for:
        text = f"a GPU is there ({facts.device_files[0]}), and this torch is built for the CPU only"
        yield Finding("devices", "warning", text, "Install torch for your GPU: https://pytorch.org/get-started")
    elif facts.device_files:
        text = f"a GPU is there ({facts.device_files[0]}), and torch ({torch.built_for}) sees none"
        advice = "Compare the driver with what this torch was built for (nvidia-smi shows it), and check permissions."
        yield Finding("devices", "warning", text, advice)
    else:
        yield Finding("devices", "ok", "no GPU; models run on the CPU")


def _gpu_processes(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_processes is None:
        return
    for process in facts.gpu_processes:
        text = f"{process.name} (pid {process.pid}) holds {process.used}"
        if process.ours:
            yield Finding("gpu use", "ok", f"{text}; a worker of a pool that runs")
        else:
            advice = f"If nobody needs it: kill {process.pid}. Else choose other --devices."
            yield Finding("gpu use", "warning", text, advice)
    if not facts.gpu_processes:
        yield Finding("gpu use", "ok", "nobody")


def _cores(facts: Facts) -> Iterator[Finding]:
    text = f"{facts.cores} in the affinity mask"
    if facts.cpu_limit is None or facts.cpu_limit >= facts.cores:
        yield Finding("cores", "ok", text)
        return
    text += f"; a control group allows {facts.cpu_limit:g} at a time"
    if facts.cpu_limit < 1:
        yield Finding("cores", "warning", text, "Raise the control group's limit (docker run --cpus): a step of any "
                      "model is cut into pieces.")  # fmt: skip
    else:
        yield Finding("cores", "ok", text)


def _memory(facts: Facts) -> Iterator[Finding]:
    text = f"{facts.memory_bytes / GIB:.1f} GiB available"
    if facts.memory_bytes >= LITTLE_MEMORY:
        yield Finding("memory", "ok", text)
    else:
        advice = "Stop what takes it, raise the control group's limit, or use a small model with few --workers."
        yield Finding("memory", "warning", text, advice)


def _place(place: Place) -> Iterator[Finding]:
    if place.problem:
        yield Finding(place.purpose, "failure" if place.essential else "warning", place.problem, place.hint)
    elif place.free_bytes is not None and place.free_bytes < LITTLE_DISK:
        text = f"{place.path} has {place.free_bytes // 2**20} MiB left"
        yield Finding(place.purpose, "warning", text, "Make room on that disk, or choose another folder.")
    else:
        room = "" if place.free_bytes is None else f", {place.free_bytes / GIB:.1f} GiB free"
        yield Finding(place.purpose, "ok", f"{place.path}{room}")


def _limits(facts: Facts) -> Iterator[Finding]:
    if facts.open_files < FEW_FILES:
        text = f"this shell's processes may open {facts.open_files} files"
        advice = f"Raise it (ulimit -n {FEW_FILES * 4}): each connection and worker needs some."
        yield Finding("open files", "warning", text, advice)
    if not facts.pidfd:
        text = "processes cannot be watched by descriptor (pidfd_open)"
        yield Finding("kernel", "failure", text, "Use Linux 5.4 or newer, or allow pidfd_open in the sandbox.")


def _environment(facts: Facts) -> Iterator[Finding]:
    for name, value in facts.environ.items():
        if name in AFFINITY_VARIABLES:
            advice = f"Unset {name}: workers are pinned to their share of the cores, and this pins threads anew."
        elif name == "OMP_WAIT_POLICY" and value.lower() == "active":
            advice = "Unset it: threads that spin take the cores from each other as soon as anything else runs."
        elif name == "CUDA_LAUNCH_BLOCKING" and value not in ("", "0"):
            advice = "Unset it, unless you look for an error on the GPU: every step waits for the device."
        else:
            continue
        yield Finding("environment", "warning", f"{name}={value}", advice)


def _leftovers(facts: Facts) -> Iterator[Finding]:
    for leftover in facts.leftovers:
        yield Finding("leftovers", "warning", leftover.what, leftover.remedy)
    if not facts.leftovers:
        running = f"; running: {', '.join(facts.pools)}" if facts.pools else ""
        yield Finding("leftovers", "ok", f"none{running}")
