"""An input that can be read only once, kept beside the journal, so that a run over it can go on as any other can."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

from samplerpool.batch.manifest import sync_folder
from samplerpool.errors import BatchError

STANDARD_INPUT = "-"


def is_stream(source: str) -> bool:
    """Whether this is standard input, a pipe or the like, and no file."""
    if source == STANDARD_INPUT:
        return True
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def spool(source: str, target: Path) -> Path:
    """Read a stream to its end into a file, unless that was done already.

    Args:
        source: ``-`` for standard input, or a path.
        target: appears as a whole.

    Raises:
        BatchError: it cannot be read, or there is no room for it.
    """
    if target.exists():
        return target
    partial = target.with_name(target.name + ".partial")
    try:
        with open(partial, "wb") as file:
            if source == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with open(source, "rb") as stream:
                    shutil.copyfileobj(stream, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        sync_folder(target.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BatchError(
            f"The input {source} could not be kept in {target}: {error.strerror}.", path=str(target)
        ) from error
    return target
