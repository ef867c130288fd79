"""Markdown within a line: code, bold and emphasis, as far as what has come of the line tells. Pure."""

from __future__ import annotations

import re

Styled = tuple[str, str]
"""A style's name and a text."""

MAX_HELD = 400
"""Characters that are held back at most for an end that may not come."""

_SPECIAL = re.compile(r"[`*\\]|(?<!\w)_")
_ESCAPE = re.compile(r"\\[\\`*_{}\[\]()#+\-.!|>~]")
_STYLES = {1: "emphasis", 2: "bold", 3: "bold"}


def inline(text: str, start: int, *, whole: bool) -> tuple[list[Styled], int]:
    """What can be shown of a line.

    Args:
        text: what has come of the line.
        start: up to where it has been shown.
        whole: nothing more will come.

    Returns:
        Styles and texts, and up to where the line is shown now; the rest needs what comes to be understood.
    """
    shown: list[Styled] = []
    position = start
    while match := _SPECIAL.search(text, position):
        shown.append(("", text[position : match.start()]))
        position = match.start()
        styled, end = _mark(text, position, whole=whole)
        if end == position:
            return shown, position
        shown += styled
        position = end
    shown.append(("", text[position:]))
    return shown, len(text)


def _mark(text: str, position: int, *, whole: bool) -> tuple[list[Styled], int]:
    """What begins with a mark, and where it ends; that is where it began if this cannot be told yet."""
    mark = text[position]
    if mark == "\\":
        return _escape(text, position, whole=whole)
    run = _run_length(text, position)
    behind = position + run
    if behind == len(text) and not whole:
        return [], position
    literal: tuple[list[Styled], int] = [("", text[position:behind])], behind
    if mark != "`" and (run > 3 or text[behind : behind + 1].isspace()):
        return literal
    span = _closing(mark, run).match(text, behind)
    if span is not None and span.end() - position < MAX_HELD:
        if span.end() == len(text) and not whole:
            return [], position  # one more * or ` would belong to its end
        return _styled(mark, run, span[1]), span.end()
    waiting = not whole and len(text) - position < MAX_HELD
    return ([], position) if waiting else literal


def _escape(text: str, position: int, *, whole: bool) -> tuple[list[Styled], int]:
    if position + 1 == len(text) and not whole:
        return [], position
    if escape := _ESCAPE.match(text, position):
        return [("", escape[0][1])], escape.end()
    return [("", "\\")], position + 1


def _run_length(text: str, position: int) -> int:
    end = position
    while end < len(text) and text[end] == text[position]:
        end += 1
    return end - position


def _closing(mark: str, run: int) -> re.Pattern[str]:
    """What stands between a mark that opens and one of the same length that closes."""
    char = re.escape(mark)
    if mark == "`":
        return re.compile(rf"(.+?)(?<!{char}){char}{{{run}}}(?!{char})")
    after = r"(?!\w)" if mark == "_" else ""
    return re.compile(rf"(.+?)(?<=\S)(?<!{char}){char}{{{run}}}(?!{char}){after}")


def _styled(mark: str, run: int, content: str) -> list[Styled]:
    if mark == "`":
        return [("code", content)]
    inner, _ = inline(content, 0, whole=True)
    return [(style or _STYLES[run], text) for style, text in inner]
