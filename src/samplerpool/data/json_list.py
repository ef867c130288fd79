"""A JSON document that is a list of objects, read as a stream: one row at a time is in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from samplerpool.data.jsonl import columns_of
from samplerpool.data.opening import Opening
from samplerpool.data.records import Piece, TextFile
from samplerpool.errors import DataFileError

_SPACE = re.compile(r"[ \t\n\r]*")
_TAIL = 16
"""Characters before the buffer's end at which an error may come of the cut: longer than any escape or literal."""

_decoder = json.JSONDecoder()


class JsonList(TextFile):
    """The records of a JSON list. Behind a mistake in the JSON nothing can be read, unlike in JSON Lines."""

    unit = "row"

    def check(self, start: bytes) -> None:
        if not start.lstrip().startswith(b"["):
            raise DataFileError(f"The data file {self.path} is not a JSON list of rows.", path=str(self.path))

    def pieces(self, opening: Opening) -> Iterator[Piece]:
        reader = _Reader(opening)
        for number, (offset, value) in enumerate(reader.values(), 1):
            yield Piece(offset, number, value)

    def parse(self, content: Any) -> dict[str, Any]:
        if isinstance(content, bytes):
            content, _ = _decoder.raw_decode(content.decode())  # the pass that found its place has checked it
        return columns_of(content)


class _Reader:
    """Takes one value after the other off a buffer of text that grows as needed."""

    def __init__(self, opening: Opening) -> None:
        self._path = opening.path
        self._chunks = opening.chunks()
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        self._offset = opening.offset  # of _at, in bytes
        self._line = 1
        self._ended = False

    def values(self) -> Iterator[tuple[int, Any]]:
        """Each element's offset in bytes, and the element.

        Raises:
            DataFileError
        """
        self._expect("[")
        if self._peek() == "]":
            raise DataFileError(f"The data file {self._path} is empty: its list has no rows.", path=str(self._path))
        while True:
            self._peek()
            yield self._offset, self._value()
            if self._peek() == "]":
                break
            self._expect(",")
        self._expect("]")
        if self._peek():
            self._fail("there is something behind the list's end")

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._advance(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail(f"{character!r} expected")
        self._advance(self._at + 1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = _decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_cut(error) and self._more():
                    continue
                self._advance(error.pos)
                self._fail(error.msg)
            except (ValueError, RecursionError) as error:
                self._fail(str(error).partition(";")[0])
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._advance(end)
            return value

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL

    def _more(self) -> bool:
        """Drop what is behind, and read at least as much as is left, so that a long value costs no more than its length
        times a constant."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        parts, wanted = [rest], 2 * len(rest) + 1
        while sum(map(len, parts)) < wanted and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            try:
                parts.append(self._decode(chunk, self._ended))
            except UnicodeDecodeError:
                self._fail("it is not valid UTF-8 from some place on")
        self._text, self._at = "".join(parts), 0
        return len(self._text) > len(rest)

    def _advance(self, to: int) -> None:
        passed = self._text[self._at : to]
        self._offset += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogatepass"))
        self._line += passed.count("\n")
        self._at = to

    def _fail(self, what: str) -> NoReturn:
        raise DataFileError(
            f"The data file {self._path} is not valid JSON: line {self._line}: {what}.", path=str(self._path)
        )
