"""A process's own log: a file that stays within a size, and whose failing harms nobody.

Whatever the process writes goes straight into the file, the output of native code included. So rotation happens in
the process itself: it gives the file another name, opens a new one, and puts that in the place of its output.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import sys
from pathlib import Path

KEPT_LOGS = 3
"""Earlier files beside the present one: ``.1`` is the latest."""
DEFAULT_MAX_LOG_BYTES = 32 * 2**20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_OUTPUT = (1, 2)


def open_log(path: Path, *, go_on: bool = False) -> int:
    """Open a new log file for appending; the one that is there becomes ``.1``, and ``.1`` becomes ``.2``.

    Args:
        go_on: append to the present file instead.

    Returns:
        A descriptor. ``O_APPEND`` lets several processes write whole lines into it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not go_on:
        _shift(path)
    return os.open(path, _FLAGS, 0o600)


def _shift(path: Path) -> None:
    names = [path, *(_earlier(path, number) for number in range(1, KEPT_LOGS + 1))]
    for newer, older in reversed(list(itertools.pairwise(names))):
        with contextlib.suppress(FileNotFoundError):
            os.replace(newer, older)


def _earlier(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


class LogFile(logging.Handler):
    """Sends log records, and all output of this process, into a file that was opened as its output.

    Args:
        path: the file behind descriptors 1 and 2; None if it is something else, which is then never rotated.
        max_bytes: beyond which a new file is begun.
        layout: of a line, as ``logging.Formatter`` takes it.
        rotates: False where another process writes into the same file and does that; ``follow`` goes along.
    """

    def __init__(self, path: Path | None, max_bytes: int, layout: str, *, rotates: bool = True) -> None:
        super().__init__()
        self._path = path
        self._rotates = rotates
        self._max_bytes = max_bytes
        self.setFormatter(logging.Formatter(layout))
        sys.stdout, sys.stderr = (_text_stream(descriptor) for descriptor in _OUTPUT)
        logging.basicConfig(level=logging.INFO, handlers=[self], force=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)
        self.rotate_if_large()

    def rotate_if_large(self) -> None:
        """Begin a new file if this one is large. To be called now and then: native code writes as well."""
        if self._path is None or not self._rotates:
            return
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError):
            if os.fstat(_OUTPUT[-1]).st_size > self._max_bytes:
                _rotate(self._path)

    def follow(self) -> None:
        """Go on in the file that another process has begun in the place of this one."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino != os.fstat(_OUTPUT[-1]).st_ino:
                descriptor = os.open(self._path, _FLAGS, 0o600)
                for output in _OUTPUT:
                    os.dup2(descriptor, output)
                os.close(descriptor)


def _rotate(path: Path) -> None:
    """On a full disk it goes on in the old file."""
    _earlier(path, KEPT_LOGS).unlink(missing_ok=True)  # first: it may be the room that the new one needs
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, _FLAGS, 0o600)
    try:
        for output in _OUTPUT:  # before the names change: whoever follows the old file sees all of it
            os.dup2(descriptor, output)
        _shift(path)
        os.replace(new, path)
    finally:
        os.close(descriptor)


class _Forgiving(io.FileIO):
    """Loses what cannot be written, on a full disk say, and tells so when it can again."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = 0

    def write(self, data: object) -> int:
        text = memoryview(data).tobytes()  # type: ignore[arg-type]
        try:
            if self._lost:
                super().write(b"[%d bytes could not be written here]\n" % self._lost)
                self._lost = 0
            super().write(text)
        except OSError:
            self._lost += len(text)
        return len(text)


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    raw = _Forgiving(descriptor)
    return io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
