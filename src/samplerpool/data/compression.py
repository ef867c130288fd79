"""Files that are compressed as one stream, by the ending of their name.

Known are gzip, and Zstandard with Python's own module (from 3.14) or the package ``zstandard`` (extra ``zstd``).
"""

from __future__ import annotations

import errno
import gzip
import io
import zlib
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO, Literal, cast

from samplerpool.errors import DataFileError

Compression = Literal["gz", "zst"]
_NAMES = {"gz": "gzip", "zst": "Zstandard"}


def compression_of(path: Path) -> Compression | None:
    """By the name's last ending."""
    ending = path.suffix.lower().removeprefix(".")
    return cast(Compression, ending) if ending in _NAMES else None


def inner_suffix(path: Path) -> str:
    """The ending of what is compressed in it, or its own: ``.jsonl`` of ``a.jsonl.gz``."""
    return (path if compression_of(path) is None else path.with_suffix("")).suffix.lower()


def compressed(file: BinaryIO, compression: Compression) -> IO[bytes]:
    """What is written to the result goes to ``file`` compressed, the same bytes each time; closing it leaves that open.

    Raises:
        DataFileError: a library for it is missing.
    """
    if compression == "gz":
        return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0))
    library, own = _zstandard(f"Writing {compression} files")
    if own:
        return cast(IO[bytes], library.ZstdFile(file, "wb"))
    return cast(IO[bytes], library.ZstdCompressor().stream_writer(file, closefd=False))


def decompressed(file: BinaryIO, path: Path, compression: Compression) -> io.BufferedReader:
    """What is compressed in a file; damage is an ``OSError`` where it is come upon.

    Raises:
        DataFileError: a library for it is missing.
    """
    stream: Any
    if compression == "gz":
        stream = gzip.GzipFile(fileobj=file, mode="rb")
    else:
        library, own = _zstandard(f"Reading {path}")
        stream = (
            library.ZstdFile(file, "rb")
            if own
            else library.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        )
    return io.BufferedReader(_Guarded(stream, file, compression))


class _Guarded(io.RawIOBase):
    """Says of whatever libraries raise at damaged data that this is it."""

    def __init__(self, stream: Any, file: BinaryIO, compression: Compression) -> None:
        self._stream, self._file = stream, file
        self._damages: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
        self._what = _NAMES[compression]
        if compression == "zst":
            library, _ = _zstandard("Reading")
            self._damages += (library.ZstdError,)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            some = self._stream.read(len(buffer))
        except self._damages as error:
            raise OSError(errno.EIO, f"it is no whole {self._what} file ({error})") from error
        buffer[: len(some)] = some
        return len(some)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()


def _zstandard(what: str) -> tuple[ModuleType, bool]:
    """The module, and whether it is Python's own."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]

        return zstd, True
    except ImportError:
        pass
    try:
        import zstandard

        return zstandard, False
    except ImportError as error:
        raise DataFileError(
            f"{what} needs the package zstandard; install it with: pip install 'samplerpool[zstd]'"
        ) from error


def check_compression(compression: Compression, path: Path) -> None:
    """See that it can be written, before there is something to write.

    Raises:
        DataFileError: a library for it is missing.
    """
    if compression == "zst":
        _zstandard(f"Writing {path}")
