"""One system's turn: what it answered, how long that took, and what it used meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from _model import Model
from _systems import System
from _workloads import Requests


@dataclass(frozen=True)
class Run:
    """A turn.

    Args:
        session: of which run of the benchmark; only what was measured in the same one is compared.
        repeat: all systems get the same prompts in a repeat.
        cpu_seconds: that its processes and this one used.
        work: floating point operations that the answers need.
        ceiling: FLOP/s of matrix products, measured just before and after; the larger.
        peak_bytes: most resident memory of all its processes, added up.
        disturbed: share of the cores that others used meanwhile.
        idle: share of a core that the waiting systems used.
        rows: which of the workload's prompts were answered.
        answers: a digest of each answer's text.
    """

    workload: str
    system: str
    session: str
    repeat: int
    tokens: int
    seconds: float
    cpu_seconds: float
    work: int
    ceiling: float
    peak_bytes: int
    disturbed: float
    idle: float
    rows: Sequence[int]
    answers: Sequence[str]

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.work / self.seconds / self.ceiling


@dataclass(frozen=True)
class Turn:
    """What ``measure`` is told: where in the course of the benchmark it is.

    Args:
        rows: which of the workload's prompts ``requests`` are.
    """

    workload: str
    session: str
    repeat: int
    rows: Sequence[int]
    requests: Requests


def measure(system: System, others: Sequence[System], turn: Turn, model: Model) -> Run:
    """Let a system answer, and see what it and the waiting others use.

    Returns:
        The run; its ceiling is 0 until it has been measured.

    Raises:
        SamplerPoolError, RuntimeError, OSError, psutil.Error: the system failed.
    """
    own, idle, here = system.processes(), _processes(others), [psutil.Process()]
    _forget_peaks(own)
    before = _cpu_seconds(own), _cpu_seconds(idle), _busy_seconds(), _cpu_seconds(here)
    outcome = system.run(turn.requests)
    after = _cpu_seconds(own), _cpu_seconds(idle), _busy_seconds(), _cpu_seconds(here)
    used, waiting, busy, ours = (b - a for a, b in zip(before, after, strict=True))
    return Run(
        workload=turn.workload,
        system=system.name,
        session=turn.session,
        repeat=turn.repeat,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        cpu_seconds=used + ours,
        work=model.work(turn.requests, outcome.tokens),
        ceiling=0.0,
        peak_bytes=_peak_bytes(own),
        disturbed=max(0.0, busy - used - waiting - ours) / (outcome.seconds * (os.cpu_count() or 1)),
        idle=waiting / outcome.seconds,
        rows=turn.rows,
        answers=[hashlib.sha256(text.encode()).hexdigest()[:12] for text in outcome.texts],
    )


def _processes(systems: Sequence[System]) -> list[psutil.Process]:
    """Of these, as far as they still run: that one has ended is found out when it has its turn."""
    found: list[psutil.Process] = []
    for system in systems:
        with contextlib.suppress(psutil.Error):
            found += system.processes()
    return found


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time that these have used, as far as they still run."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += float(times.user) + float(times.system)
    return total


def _busy_seconds() -> float:
    """CPU time that all programs on this machine have used."""
    times = psutil.cpu_times()
    return float(times.user) + float(times.nice) + float(times.system)


def _forget_peaks(processes: Sequence[psutil.Process]) -> None:
    """Let the kernel count the peak of resident memory anew (Linux, ``proc_pid_clear_refs(5)``)."""
    for process in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def _peak_bytes(processes: Sequence[psutil.Process]) -> int:
    """Most resident memory since ``_forget_peaks``, added up."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return total
