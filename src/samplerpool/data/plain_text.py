"""Text files: lines that are prompts, and tables of comma or tab separated values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from samplerpool.data.opening import Opening
from samplerpool.data.records import Piece, TextFile
from samplerpool.errors import BadRow, DataFileError

MAX_FIELD_CHARACTERS = 1 << 30
"""Python's own limit, 131,072, is less than one long document."""


class TextLines(TextFile):
    """Each line that is not blank is a prompt."""

    def parse(self, content: bytes) -> dict[str, Any]:
        try:
            return {"prompt": content.rstrip(b"\r\n").decode()}
        except UnicodeDecodeError as error:
            raise BadRow(f"byte {error.start + 1} is not valid UTF-8.") from None


class SeparatedValues(TextFile):
    """A table whose first row names the columns (RFC 4180). All values are text."""

    def __init__(self, path: Path, opening: Opening | None = None, *, delimiter: str = ",") -> None:
        self._delimiter = delimiter
        self._header: list[str] = []
        super().__init__(path, opening)

    def pieces(self, opening: Opening) -> Iterator[Piece]:
        """A row begins at a line and may go over several, where a value in quotes does."""
        lines = _Counted(opening.lines())
        reader = self._reader(lines)
        header: list[str] = []
        rows = 0
        while True:
            offset, number = opening.offset + lines.bytes, 1 + lines.lines
            try:
                fields: list[str] | BadRow = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                fields = BadRow(f"not a row of a table: {error}.")
            if not fields:  # a blank line
                continue
            if header:
                rows += 1
                yield Piece(offset, number, fields)
            else:
                self._header = header = self._checked_header(fields)
        if not rows:
            raise DataFileError(f"The data file {self.path} has no rows below its header.", path=str(self.path))

    def parse(self, content: Any) -> dict[str, Any]:
        if isinstance(content, bytes):
            content = self._first_row(content)
        if isinstance(content, BadRow):
            raise content
        if len(content) != len(self._header):
            raise BadRow(f"the row has {len(content)} values, and the header {len(self._header)} columns.")
        for name, value in zip(self._header, content, strict=True):
            if not _is_text(value):
                raise BadRow(f"{name} is not valid UTF-8.")
        return dict(zip(self._header, content, strict=True))

    def _reader(self, lines: Iterable[bytes]) -> Iterator[list[str]]:
        if csv.field_size_limit() < MAX_FIELD_CHARACTERS:
            csv.field_size_limit(MAX_FIELD_CHARACTERS)
        # Bytes that are no UTF-8 spoil their own row only, so they must pass here.
        return csv.reader(
            (line.decode("utf-8", "surrogateescape") for line in lines), delimiter=self._delimiter, strict=True
        )

    def _first_row(self, content: bytes) -> list[str] | BadRow:
        try:
            return next(self._reader(BytesIO(content)))
        except csv.Error as error:
            return BadRow(f"not a row of a table: {error}.")

    def _checked_header(self, fields: list[str] | BadRow) -> list[str]:
        if isinstance(fields, BadRow):
            raise DataFileError(f"The header of {self.path} is {fields.message}", path=str(self.path))
        twice = sorted({name for name in fields if fields.count(name) > 1})
        if twice or not all(map(_is_text, fields)):
            what = f"names the column {twice[0]!r} twice" if twice else "is not valid UTF-8"
            raise DataFileError(f"The header of {self.path} {what}.", path=str(self.path))
        return fields


class _Counted:
    """Lines that tell how many of them, and of their bytes, have been taken."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self.bytes = 0
        self.lines = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            self.bytes += len(line)
            self.lines += 1
            yield line


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
