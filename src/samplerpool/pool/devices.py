"""Which devices and cores there are, and which worker gets what. Never imports torch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samplerpool.config.arguments import PoolArguments
from samplerpool.config.cgroups import cgroup_folders
from samplerpool.errors import InvalidParameter, StartFailed, UsageError

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CPU_SETTINGS = {"GOMP_SPINCOUNT": "2000", "THP_MEM_ALLOC_ENABLE": "1"}
"""For workers on the CPU, unless the environment says otherwise.

GNU's OpenMP lets a waiting thread spin for 300,000 rounds (some milliseconds) at the end of each of a step's hundreds
of parallel loops. Where another program has the core that the last thread needs, it spins for nothing. With 2,000
rounds a step beside one busy neighbour takes two thirds of the time at batch 8 and 64, and undisturbed at most a tenth
more (``scripts/bench/spin.py``).
torch takes its memory in huge pages if it is told to: reading the weights then takes up to a quarter less time.
"""
RANK_SETTINGS = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""For workers of several processes, unless the environment says otherwise: what those say to each other stays on this
machine."""
DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Without any of these no CUDA (or ROCm, or WSL) device can be there."""
PROBE_TIMEOUT_S = 120.0
_PROBE = "import torch; print('devices', torch.cuda.device_count())"


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """Where one worker runs.

    Args:
        device: as shown to people, for instance ``cpu`` or ``cuda:1``.
        torch_device: as the worker's engine is told: ``cpu`` or ``cuda``.
        visible: the worker's ``CUDA_VISIBLE_DEVICES``; None leaves it alone.
        cores: CPU cores to be pinned to; empty means not pinned. Ranks of one worker share them.
        threads: for numeric libraries of each process; 0 leaves it to them.
        devices: how many there are for this worker alone; on the CPU, how many processes divide the model.
    """

    device: str
    torch_device: str
    visible: str | None = None
    cores: tuple[int, ...] = ()
    threads: int = 0
    devices: int = 1


@dataclass(frozen=True)
class CpuBudget:
    """CPU that this process may use.

    Args:
        cores: numbers of the cores in its affinity mask.
        limit: how many of them a control group allows at a time, or None.
    """

    cores: tuple[int, ...]
    limit: float | None = None


# ---- pure ---------------------------------------------------------------------------------------------------------


def cpu_limit_v2(cpu_max: str) -> float | None:
    """Cores allowed by the text of a control group's ``cpu.max`` (version 2)."""
    quota, _, period = cpu_max.strip().partition(" ")
    return cpu_limit_v1(quota, period or "100000")


