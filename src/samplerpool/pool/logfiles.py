"""Log files: opened anew for each run, the run before kept beside them, and read from their end."""

from __future__ import annotations

import contextlib
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


def open_log(path: Path, *, go_on: bool = False) -> int:
    """Open a new log file for appending; the one of the run before becomes ``.1``.

    Args:
        go_on: append to the present file instead.

    Returns:
        A descriptor. ``O_APPEND`` lets several processes write whole lines into it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not go_on:
            os.replace(path, path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


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
