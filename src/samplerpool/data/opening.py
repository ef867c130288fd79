"""Data files opened as streams of bytes, decompressed, with all that is wrong with a whole file said at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from samplerpool.data.compression import compression_of, decompressed
from samplerpool.errors import DataFileError

START_BYTES = 1 << 16
"""Of the first line, looked at to tell what the file is: a JSON document may be one line of gigabytes."""
CHUNK_BYTES = 1 << 18

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Opening:
    """A file or a pipe whose beginning has been read, and can still be gone through from there, once.

    Args:
        path: the file.

    Attributes:
        start: blank lines and the beginning of the first line that is not blank, without a byte order mark.
        offset: of ``start`` in the file, in bytes.
        is_file, is_compressed: whether it can be opened again; whether places in it mean something.

    Raises:
        DataFileError: it is missing, unreadable, empty, or in UTF-16.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        self.is_file = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        compression = compression_of(path) if self.is_file else None
        self.is_compressed = compression is not None
        if compression is not None:
            self._file = decompressed(self._file, path, compression)
        self.offset = 0
        try:
            self.start = self._read_start()
        except BaseException:
            self.close()
            raise

    def lines(self) -> Iterator[bytes]:
        """All lines, with their ends."""
        for line in BytesIO(self.start):
            yield line if line.endswith(b"\n") else line + self._file.readline()
        yield from self._file

    def chunks(self) -> Iterator[bytes]:
        """The same in pieces of some size."""
        yield self.start
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_start(self) -> bytes:
        lines: list[bytes] = []
        try:
            while line := self._file.readline(START_BYTES):
                lines.append(line if lines else self._without_bom(line))
                if lines[-1] and not lines[-1].isspace():
                    return b"".join(lines)
        except OSError as error:
            raise unreadable(self.path, error) from error
        raise DataFileError(f"The data file {self.path} is empty: it has no rows.", path=str(self.path))

    def _without_bom(self, line: bytes) -> bytes:
        if line.startswith(_UTF16_BOMS):
            raise DataFileError(f"The data file {self.path} is in UTF-16; save it as UTF-8.", path=str(self.path))
        if line.startswith(_UTF8_BOM):
            self.offset = len(_UTF8_BOM)
        return line.removeprefix(_UTF8_BOM)


def _open(path: Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise missing(path) from error
    except IsADirectoryError as error:
        raise DataFileError(f"{path} is a folder, not a data file.", path=str(path)) from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def missing(path: Path | str) -> DataFileError:
    """The error for a path that leads nowhere."""
    return DataFileError(f"There is no data file {path}.", path=str(path))


def unreadable(path: Path, error: OSError | ValueError) -> DataFileError:
    """The error for a file that is there and cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DataFileError(f"The data file {path} cannot be read: {reason}.", path=str(path))
