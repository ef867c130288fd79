"""How much of a data set is taken, and how often. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

ONCE = Fraction(1)


@dataclass(frozen=True, slots=True)
class Share:
    """Which rows of a data set are taken: the first ``size``, each ``weight`` times.

    With a weight of 2 each row comes twice, one behind the other; with 0.5 every other row; with 1.5 every other row
    twice. It needs no random numbers and no list of rows, and is the same for a stream.

    Args:
        size: at most so many rows; None for all.
        weight: above 0.
    """

    size: int | None = None
    weight: Fraction = ONCE

    def rows(self, count: int) -> int:
        """How many of so many rows are looked at."""
        return count if self.size is None else min(count, self.size)

    def total(self, count: int) -> int:
        """How many entries so many rows (or what was made of them) give."""
        return int(count * self.weight)

    def repeats(self, row: int) -> int:
        """How often this one comes."""
        if self.weight is ONCE:  # for every row of most data sets
            return 1
        return self.total(row + 1) - self.total(row)

    def row(self, entry: int) -> int:
        """The row of an entry: the inverse of going through the rows in order, each as often as ``repeats`` says."""
        return -int(-(entry + 1) // self.weight) - 1
