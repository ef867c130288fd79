"""Two texts that stream at once, side by side: a line is shown when both its halves are final. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from samplerpool.chat.styles import Line, visible
from samplerpool.chat.views import cells

_BETWEEN = " │ "


class SideBySide:
    """Two columns. What was shown never changes, so nothing is drawn twice.

    Args:
        width: of both together, in cells.
    """

    def __init__(self, width: int) -> None:
        size = max(8, (width - len(_BETWEEN)) // 2)
        self._columns = (_Column(size), _Column(size))
        self._size = size

    def heads(self, left: str, right: str) -> Iterator[Line]:
        """What stands above the columns."""
        yield self._row(("bold", left[: self._size]), ("bold", right[: self._size]))
        yield [("dim", "─" * self._size + "─┼─" + "─" * self._size)]

    def feed(self, side: int, text: str) -> Iterator[Line]:
        """A column (0 or 1) goes on.

        Yields:
            The lines that are final now.
        """
        self._columns[side].feed(text)
        yield from self._ready()

    def end(self, side: int) -> Iterator[Line]:
        """A column is complete."""
        self._columns[side].end()
        yield from self._ready()

    def _ready(self) -> Iterator[Line]:
        left, right = self._columns
        while left.ready or right.ready:
            if not (left.ready or left.ended) or not (right.ready or right.ended):
                return
            yield self._row(("", left.take()), ("", right.take()))

    def _row(self, left: tuple[str, str], right: tuple[str, str]) -> Line:
        padding = " " * (self._size - cells(left[1]))
        return [left, ("dim", padding + _BETWEEN), right]


class _Column:
    """Wraps a text as it comes."""

    def __init__(self, width: int) -> None:
        self.ended = False
        self._width = width
        self._lines: list[str] = []
        self._rest = ""

    @property
    def ready(self) -> bool:
        """Whether a line is final."""
        return bool(self._lines)

    def take(self) -> str:
        """The next final line; empty where there are no more."""
        return self._lines.pop(0).rstrip() if self._lines else ""

    def feed(self, text: str) -> None:
        self._rest += visible(text).expandtabs(4)
        *complete, self._rest = self._rest.split("\n")
        for line in complete:
            *first, last = _pieces(line, self._width)
            self._lines += [*first, last]
        *first, self._rest = _pieces(self._rest, self._width)
        self._lines += first

    def end(self) -> None:
        if self._rest:
            self._lines += _pieces(self._rest, self._width)
            self._rest = ""
        self.ended = True


def _pieces(line: str, width: int) -> list[str]:
    """A line in pieces of at most ``width`` cells, broken behind spaces where it can be."""
    pieces: list[str] = []
    while cells(line) > width:
        fits = _fitting(line, width)
        space = line.rfind(" ", 1, fits + 1)
        cut = space if space > 0 else fits
        pieces.append(line[:cut])
        line = line[cut:].removeprefix(" ")
    return [*pieces, line]


def _fitting(line: str, width: int) -> int:
    """How many characters fit, at least one."""
    used = 0
    for place, character in enumerate(line):
        used += cells(character)
        if used > width:
            return max(1, place)
    return len(line)
