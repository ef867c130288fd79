"""JSON Lines: one object a line.

Lines that are blank are no rows, but count as lines: messages name the number that an editor shows.
"""

from __future__ import annotations

import json
from typing import Any

from samplerpool.data.json_text import from_json
from samplerpool.data.records import TextFile
from samplerpool.errors import BadRow, DataFileError


class JsonLines(TextFile):
    """The records of a JSON Lines file."""

    def check(self, start: bytes) -> None:
        """Refuse what is JSON, but not a line a row: pretty printed, it would give an error row a line."""
        if start.strip() in (b"[", b"{"):
            advice = "name it .json" if start.strip() == b"[" else "write a list of objects, or one object a line"
            raise DataFileError(
                f"The data file {self.path} is one JSON document over several lines, not JSON Lines; {advice}.",
                path=str(self.path),
            )

    def parse(self, content: bytes) -> dict[str, Any]:
        try:
            return columns_of(from_json(content))
        except UnicodeDecodeError as error:
            raise BadRow(f"byte {error.start + 1} is not valid UTF-8.") from None
        except json.JSONDecodeError as error:
            raise BadRow(f"not valid JSON: {error.msg} (column {error.colno}).") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
            raise BadRow(f"JSON that cannot be read: {str(error).partition(';')[0]}.") from None


def columns_of(value: object) -> dict[str, Any]:
    """A row's columns out of the JSON value that it is.

    Raises:
        BadRow: it is no object.
    """
    if not isinstance(value, dict):
        raise BadRow(f"a row must be a JSON object with columns, not {_kind(value)}.")
    return value


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
