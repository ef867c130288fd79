"""Styles, and what a terminal is sent for them."""

from __future__ import annotations

import pytest

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.styles import SHADES, STYLES, Palette, shade, visible


@pytest.mark.parametrize(
    ("environ", "palette"),
    [
        ({}, Palette()),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, Palette()),
        ({"TERM": "xterm"}, Palette(attributes=True, colours=8)),
        ({"TERM": "xterm-256color"}, Palette(attributes=True, colours=256)),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, Palette(attributes=True, colours=256)),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, Palette(attributes=True)),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, Palette(attributes=True, colours=256)),
        ({"TERM": "vt220"}, Palette(attributes=True)),
        ({"TERM": "xterm-mono"}, Palette(attributes=True)),
    ],
)
def test_a_terminal_gets_what_it_has(environ: dict[str, str], palette: Palette) -> None:
    assert Palette.of(terminal=True, environ=environ) == palette
    assert Palette.of(terminal=False, environ=environ) == Palette()


@pytest.mark.parametrize("palette", [Palette(), Palette(True), Palette(True, 8), Palette(True, 256)])
def test_every_style_can_be_painted(palette: Palette) -> None:
    for style in STYLES:
        painted = palette.paint(style, "x")
        assert painted == "x" or (painted.startswith("\x1b[") and painted.endswith("mx\x1b[0m"))
    with pytest.raises(KeyError):
        palette.paint("gaudy", "x")


def test_attributes_and_colours_are_sent_only_where_there_are_some() -> None:
    assert Palette().paint("dim", "x") == "x"
    assert Palette(attributes=True).paint("dim", "x") == "\x1b[2mx\x1b[0m"
    assert Palette(attributes=True).paint("bad", "x") == "x"
    assert Palette(attributes=True, colours=8).paint("bad", "x") == "\x1b[31mx\x1b[0m"
    assert Palette(attributes=True, colours=256).paint("p9", "x") == "\x1b[38;5;34mx\x1b[0m"
    assert Palette(attributes=True, colours=8).paint("dim", "") == ""


def test_lines_are_shown_and_not_obeyed() -> None:
    lines = [[("bold", "a\x1b[2J"), ("", "b")], []]
    assert Palette(attributes=True).paint_lines(lines) == "\x1b[1ma\u241b[2J\x1b[0mb\n\n"
    assert visible("tab\tand\nline\r\x9b") == "tab\tand\nline\u240d\ufffd"


@pytest.mark.parametrize(("probability", "style"), [(0.0, "p0"), (0.0999, "p0"), (0.55, "p5"), (0.99, "p9"), (1, "p9")])
def test_a_shade_is_a_tenth(probability: float, style: str) -> None:
    assert shade(probability) == style
    assert style in SHADES


def test_an_answers_line_says_what_is_known() -> None:
    stats = AnswerStats("stop", 121, 84, first_token_s=0.5, elapsed_s=2.5)
    assert stats.line() == "first token 0.50 s · 60.0 tokens/s · 84 + 121 tokens · stop"
    assert AnswerStats("length", 1, None, 0.1, 0.1).line().startswith("first token 0.10 s · 1 tokens · length (max_new")
    assert AnswerStats(None, None, None, None, 3.0).line() == "stopped"
    assert AnswerStats("aborted", 0, 5, None, 3.0).line() == "5 + 0 tokens · stopped"
