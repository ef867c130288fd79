"""The end of a log file that another process writes and rotates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 64 * 1024
"""At a look: whoever writes more than that in a quarter of a second is not followed word for word."""


class LogTail:
    """Gives what has been added to a file since the last look, from its beginning on.

    Args:
        path: where the present file is; rotation puts another one there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def read_new(self) -> str:
        """What was written since the last look; its end where it is too much."""
        added = b""
        if self._file is None:
            self._file = self._open()
        if self._file is not None:
            replaced = self._replaced(self._file)  # before the look: what came before that is all there
            added = _rest(self._file)
            if replaced:
                self._file.close()
                self._file = self._open()
                if self._file is not None:
                    added += _rest(self._file)
        return added.decode("utf-8", errors="replace")

    def _open(self) -> BinaryIO | None:
        try:
            return open(self._path, "rb")
        except OSError:
            return None

    def _replaced(self, file: BinaryIO) -> bool:
        try:
            return os.stat(self._path).st_ino != os.fstat(file.fileno()).st_ino
        except OSError:  # just now it is neither the old one nor the new one
            return False

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _rest(file: BinaryIO) -> bytes:
    left = os.fstat(file.fileno()).st_size - file.tell() - MAX_BYTES
    if left <= 0:
        return file.read()
    file.seek(left, os.SEEK_CUR)
    return b"\n[%d bytes are left out here]\n" % left + file.read()
