"""JSON Lines: one object a line, read as a stream.

A row's index is its place among the lines that are not blank, from 0; messages name the line's number in the file,
from 1, blank ones counted, because that is what an editor shows.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from samplerpool.data.rows import Row, row_from
from samplerpool.errors import BadRow, DataFileError

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class JsonlFile:
    """A JSONL file, opened and looked at, whose rows can be gone through once.

    Args:
        path: a file, or a pipe.

    Raises:
        DataFileError: it is missing, unreadable, empty, or plainly something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        try:
            self._head = self._read_head()
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[Row]:
        """The rows; the file is closed behind the last one.

        Raises:
            DataFileError: the file cannot be read on.
        """
        index = 0
        with self:
            try:
                for number, line in enumerate(chain(self._head, self._file), 1):
                    if line.isspace():
                        continue
                    yield _row(line, index, f"Line {number}")
                    index += 1
            except OSError as error:
                raise _unreadable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    def count_rows(self) -> int | None:
        """How many rows the file has, by a quick pass over it; None for a pipe, which can be read only once."""
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            return None
        with _open(self.path) as file:
            return sum(not line.isspace() for line in file)

    def _read_head(self) -> list[bytes]:
        """The lines up to the first row. Everything that makes the whole file useless shows here."""
        lines: list[bytes] = []
        try:
            for line in self._file:
                lines.append(line)
                if len(lines) == 1:
                    lines[0] = line = self._without_bom(line)
                if line and not line.isspace():
                    self._check_first_row(line.strip())
                    return [line or b"\n" for line in lines]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        raise DataFileError(f"The data file {self.path} is empty: it has no rows.", path=str(self.path))

    def _without_bom(self, line: bytes) -> bytes:
        if line.startswith(_UTF16_BOMS):
            raise DataFileError(f"The data file {self.path} is in UTF-16; save it as UTF-8.", path=str(self.path))
        return line.removeprefix(_UTF8_BOM)

    def _check_first_row(self, line: bytes) -> None:
        if line in (b"[", b"{"):
            raise DataFileError(
                f"The data file {self.path} is one JSON document over several lines, not JSON Lines; "
                "write one object a line.",
                path=str(self.path),
            )


def _open(path: Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise DataFileError(f"There is no data file {path}.", path=str(path)) from error
    except IsADirectoryError as error:
        raise DataFileError(f"{path} is a folder, not a data file; name one JSONL file.", path=str(path)) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> DataFileError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DataFileError(f"The data file {path} cannot be read: {reason}.", path=str(path))


def _row(line: bytes, index: int, place: str) -> Row:
    try:
        value = _decode(line.rstrip().decode())
    except UnicodeDecodeError as error:
        return _broken(index, f"{place}: byte {error.start + 1} is not valid UTF-8.")
    except json.JSONDecodeError as error:
        return _broken(index, f"{place}: not valid JSON: {error.msg} (column {error.colno}).")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        return _broken(index, f"{place}: JSON that cannot be read: {str(error).partition(';')[0]}.")
    if not isinstance(value, dict):
        return _broken(index, f"{place}: a row must be a JSON object with columns, not {_json_kind(value)}.")
    return row_from(value, index, place)


def _broken(index: int, sentence: str) -> Row:
    return Row(index, error=BadRow(sentence))


_decode = json.JSONDecoder().decode
"""What ``json.loads`` calls, once it has looked at its arguments."""


def _json_kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
