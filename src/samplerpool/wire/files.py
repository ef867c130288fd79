"""Files and folders that nobody else may change: made so, and looked at before anything in them is trusted."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from samplerpool.errors import PoolNotFound, TransportError, UsageError

_MAX_BYTES = 64 * 2**20


# ---- folders ------------------------------------------------------------------------------------------------------


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can enter, and check one that exists.

    Raises:
        UsageError: it belongs to somebody else, is a link, or is open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The runtime folder {folder} cannot be made: {error.strerror}; {_OTHER_FOLDER}.") from error
    problem = folder_problem(folder)
    if problem is not None:
        raise UsageError(problem)
    return folder


def folder_problem(folder: Path) -> str | None:
    """Why nothing in a folder is to be trusted, a sentence; None if it is this user's alone, or not there."""
    try:
        status = os.lstat(folder)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return f"The runtime folder {folder} is not a folder of yours (owner uid {status.st_uid}); {_OTHER_FOLDER}."
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        what = f"The runtime folder {folder} is open to others (mode {mode:o})"
        return f"{what}; run chmod 700 {folder}, or {_OTHER_FOLDER}."
    return None


_OTHER_FOLDER = "set SAMPLERPOOL_RUNTIME_DIR to a folder of your own"


# ---- files --------------------------------------------------------------------------------------------------------


def read_trusted(path: Path, what: str) -> tuple[str, int]:
    """The text and the mode of a file that nobody else can have written.

    What is looked at is what is read: the open file, not its name.

    Args:
        what: kind of file it is, for sentences.

    Raises:
        PoolNotFound: there is none.
        TransportError: it belongs to another user, others may change it, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe must not keep us
        with open(descriptor, encoding="utf-8") as file:
            status = os.fstat(descriptor)
            problem = file_problem(path, what, status.st_uid, status.st_mode)
            if problem is not None:
                raise TransportError(problem)
            return file.read(_MAX_BYTES), stat.S_IMODE(status.st_mode)
    except FileNotFoundError as error:
        raise PoolNotFound(f"There is no {what} {path}.") from error
    except OSError as error:
        raise TransportError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TransportError(f"The {what} {path} is no text.") from error


def file_problem(path: Path, what: str, owner: int, mode: int) -> str | None:
    """Why a file of this owner and mode is not to be trusted, a sentence; None if it is. The system's own may be."""
    if not stat.S_ISREG(mode):
        return f"The {what} {path} is not a plain file."
    if owner not in (os.geteuid(), 0):
        return (
            f"The {what} {path} belongs to uid {owner}, not to you (uid {os.geteuid()}), and is not trusted; "
            "if you trust what is in it, make a copy of your own."
        )
    if mode & 0o022:
        may = f"may be changed by others (mode {stat.S_IMODE(mode):o})"
        return f"The {what} {path} {may}; if what is in it is right, run: chmod 600 {path}"
    return None


def check_secret(path: Path, what: str, mode: int) -> None:
    """A file with a secret key in it must not be read by others either.

    Raises:
        TransportError
    """
    if mode & 0o077:
        raise TransportError(
            f"The {what} {path} holds a secret key and may be read by others (mode {mode:o}); run: chmod 600 {path}"
        )


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that readers see the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
