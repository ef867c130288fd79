"""Results in the order of their rows, for those who cannot wait for the end and then look them up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row


class InOrder:
    """Holds results back until it is their turn, which comes in the order in which their rows were taken.

    Args:
        samples: answers per row, each of which comes once.
    """

    def __init__(self, samples: int = 1) -> None:
        self._samples = samples
        self._turns: dict[int, int] = {}
        self._waiting: dict[int, RowResult] = {}
        self._next = 0

    def noting(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows; their order is that of the results."""
        for turn, row in enumerate(rows):
            self._turns[row.index] = turn * self._samples
            yield row

    def take(self, result: RowResult) -> list[RowResult]:
        """The results whose turn it is, now that this one is there."""
        self._waiting[self._turns[result.row.index] + result.sample] = result
        due: list[RowResult] = []
        while (found := self._waiting.pop(self._next, None)) is not None:
            due.append(found)
            self._next += 1
            if found.sample == self._samples - 1:
                del self._turns[found.row.index]
        return due

    def rest(self) -> list[RowResult]:
        """Those whose turn has not come: there are gaps before them."""
        rest = [result for _, result in sorted(self._waiting.items())]
        self._waiting.clear()
        return rest
