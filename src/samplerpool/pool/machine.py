"""Looks at this machine for ``samplerpool doctor``. Changes nothing, never imports torch, and waits for nobody long."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from samplerpool.config.cgroups import available_memory
from samplerpool.config.folders import cache_folder, log_folder, runtime_folders, state_folder
from samplerpool.errors import SamplerPoolError
from samplerpool.pool.devices import DEVICE_FILES, VISIBLE_VARIABLE, cpu_budget
from samplerpool.pool.diagnosis import (
    WATCHED_VARIABLES,
    Facts,
    GpuProcess,
    Leftover,
    Package,
    Place,
    TorchFacts,
)
from samplerpool.pool.names import DEFAULT_POOL
from samplerpool.wire.addresses import ipc_endpoint, new_incarnation
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.files import private_folder

TORCH_TIMEOUT_S = 60.0
"""The first import of torch after a boot may take half a minute from a slow disk."""
GPU_TIMEOUT_S = 10.0
KILL_GRACE_S = 1.0
YOUNG_S = 60.0
"""A socket without a pool may belong to one that is just being started."""

_TORCH_PROBE = """
import json, torch
cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
facts = {
    "version": torch.__version__,
    "built_for": f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "",
    "capability": torch.backends.cpu.get_cpu_capability(),
    "devices": [],
}
for index in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(index)
    facts["devices"].append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
with open("/proc/self/maps") as maps:
    files = {line.split("/")[-1].strip() for line in maps if "/" in line}
facts["openmp"] = sorted(name for name in files if name.startswith(("libgomp", "libiomp", "libomp")))
print("facts", json.dumps(facts))
"""


def look(environ: Mapping[str, str] = os.environ) -> Facts:
    """All that ``diagnosis.diagnose`` judges. Takes about as long as it takes to import torch."""
    with ThreadPoolExecutor(2) as threads:
        torch = threads.submit(_torch_facts, environ)
        gpu_users = threads.submit(_gpu_users)
        budget = cpu_budget()
        pools = list(_living_pools())
        ours = {worker.process.pid for connection in pools for worker in connection.workers}
        users = gpu_users.result()
        return Facts(
            python=sys.version_info[:3],
            packages=tuple(_packages()),
            torch=torch.result(),
            device_files=tuple(path for path in DEVICE_FILES if os.path.exists(path)),
            visible=environ.get(VISIBLE_VARIABLE),
            gpu_processes=None if users is None else tuple(_gpu_processes(users, ours)),
            cores=len(budget.cores),
            cpu_limit=budget.limit,
            memory_bytes=available_memory(),
            places=tuple(_places()),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            pidfd=_has_pidfd(),
            environ={name: environ[name] for name in WATCHED_VARIABLES if environ.get(name)},
            leftovers=tuple(_leftovers(pools)),
            pools=tuple(sorted(connection.pool for connection in pools)),
        )


# ---- programs that are asked --------------------------------------------------------------------------------------


def ask_program(command: Sequence[str], timeout_s: float, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Run a program for its output.

    Returns:
        What it wrote, and why that is not to be had (empty if it is). One that hangs, even in the kernel, where it
        cannot be killed, is left alone after a moment.
    """
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return "", f"{command[0]} cannot be started: {error.strerror}"
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILL_GRACE_S)
        return "", f"no answer within {timeout_s:g} s"
    if process.returncode:
        last = (errors or output).strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return "", last[0]
    return output, ""


def _torch_facts(environ: Mapping[str, str]) -> TorchFacts:
    output, problem = ask_program([sys.executable, "-P", "-c", _TORCH_PROBE], TORCH_TIMEOUT_S, environ)
    if problem:
        return TorchFacts(problem=problem)
    facts = json.loads(output.rpartition("facts ")[2])
    devices, openmp = tuple(facts.pop("devices")), tuple(facts.pop("openmp"))
    return TorchFacts(**facts, devices=devices, openmp=openmp)


