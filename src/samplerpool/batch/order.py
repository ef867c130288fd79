"""Results in the order of their rows, for those who cannot wait for the end and then look them up. Pure."""

from __future__ import annotations

from samplerpool.data.answers import RowResult


class InOrder:
    """Holds results back until it is their turn.

    Args:
        samples: answers per row, each of which comes once.
    """

    def __init__(self, samples: int = 1) -> None:
        self._samples = samples
        self._waiting: dict[int, RowResult] = {}
        self._next = 0

    def take(self, result: RowResult) -> list[RowResult]:
        """The results whose turn it is, now that this one is there."""
        self._waiting[result.row.index * self._samples + result.sample] = result
        due = []
        while (found := self._waiting.pop(self._next, None)) is not None:
            due.append(found)
            self._next += 1
        return due

    def rest(self) -> list[RowResult]:
        """Those whose turn has not come: there are gaps before them."""
        rest = [result for _, result in sorted(self._waiting.items())]
        self._waiting.clear()
        return rest
