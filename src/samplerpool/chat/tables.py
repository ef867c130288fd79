"""Markdown tables, drawn in columns. Pure."""

from __future__ import annotations

import re

from samplerpool.chat.styles import Line
from samplerpool.chat.widths import clipped, width

_SEPARATOR = re.compile(r"\s*:?-+:?\s*")
_GAP = "  "
_LEAST = 3
_MARKS = re.compile(r"(\*\*|`)(.+?)\1")


def table_lines(rows: list[str], columns: int) -> list[Line]:
    """The lines of a table, cut to the screen's width; rows that are none come out as they are.

    Args:
        rows: its lines as they were written, each beginning with a ``|``.
        columns: the screen's width.
    """
    cells = [_cells(row) for row in rows]
    if len(cells) < 2 or not all(_SEPARATOR.fullmatch(cell) for cell in cells[1]):
        return [[("", row)] for row in rows]
    head, body = cells[0], cells[2:]
    widths = _fitted([_widest(number, [head, *body]) for number in range(max(map(len, [head, *body])))], columns)
    rule: Line = [("dim", _GAP.join("─" * each for each in widths))]
    return [_drawn(head, widths, "bold"), rule, *(_drawn(row, widths, "") for row in body)]


def _cells(row: str) -> list[str]:
    inner = row.strip().removeprefix("|").removesuffix("|")
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]
    return [_MARKS.sub(r"\2", cell) for cell in cells]


def _widest(number: int, rows: list[list[str]]) -> int:
    return max(_LEAST, *(width(row[number]) for row in rows if number < len(row)))


def _fitted(widths: list[int], columns: int) -> list[int]:
    """Narrower columns, the widest first, until all of them fit."""
    fitted = list(widths)
    while sum(fitted) + len(_GAP) * (len(fitted) - 1) >= columns and max(fitted) > _LEAST:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _drawn(row: list[str], widths: list[int], style: str) -> Line:
    padded = [*row, *[""] * (len(widths) - len(row))]
    cells = [clipped(cell, size) for cell, size in zip(padded, widths, strict=True)]
    spaced = [cell + " " * (size - width(cell)) for cell, size in zip(cells, widths, strict=True)]
    return [(style, _GAP.join(spaced).rstrip())]