def cpu_limit_v1(quota_us: str, period_us: str) -> float | None:
    """Cores allowed by ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` (version 1)."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def share_cores(budget: CpuBudget, workers: int) -> list[tuple[tuple[int, ...], int]]:
    """Cores to be pinned to and number of threads, for each CPU worker.

    Neighbouring cores stay together. More workers than cores take turns on them, one core each. Where a control
    group allows less than the cores of the mask, its time is shared but nobody is pinned: which cores the neighbours
    in other groups use is not ours to know.
    """
    cores = budget.cores
    allowed = len(cores) if budget.limit is None else min(len(cores), max(1, math.ceil(budget.limit)))
    if allowed < len(cores):
        return [((), share) for share in _shares(allowed, workers)]
    if workers >= len(cores):
        return [((cores[index % len(cores)],), 1) for index in range(workers)]
    parts, start = [], 0
    for share in _shares(len(cores), workers):
        parts.append((cores[start : start + share], share))
        start += share
    return parts


def _shares(total: int, workers: int) -> list[int]:
    least, rest = divmod(total, workers)
    return [max(1, least + (index < rest)) for index in range(workers)]


def inherited_devices(environ: Mapping[str, str]) -> list[str] | None:
    """The entries of ``CUDA_VISIBLE_DEVICES`` that count, or None where it is not set.

    CUDA itself reads the list up to the first entry that is not valid, such as -1.
    """
    text = environ.get(VISIBLE_VARIABLE)
    if text is None:
        return None
    entries: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry or entry.startswith("-") or entry == "NoDevFiles":
            break
        entries.append(entry)
    return entries


def choose_devices(requested: str, inherited: Sequence[str] | None, count: int) -> list[str]:
    """Entries for the workers' ``CUDA_VISIBLE_DEVICES``, one a device; empty means the CPU.

    Args:
        requested: ``auto``, ``cpu``, or a comma-separated list of indexes or UUIDs.
        inherited: the entries of this process's own ``CUDA_VISIBLE_DEVICES``; indexes count within it.
        count: how many devices the probe saw.

    Raises:
        UsageError: a device that is not there.
    """
    if requested == "cpu":
        return []
    present = list(inherited)[:count] if inherited is not None else [str(index) for index in range(count)]
    if requested == "auto":
        return present
    return [_choose_device(entry.strip(), present, known_uuids=inherited) for entry in requested.split(",")]


def _choose_device(entry: str, present: Sequence[str], known_uuids: Sequence[str] | None) -> str:
    if entry.isdecimal():
        if int(entry) < len(present):
            return present[int(entry)]
    elif entry.startswith(("GPU-", "MIG-")) and present:
        listed = [uuid for uuid in known_uuids or () if uuid.startswith(entry)]
        named_by_uuid = any(not known.isdecimal() for known in known_uuids or ())
        if len(listed) == 1 or not named_by_uuid:
            return listed[0] if listed else entry
    else:
        raise InvalidParameter(f"--devices must be auto, cpu, or a list like 0,1 (or UUIDs); {entry!r} is not that.")
    seen = f"{len(present)} visible: {', '.join(present)}" if present else "none is visible here"
    raise UsageError(f"There is no CUDA device {entry!r} ({seen}). Use --devices auto or --devices cpu.")


def plan(
    workers: int | str,
    devices: Sequence[str],
    budget: CpuBudget,
    *,
    devices_per_worker: int = 1,
    hide_devices: bool = False,
) -> list[WorkerPlan]:
    """One entry a worker.

    Args:
        workers: a number, or ``auto``: as many as there are devices for, on the CPU one.
        devices: from ``choose_devices``.
        devices_per_worker: on the CPU, processes that divide a worker's cores among them.
        hide_devices: CPU workers must not see CUDA devices that are there.

    Raises:
        UsageError: more workers than CUDA devices, or devices that cannot be grouped.
    """
    if not devices:
        count = 1 if workers == "auto" else int(workers)
        return [
            WorkerPlan(
                device="cpu" if devices_per_worker == 1 else f"cpu x{devices_per_worker}",
                torch_device="cpu",
                visible="" if hide_devices else None,
                cores=cores,
                threads=max(1, threads // devices_per_worker),
                devices=devices_per_worker,
            )
            for cores, threads in share_cores(budget, count)
        ]
    return [
        WorkerPlan(
            device=f"cuda:{'+'.join(group)}", torch_device="cuda", visible=",".join(group), devices=devices_per_worker
        )
        for group in _groups(workers, devices, devices_per_worker)
    ]


def _groups(workers: int | str, devices: Sequence[str], size: int) -> list[Sequence[str]]:
    """The devices of each worker: neighbours in the list."""
    there = f"there are {len(devices)} ({', '.join(devices)})"
    count = max(1, len(devices) // size) if workers == "auto" else int(workers)
    if count * size > len(devices):
        what = "1 worker needs" if count == 1 else f"{count} workers need"
        each = f", {size} for each," if size > 1 else ""
        advice = "fewer --devices-per-worker" if count == 1 else "fewer --workers"
        twice = ", or name a device twice in --devices" if size == 1 else ""
        raise UsageError(f"{what} {count * size} devices{each} and {there}. Ask for {advice}{twice}.")
    if workers == "auto" and len(devices) % size:
        raise UsageError(
            f"Workers on {size} devices each leave {len(devices) % size} over, as {there}. "
            f"Say which to use (--devices), or how many --workers."
        )
    groups = [devices[at * size : (at + 1) * size] for at in range(count)]
    for group in groups:
        if len(set(group)) < size:
            raise UsageError(f"A worker would have one device twice ({', '.join(group)}); see --devices.")
    return groups


def worker_environment(plan: WorkerPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that a worker's process starts with."""
    environment = {**environ, "PYTHONUNBUFFERED": "1"}
    if plan.visible is not None:
        environment[VISIBLE_VARIABLE] = plan.visible
    if plan.devices > 1:
        environment = {**RANK_SETTINGS, **environment, "LOCAL_RANK": "0"}  # of the worker, whoever started us
    if plan.threads:
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(plan.threads)))
        environment = {**CPU_SETTINGS, **environment}
        if "OMP_WAIT_POLICY" in environ and "GOMP_SPINCOUNT" not in environ:
            del environment["GOMP_SPINCOUNT"]  # it would overrule that
    return environment


