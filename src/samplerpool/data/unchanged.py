"""Whether files are still what they were when they were opened, so that a cut-off line is not taken for a row."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from samplerpool.errors import DataFileError


class Unchanged:
    """The files as they are now. What is no regular file, a pipe say, is left out."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._states = {path: state for path in paths if (state := _state(path)) is not None}

    def check(self) -> None:
        """That they are still the same.

        Raises:
            DataFileError: one is not.
        """
        for path, before in self._states.items():
            if (now := _state(path)) != before:
                size = f"it had {before[0]:,} bytes, and " + (f"has {now[0]:,} now" if now else "is gone now")
                if now and now[0] == before[0]:
                    size = "it was written to"
                raise DataFileError(
                    f"{path} changed while it was read: {size}. Bring back what it was, or begin anew.", path=str(path)
                )


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_size, state.st_mtime_ns, state.st_ino) if S_ISREG(state.st_mode) else None
