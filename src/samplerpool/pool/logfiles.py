"""Where the log files of a pool are, and how they end."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_LINES = 20
_TAIL_BYTES = 8 * 1024


def worker_log(folder: Path, index: int) -> Path:
    """Where a worker's output goes."""
    return folder / f"worker-{index}.log"


def supervisor_log(folder: Path) -> Path:
    """Where a detached supervisor's output goes."""
    return folder / "supervisor.log"


def cluster_log(folder: Path) -> Path:
    """Where goes what Ray says in the process that speaks to a cluster: pages, when a machine is lost."""
    return folder / "ray.out"


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a file; empty if it has none or is not there."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
