"""Output rows, whose columns may differ from row to row, as rows of one table, and back. Pure.

A table has one type a column. Columns of texts, of numbers, of true and false, and of lists of these are kept as they
are. ``messages``, ``reference`` and ``generation``, whose form is known, become lists and structures. Any other column
(objects, or values of several kinds) becomes JSON text. What was done to which column is the table's *layout*, with
which ``restored`` gives back the rows that there were, apart from the difference between a null and nothing in a column
that has both, and between whole and other numbers in one that has both. Names that a table cannot have are written as
JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from samplerpool.data.json_text import from_json, to_json

MESSAGES, MESSAGE, LOGPROBS, RECORD, JSON = "messages", "message", "logprobs", "record", "json"
ODD_MESSAGES = "messages_json"
"""Holds, as JSON text, the messages of rows that could not be brought to the v1 form."""

SPECIAL = {"messages": MESSAGES, "reference": MESSAGE, "generation": RECORD}
_INT64 = 2**63
_EXACT_IN_FLOAT = 2**53
_TURN, _BLOCK, _ENTRY = {"role", "content"}, {"type", "value"}, {"token_id", "logprob", "top"}


class TableColumns:
    """What rows hold, found out by ``note`` for each of them; then ``cells`` turns them into a table's."""

    def __init__(self, special: Mapping[str, str] | None = None) -> None:
        self._special = SPECIAL if special is None else special
        self._kinds: dict[str, str | None] = {}
        self._seen: dict[str, int] = {}
        self._nulls: set[str] = set()
        self._rows = 0
        self._odd = False
        self._record: TableColumns | None = None

    def note(self, row: Mapping[str, Any]) -> None:
        """A row that will be among them."""
        self._rows += 1
        for name, value in row.items():
            self._seen[name] = self._seen.get(name, 0) + 1
            kind = self._kinds.setdefault(name, None)
            if value is None:
                self._nulls.add(name)
            elif self._special.get(name) == MESSAGES and not _is_chat(value):
                self._odd = True
            else:
                found = self._special_kind(name, value) or _kind(value)
                self._kinds[name] = found if kind is None else _common(kind, found)
            if self._kinds[name] == RECORD and isinstance(value, Mapping):
                self._record = self._record or TableColumns({"logprobs": LOGPROBS})
                self._record.note(value)

    def _special_kind(self, name: str, value: Any) -> str | None:
        wanted = self._special.get(name)
        fits = {
            MESSAGES: _is_chat,
            MESSAGE: _is_turn,
            RECORD: lambda found: isinstance(found, dict) and bool(found),
            LOGPROBS: _are_logprobs,
        }
        return wanted if wanted is not None and fits[wanted](value) else None

    @property
    def kinds(self) -> dict[str, Any]:
        """Name to kind: ``bool``, ``int``, ``float``, ``text``, ``list:`` and one of them, or a constant of this
        module; of a ``RECORD`` such a mapping of its own. In the order in which names came up."""
        found: dict[str, Any] = {}
        for name, kind in self._kinds.items():
            assert self._record is not None or kind != RECORD
            found[self._column(name)] = self._record.kinds if kind == RECORD and self._record else _settled(kind)
            if name == "messages" and self._odd:
                found[ODD_MESSAGES] = "text"
        return found

    def _column(self, name: str) -> str:
        """What a column of the rows is called in the table."""
        return name if _is_text(name) and not (name == ODD_MESSAGES and self._odd) else json.dumps(name)

    def layout(self) -> dict[str, Any]:
        """For ``restored``; JSON can hold it."""
        absent = [n for n, seen in self._seen.items() if seen < self._rows and n not in self._nulls]
        said: dict[str, Any] = {"absent": list(map(self._column, absent)), "odd": self._odd}
        kinds = {self._column(name): kind for name, kind in self._kinds.items()}
        for kind in (JSON, MESSAGES, MESSAGE, LOGPROBS):
            said[kind] = [name for name, found in kinds.items() if found == kind]
        said["renamed"] = [name for name in self._kinds if self._column(name) != name]
        record = self._record
        said[RECORD] = {name: record.layout() for name, kind in kinds.items() if kind == RECORD and record}
        return said

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row that was noted, as one of the table's."""
        made: dict[str, Any] = {}
        for name, value in row.items():
            kind = self._kinds[name]
            if value is None:
                continue
            column = self._column(name)
            if self._special.get(name) == MESSAGES and not _is_chat(value):
                made[ODD_MESSAGES] = to_json(value).decode()
            elif kind == JSON:
                made[column] = to_json(value).decode()
            elif kind == RECORD and self._record is not None:
                made[column] = self._record.cells(value)
            elif kind == LOGPROBS:
                pair = ("token_id", "logprob")
                made[name] = [{**e, "top": [dict(zip(pair, top, strict=True)) for top in e["top"]]} for e in value]
            else:
                made[column] = value
        return made