# ---- looking at this machine --------------------------------------------------------------------------------------


def usable_devices(pool_args: PoolArguments, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Devices that the pool may use, from ``choose_devices``. May take seconds where they have to be counted.

    Raises:
        UsageError: devices that cannot be.
        StartFailed: the devices could not be counted.
    """
    if pool_args.engine == "scripted":
        return []
    inherited = inherited_devices(environ)
    count = 0 if pool_args.devices == "cpu" or not _may_have_devices(inherited) else count_devices(environ)
    return choose_devices(pool_args.devices, inherited, count)


def plan_workers(pool_args: PoolArguments, devices: Sequence[str]) -> list[WorkerPlan]:
    """One entry a worker, on this machine's cores and on these devices.

    Raises:
        UsageError: a number of workers that cannot be.
    """
    check_workers(pool_args.workers)
    check_split(pool_args, on_cpu=not devices)
    if pool_args.engine == "scripted":
        count = 1 if pool_args.workers == "auto" else int(pool_args.workers)
        return [WorkerPlan(device="cpu", torch_device="cpu")] * count
    return plan(
        pool_args.workers,
        devices,
        cpu_budget(),
        devices_per_worker=pool_args.devices_per_worker,
        hide_devices=pool_args.devices == "cpu",
    )


def check_split(pool_args: PoolArguments, *, on_cpu: bool) -> None:
    """Refuse what can be known to be impossible before a worker has looked at its model.

    Raises:
        InvalidParameter
    """
    size, mode, engine = pool_args.devices_per_worker, pool_args.split_mode, pool_args.engine
    if size == 1:
        return
    if engine == "scripted":
        raise InvalidParameter("The scripted engine has no model to be laid over several devices.")
    if engine == "vllm":
        raise InvalidParameter("The vllm engine serves a model on one device; use --engine dense for several.")
    if engine not in ("auto", "dense") and (mode == "tensor" or on_cpu):
        raise InvalidParameter(f"The {engine} engine does not divide a model among processes; use --engine dense.")
    if mode == "layer" and on_cpu:
        raise InvalidParameter("--split-mode layer gives each GPU some of the layers, and here are none to be used.")


def check_workers(workers: int | str) -> None:
    """Refuse a number of workers that cannot be.

    Raises:
        InvalidParameter
    """
    if workers == "auto" or (isinstance(workers, int) and not isinstance(workers, bool) and 1 <= workers <= 1024):
        return
    raise InvalidParameter(f"workers must be a number from 1 to 1024, or auto, not {workers!r}.")


def _may_have_devices(inherited: Sequence[str] | None) -> bool:
    if inherited is not None:
        return bool(inherited)
    return any(os.path.exists(path) for path in DEVICE_FILES)


def count_devices(environ: Mapping[str, str]) -> int:
    """CUDA devices that torch sees, asked in a child process so that this one stays free of torch.

    Raises:
        StartFailed
    """
    command = [sys.executable, "-P", "-c", _PROBE]
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
        return int(done.stdout.rpartition("devices")[2])
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        last = (said if isinstance(said, str) else said.decode(errors="replace")).strip().splitlines()[-1:]
        raise StartFailed(
            f"The CUDA devices could not be counted ({' '.join(last)}). Use --devices cpu to do without."
        ) from error


def cpu_budget() -> CpuBudget:
    """The CPU that this process may use: its affinity mask and its control group's limit."""
    return CpuBudget(tuple(sorted(os.sched_getaffinity(0))), _cgroup_limit())


def _cgroup_limit() -> float | None:
    limits = [limit for folder in cgroup_folders("cpu") if (limit := _folder_limit(folder)) is not None]
    return min(limits, default=None)


def _folder_limit(folder: Path) -> float | None:
    try:
        return cpu_limit_v2((folder / "cpu.max").read_text())
    except OSError:
        pass
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text().strip()
        return cpu_limit_v1(quota, (folder / "cpu.cfs_period_us").read_text().strip())
    except OSError:
        return None
