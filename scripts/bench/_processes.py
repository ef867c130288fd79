"""Pools of scripted workers for the benchmarks, in folders of their own, and what processes hold and use (Linux)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.folders import LOG_VARIABLE, RUNTIME_VARIABLE, STATE_VARIABLE
from samplerpool.pool.launcher import LaunchedPool, launch_pool
from samplerpool.wire.endpoint import ConnectionFile

NEVER_IDLE = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POOL = "scale"


@dataclass(frozen=True)
class Held:
    """What a process holds. ``pss_mib`` counts shared pages by the share, so processes can be added up."""

    rss_mib: float
    pss_mib: float
    threads: int
    descriptors: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """What a process holds now.

        Raises:
            OSError: it is gone.
        """
        sizes = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            sizes[name] = int(size) / 1024
        counts = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("task", "fd"))
        return cls(sizes["Rss:"], sizes["Pss:"], *counts)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def cpu_seconds(pid: int) -> float:
    """CPU time, of all threads, that a process has used; to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class PeakWatch:
    """Looks at a process every now and then until it is gone: the most that it held.

    Its maximum of resident memory as ``wait4`` tells it will not do: it counts what the parent had at the fork.
    """

    INTERVAL_S = 0.25

    def __init__(self, pid: int) -> None:
        self.pss_mib = self.rss_mib = 0.0
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with contextlib.suppress(OSError, KeyError):
            while not self._end.wait(self.INTERVAL_S):
                held = Held.by(self._pid)
                self.pss_mib, self.rss_mib = max(self.pss_mib, held.pss_mib), max(self.rss_mib, held.rss_mib)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


# ---- pools --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_folders() -> Iterator[Path]:
    """Runtime, log and state folders that no other pool uses; their path is short, because socket paths must be."""
    folder = Path(tempfile.mkdtemp(prefix="spb-", dir="/tmp"))
    wanted = {RUNTIME_VARIABLE: folder / "run", LOG_VARIABLE: folder / "log", STATE_VARIABLE: folder / "state"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: str(path) for name, path in wanted.items()})
    try:
        yield folder
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Pool:
    """A running pool. ``stop_s`` is known behind the block that it ran for, and so is ``left``."""

    launched: LaunchedPool
    launch_s: float
    stop_s: float = 0.0
    left: tuple[str, ...] = ()

    @property
    def connection(self) -> ConnectionFile:
        """What it takes to attach to it."""
        return self.launched.connection

    @property
    def supervisor(self) -> int:
        """Its process number."""
        return self.connection.supervisor.pid

    @property
    def workers(self) -> list[int]:
        """Their process numbers."""
        return [worker.process.pid for worker in self.connection.workers]


@contextlib.contextmanager
def pool_of(workers: int, folder: Path, **arguments: Any) -> Iterator[Pool]:
    """Start a pool of scripted workers, stop it, and look for what it left."""
    settings = {"engine": "scripted", "devices": "cpu", "pool": POOL, "workers": workers, **arguments}
    start = time.perf_counter()
    launched = launch_pool(ModelArguments(), SampleArguments(), PoolArguments(**settings), detached=False, private=True)
    pool = Pool(launched, time.perf_counter() - start)
    try:
        yield pool
    finally:
        start = time.perf_counter()
        launched.stop()
        pool.stop_s = time.perf_counter() - start
        pool.left = tuple(leftovers(folder))


def leftovers(folder: Path) -> Iterable[str]:
    """Processes that were started for these folders and still run, and files of pools in them."""
    mark = f"{RUNTIME_VARIABLE}={folder / 'run'}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    yield f"process {name}"
    for path in (folder / "run").glob("**/*"):
        yield f"file {path.name}"


@contextlib.contextmanager
def cores_never_idle() -> Iterator[None]:
    """Keep each core busy with a process that gives way to all others. A virtual machine's core that has gone to sleep
    wakes up with cold caches, and whoever it wakes up for pays."""
    with contextlib.ExitStack() as stack:
        for _ in os.sched_getaffinity(0):
            process = stack.enter_context(subprocess.Popen((sys.executable, "-c", NEVER_IDLE)))
            stack.callback(process.kill)
        yield
