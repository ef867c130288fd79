"""Markdown while it streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.chat.inline_markdown import MAX_HELD, Styled
from samplerpool.chat.markdown import MarkdownStream, _joined

PIECES = (
    "**",
    "*",
    "`",
    "```",
    "_",
    "\n",
    " ",
    "# ",
    "- ",
    "> ",
    "| a |",
    "|---|",
    "\\",
    "a",
    "b c",
    "1.",
    "漢 😀",
    "---",
)


def drawn(text: str, cuts: list[int] | None = None, columns: int = 80) -> list[Styled]:
    stream = MarkdownStream(columns)
    bounds = [0, *sorted(cuts or []), len(text)]
    found = [each for a, b in pairwise(bounds) for each in stream.feed(text[a:b])]
    return _joined([*found, *stream.end()])


@pytest.mark.parametrize(
    ("text", "styled"),
    [
        ("plain text", [("", "plain text")]),
        ("a **b c** d", [("", "a "), ("bold", "b c"), ("", " d")]),
        ("a __b__ *c* _d_", [("", "a "), ("bold", "b"), ("", " "), ("emphasis", "c"), ("", " "), ("emphasis", "d")]),
        ("***x***", [("bold", "x")]),
        ("use `a * b * c`", [("", "use "), ("code", "a * b * c")]),
        ("``a`b``", [("code", "a`b")]),
        ("2 * 3 * 4", [("", "2 * 3 * 4")]),
        ("snake_case_name", [("", "snake_case_name")]),
        ("**not closed\nnext", [("", "**not closed\nnext")]),
        (r"\*a\* \d", [("", r"*a* \d")]),
        ("## Title **x**\ntext", [("heading", "Title "), ("bold", "x"), ("", "\ntext")]),
        ("#hash", [("", "#hash")]),
        ("- one\n  * two", [("", "• one\n  • two")]),
        ("*one* two", [("emphasis", "one"), ("", " two")]),
        ("> said\nnot", [("dim", "│ said"), ("", "\nnot")]),
        ("```py\na = *b*\n```\nc", [("dim", "```py"), ("", "\n"), ("code", "a = *b*"), ("", "\n"), ("dim", "```"), ("", "\nc")]),  # noqa: E501
        ("a\n\n---\nb", [("", "a\n\n"), ("dim", "─" * 40), ("", "\nb")]),
        ("**a *b* `c`** d", [("bold", "a "), ("emphasis", "b"), ("bold", " "), ("code", "c"), ("", " d")]),
        ("trailing *", [("", "trailing *")]),
    ],
)  # fmt: skip
def test_what_is_drawn(text: str, styled: list[Styled]) -> None:
    assert drawn(text) == styled
    assert drawn(text, list(range(len(text)))) == styled


def test_a_table_is_drawn_in_columns_and_cut_to_the_screen() -> None:
    text = "| name | **漢字** |\n|---|:-:|\n| a | `x`\\| 1 |\n|longer one|2|\n\nend"
    assert "".join(part for _, part in drawn(text)).splitlines()[:2] == ["name        漢字", "──────────  ────"]
    narrow = "".join(part for _, part in drawn("|a|b|\n|-|-|\n|" + "w" * 50 + "|漢漢漢漢|\n", columns=20))
    assert narrow.splitlines() == ["a          b", "─────────  ────────", "wwwwwwww…  漢漢漢漢"]
    assert drawn("| not | a table\nnext") == [("", "| not | a table\nnext")]


def test_text_comes_at_once_unless_it_may_be_a_mark() -> None:
    stream = MarkdownStream()
    assert stream.feed("one ") == [("", "one ")]
    assert stream.feed("**tw") == []
    assert stream.feed("o** three") == [("bold", "two"), ("", " three")]
    assert stream.feed(" *" + "x" * MAX_HELD) == [("", " *" + "x" * MAX_HELD)]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(0, 60)))
def test_how_it_comes_makes_no_difference_and_words_are_kept(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    whole = drawn(text)
    assert drawn(text, [cut for cut in cuts if cut < len(text)]) == whole
    shown = "".join(part for _, part in whole)
    assert [c for c in shown if c.isalnum()] == [c for c in text if c.isalnum()]
