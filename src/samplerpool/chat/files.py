"""Files that a chat reads and writes: whole or not at all, rows as complete lines. Errors are one sentence."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from samplerpool.errors import UsageError

MAX_TEXT_BYTES = 4 * 2**20
"""Longer than any context; whoever names such a file has mistyped."""

MAX_CONVERSATION_BYTES = 256 * 2**20
"""Conversations hold their images."""


def path_of(argument: str) -> Path:
    """The path that was typed: quotes around it and a leading ``~`` mean what they mean in a shell."""
    text = argument.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return Path(text).expanduser()


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a plain file in UTF-8, a byte order mark left out.

    Raises:
        UsageError: it cannot be read, is longer than ``limit`` bytes, or is no text.
    """
    with _sentences(path, "read"):
        if not path.is_file():
            path.stat()  # says so itself if there is none
            raise UsageError(f"{path} is not a plain file.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise UsageError(f"{path} is longer than {limit:,} bytes, which is too much here.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 (byte {error.start}).") from None
    if "\0" in text:
        raise UsageError(f"{path} is no text: it holds zero bytes.")
    return text


def write_new(path: Path, text: str, *, replace: bool) -> None:
    """Write a file that readers see whole or not at all.

    Args:
        replace: a file that is there already may be replaced.

    Raises:
        UsageError: it cannot be written, or is there and must not be replaced; nothing is changed then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _sentences(path, "written"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                _keep_mode(path, temporary)
                os.replace(temporary, path)
            else:
                _move_to_new(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _keep_mode(path: Path, temporary: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        temporary.chmod(path.stat().st_mode & 0o777)


def _move_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails if there is one, even if it came just now
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError from None
        os.replace(temporary, path)


def append_line(path: Path, line: str) -> None:
    """Append one line, which is there completely, also after a crash, or not at all. Several chats may append at once.

    A last line that somebody left without an end is ended first.

    Raises:
        UsageError: it cannot be written.
    """
    with _sentences(path, "written"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            unfinished = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = b"\n" * unfinished + line.encode() + b"\n"
            try:
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            except BaseException:  # a Ctrl-C, too
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


@contextlib.contextmanager
def _sentences(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise UsageError(f"{path} is there already and was left as it is; choose another name.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be {done}: {error.strerror or error}.") from None
    except ValueError as error:  # a zero byte in a name
        raise UsageError(f"{str(path)!r} cannot be {done}: {error}.") from None