def restored(cells: dict[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """The row that ``cells`` was made of; changes it."""
    for name in layout["json"]:
        if cells.get(name) is not None:
            cells[name] = from_json(cells[name].encode())
    for name in layout[MESSAGES]:
        cells[name] = cells.get(name) and [_without_nulls(turn) for turn in cells[name]]
    for name in layout[MESSAGE]:
        cells[name] = cells.get(name) and _without_nulls(cells[name])
    for name in layout[LOGPROBS]:
        for entry in cells.get(name) or ():
            entry["top"] = [[top["token_id"], top["logprob"]] for top in entry["top"]]
    for name, inner in layout[RECORD].items():
        if cells.get(name) is not None:
            cells[name] = restored(cells[name], inner)
    if layout["odd"] and (text := cells.pop(ODD_MESSAGES, None)) is not None:
        cells["messages"] = from_json(text.encode())
    for name in layout["absent"]:
        if cells.get(name, 0) is None:
            del cells[name]
    for name in layout.get("renamed", ()):
        if (column := json.dumps(name)) in cells:
            cells[name] = cells.pop(column)
    return cells


def _without_nulls(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if value is not None}


def _settled(kind: str | None) -> str:
    """What a column is whose values say too little: nulls alone, empty lists alone."""
    return "text" if kind is None else "list:text" if kind == "list:" else kind.replace("long", "int")


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text" if _is_text(value) else JSON
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= _EXACT_IN_FLOAT else "long" if -_INT64 <= value < _INT64 else JSON
    if isinstance(value, float):
        return "float"
    if isinstance(value, list):
        kind = "list:"
        for item in value:
            found = _kind(item)
            if found == JSON or found.startswith("list:"):
                return JSON
            kind = _common(kind, f"list:{found}")
        return kind
    return JSON


def _common(one: str, other: str) -> str:
    """The kind of a column that has both."""
    if one == other:
        return one
    if one.startswith("list:") and other.startswith("list:"):
        common = _common(one[5:], other[5:]) if one != "list:" and other != "list:" else one[5:] or other[5:]
        return JSON if common == JSON else f"list:{common}"
    pair = {one, other}
    if pair == {"int", "float"}:
        return "float"
    return "long" if pair == {"int", "long"} else JSON


def _is_text(value: str) -> bool:
    """Half a surrogate pair is none."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    if not isinstance(value, dict) or not (value.keys() == _TURN or value.keys() - {"loss_weight"} == _TURN):
        return False
    weight, content = value.get("loss_weight", 0.0), value["content"]
    return (
        isinstance(value["role"], str)
        and _is_text(value["role"])
        and isinstance(weight, int | float)
        and isinstance(content, list)
        and all(map(_is_block, content))
    )


def _is_block(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _BLOCK
        and isinstance(value["type"], str)
        and _is_text(value["type"])
        and isinstance(value["value"], str)
        and _is_text(value["value"])
    )


def _are_logprobs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and entry.keys() == _ENTRY for entry in value)
