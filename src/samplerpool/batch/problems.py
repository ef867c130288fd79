"""Rows that have something in common, errors above all: how many, which first, and a sentence. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from samplerpool.errors import SamplerPoolError

SHOWN_ROWS = 5


@dataclass(slots=True)
class Rows:
    """How many, and the lowest numbers among them, whatever the order in which they come.

    Args:
        count: with several answers a row, of these.
    """

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> bool:
        """Count one; whether no other one has a lower number."""
        self.count += 1
        place = bisect_left(self.first, row)
        if self.first[place : place + 1] != [row]:
            insort(self.first, row)
            del self.first[SHOWN_ROWS:]
            return place == 0
        return False


@dataclass(slots=True)
class ErrorKind:
    """Rows with one class of error.

    Args:
        code: the class's name, as in the rows themselves.
        sentence: of the first of them.
    """

    code: str
    rows: Rows = field(default_factory=Rows)
    sentence: str = ""


class Problems:
    """Errors by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, ErrorKind] = {}

    def add(self, row: int, error: SamplerPoolError) -> None:
        """A row has this error."""
        code = type(error).__name__
        kind = self._kinds.setdefault(code, ErrorKind(code))
        if kind.rows.add(row):
            kind.sentence = error.message

    @property
    def count(self) -> int:
        """Errors of all kinds."""
        return sum(kind.rows.count for kind in self._kinds.values())

    def __iter__(self) -> Iterator[ErrorKind]:
        """The most frequent first."""
        return iter(sorted(self._kinds.values(), key=lambda kind: (-kind.rows.count, kind.code)))
