"""Markdown drawn while it streams: what has been shown is never drawn again, so nothing flickers. Pure.

Text is shown at once where it is certain what it is, and held back where it is not: from a ``*`` to the one that closes
it, or to the line's end; a table to its last row. What is no Markdown after all comes out as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from samplerpool.chat.inline_markdown import Styled, inline
from samplerpool.chat.tables import table_lines

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_ITEM = re.compile(r"([ \t]*)[-*+]([ \t]+)")
_QUOTE = re.compile(r" {0,3}> ?")
_TABLE = re.compile(r" {0,3}\|")
_UNCERTAIN = re.compile(r" {0,3}(#{0,6}[ \t]*|`*|~*|>|[-*+_ \t]*)$")
"""Beginnings of lines that do not tell yet what the line is."""
_MAY_END_CODE = re.compile(r" {0,3}(`*|~*)[ \t]*$")
RULE_WIDTH = 40


class MarkdownStream:
    """One text. ``feed`` it as it comes, then ``end`` it.

    Args:
        columns: the screen's width, which tables are cut to.
    """

    def __init__(self, columns: int = 80) -> None:
        self._columns = columns
        self._fence = ""
        self._rows: list[str] = []
        self._begin_line()

    def _begin_line(self, rest: str = "") -> None:
        self._line = rest
        self._shown = 0  # up to where the line is dealt with
        self._begun = False  # whether it is certain what the line is
        self._style = ""

    def feed(self, text: str) -> list[Styled]:
        """The text goes on; what can be shown of it now."""
        self._line += text
        return _joined(self._advance(final=False))

    def end(self) -> list[Styled]:
        """The text is over; the rest of it."""
        return _joined([*self._advance(final=True), *self._table()])

    def _advance(self, *, final: bool) -> Iterator[Styled]:
        while "\n" in self._line:
            self._line, _, rest = self._line.partition("\n")
            yield from self._go_on(whole=True)
            if not self._rows:
                yield "", "\n"
            self._begin_line(rest)
        if self._line:
            yield from self._go_on(whole=final)

    def _go_on(self, *, whole: bool) -> Iterator[Styled]:
        """What can be shown of the line, or of what has come of it."""
        if not self._begun:
            if not whole and self._is_uncertain():
                return
            self._begun = True
            yield from self._begin()
        if self._style == "code":
            yield "code", self._line[self._shown :]
            self._shown = len(self._line)
            return
        shown, self._shown = inline(self._line, self._shown, whole=whole)
        yield from ((style or self._style, text) for style, text in shown)

    def _is_uncertain(self) -> bool:
        if self._fence:
            return _MAY_END_CODE.match(self._line) is not None
        return any(pattern.match(self._line) for pattern in (_UNCERTAIN, _TABLE, _FENCE))

    def _begin(self) -> Iterator[Styled]:
        """Take from the line what says what kind of line it is, and show that."""
        line = self._line
        if self._fence:
            yield from self._in_code()
            return
        if _TABLE.match(line):
            self._rows.append(line)
            self._shown = len(line)
            return
        yield from self._table()
        if fence := _FENCE.match(line):
            self._fence = fence[1]
            yield from self._all_of_it("dim", line)
        elif _RULE.match(line):
            yield from self._all_of_it("dim", "─" * min(RULE_WIDTH, self._columns))
        elif match := _HEADING.match(line):
            self._style, self._shown = "heading", match.end()
        elif match := _ITEM.match(line):
            self._shown = match.end()
            yield "", f"{match[1]}•{match[2]}"
        elif match := _QUOTE.match(line):
            self._style, self._shown = "dim", match.end()
            yield "dim", "│ "

    def _in_code(self) -> Iterator[Styled]:
        if self._line.strip().startswith(self._fence) and not self._line.strip().strip(self._fence[0]):
            self._fence = ""
            yield from self._all_of_it("dim", self._line)
        else:
            self._style = "code"

    def _all_of_it(self, style: str, drawn: str) -> Iterator[Styled]:
        self._shown = len(self._line)
        yield style, drawn

    def _table(self) -> Iterator[Styled]:
        rows, self._rows = self._rows, []
        for line in table_lines(rows, self._columns):
            yield from line
            yield "", "\n"


def _joined(styled: Iterable[Styled]) -> list[Styled]:
    """Neighbours of one style as one, without empty ones."""
    joined: list[Styled] = []
    for style, text in styled:
        if not text:
            continue
        if joined and joined[-1][0] == style:
            joined[-1] = (style, joined[-1][1] + text)
        else:
            joined.append((style, text))
    return joined