def _gpu_users() -> str | None:
    """What nvidia-smi says of processes on its devices; None where there is no such program, or it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    output, problem = ask_program(query, GPU_TIMEOUT_S)
    return None if problem else output


def _gpu_processes(output: str, ours: set[int]) -> Iterator[GpuProcess]:
    for line in output.splitlines():
        pid, _, rest = line.partition(",")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdecimal():
            yield GpuProcess(pid=int(pid), name=name.strip(), used=used.strip(), ours=int(pid) in ours)


# ---- packages, folders, limits ------------------------------------------------------------------------------------


def _packages() -> Iterator[Package]:
    """What this installation asks for, by its own metadata."""
    from packaging.requirements import Requirement

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires("samplerpool") or ():
            requirement = Requirement(text)
            extra = _extra_of(str(requirement.marker or ""))
            if requirement.name == "samplerpool" or extra == "dev":
                continue
            installed = _installed(requirement.name)
            fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
            wanted = str(requirement.specifier)
            yield Package(name=requirement.name, wanted=wanted, installed=installed, fits=fits, extra=extra)


def _extra_of(marker: str) -> str:
    return marker.partition("extra == ")[2].strip("\"' ")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _places() -> Iterator[Place]:
    shared, *others = runtime_folders()
    yield _socket_place(shared, essential=True)
    for folder in others:  # without these, the shared one is taken
        yield _socket_place(folder, essential=False)
    variables = {"logs": "SAMPLERPOOL_LOG_DIR", "models": "SAMPLERPOOL_CACHE_DIR", "history": "SAMPLERPOOL_STATE_DIR"}
    folders = {"logs": log_folder(), "models": cache_folder(), "history": state_folder()}
    for purpose, folder in folders.items():
        problem = _unwritable(folder)
        yield Place(
            purpose=purpose,
            path=str(folder),
            problem=problem,
            hint=f"Set {variables[purpose]} to a folder of your own.",
            essential=purpose == "logs",
            free_bytes=_free_bytes(folder),
        )


def _socket_place(folder: Path, *, essential: bool) -> Place:
    """Sockets need a private folder with a short path."""
    try:
        if os.path.lexists(folder):
            private_folder(folder)
        ipc_endpoint(folder, f"{DEFAULT_POOL}-w0-{new_incarnation()}")
    except SamplerPoolError as error:
        return Place(purpose="sockets", path=str(folder), problem=error.message, essential=essential)
    hint = "Set SAMPLERPOOL_RUNTIME_DIR to a folder of your own."
    return Place(purpose="sockets", path=str(folder), problem=_unwritable(folder), hint=hint, essential=essential)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written there, if it cannot; a folder that does not exist is judged by the one above."""
    existing = _existing(folder)
    if not existing.is_dir():
        return f"{folder} cannot be made: {existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        return f"{folder} cannot be written: no permission in {existing}, or it is read-only"
    return ""


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))


def _free_bytes(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(_existing(folder)).free
    return None


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


# ---- what dead pools left -----------------------------------------------------------------------------------------


def _connections() -> Iterator[tuple[Path, ConnectionFile]]:
    """Connection files of this machine and boot; those of others are none of our business."""
    for path in _runtime_files("*.json"):
        with contextlib.suppress(SamplerPoolError):
            connection = ConnectionFile.read(path)
            if connection.local:
                yield path, connection


def _runtime_files(pattern: str) -> Iterator[Path]:
    for folder in runtime_folders():
        if os.access(folder, os.R_OK | os.X_OK, effective_ids=True):  # after su, the session's is another user's
            yield from sorted(folder.glob(pattern))


def _living_pools() -> Iterator[ConnectionFile]:
    return (connection for _, connection in _connections() if connection.supervisor.alive())


def _leftovers(living: Sequence[ConnectionFile]) -> Iterator[Leftover]:
    told: set[str] = {endpoint for connection in living for endpoint in _endpoints(connection)}
    for path, connection in _connections():
        if connection.supervisor.alive():
            continue
        told.update(_endpoints(connection))
        left = [worker.process.pid for worker in connection.workers if worker.process.alive()]
        text = f"pool {connection.pool!r} died (its supervisor was {connection.supervisor.pid}) and left {path}"
        if left:
            text += f" and running workers: {', '.join(map(str, left))}"
        yield Leftover(what=text, remedy="samplerpool status removes it.")
    yield from _stray_sockets(told)
    yield from _orphans({worker.process.pid for _, connection in _connections() for worker in connection.workers})


def _endpoints(connection: ConnectionFile) -> list[str]:
    return [connection.endpoint, *(worker.endpoint for worker in connection.workers)]


def _stray_sockets(told: set[str]) -> Iterator[Leftover]:
    for path in _runtime_files("*.sock"):
        if f"ipc://{path}" not in told and not _hosts(path) and _age_s(path) > YOUNG_S:
            yield Leftover(what=f"a socket that no pool knows: {path}", remedy=f"Remove it: rm {path}")


def _age_s(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0  # it has just gone


def _hosts(path: Path) -> bool:
    """Whether it is the socket of a process that hosts its own model, see ``worker.host``, and runs."""
    kind, _, rest = path.name.partition("-")
    pid = rest.partition("-")[0]
    return kind == "host" and pid.isdecimal() and psutil.pid_exists(int(pid))


def _orphans(told: set[int]) -> Iterator[Leftover]:
    """Workers of this user whose supervisor is gone: they end by themselves, unless they are stopped or stuck."""
    for process in psutil.process_iter(["pid", "uids", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            command = process.info["cmdline"] or []
            if "samplerpool.worker" not in command or process.info["uids"].real != os.getuid():
                continue
            parent = process.parent()
            if process.info["pid"] in told or (parent is not None and "samplerpool" in " ".join(parent.cmdline())):
                continue
            pid, state = process.info["pid"], process.status()
            yield Leftover(what=f"a worker without a supervisor: pid {pid}, {state}", remedy=f"End it: kill -9 {pid}")
