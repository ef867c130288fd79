"""An answer on a terminal while it streams."""

from __future__ import annotations

from typing import Any

import pytest

from samplerpool.chat.answer_view import AnswerView, Surface, ViewOptions
from samplerpool.chat.styles import Palette

STYLED = Palette(attributes=True)
CALL = '<tool_call>{"name": "sum", "arguments": {"of": [1, 2]}}</tool_call>'


class Shown:
    """A view of an answer, and what it has sent: ``<`` begins dimmed text, ``{`` bold, ``/`` slanted, ``>`` ends it."""

    def __init__(self, options: ViewOptions, palette: Palette = STYLED, columns: int = 80, **more: Any) -> None:
        self.now = 0.0
        self.sent = ""
        surface = Surface(self._send, palette, lambda: columns, "A: ", clock=lambda: self.now)
        self.view = AnswerView(surface, options, **more)

    def _send(self, text: str) -> None:
        self.sent += text

    def answer(self, *pieces: str) -> str:
        for piece in pieces:
            self.now += 1.0
            self.view.write(piece)
        self.view.end()
        plain = self.sent.replace("\x1b[K", "|")
        for code, mark in (("2", "<"), ("1", "{"), ("3", "/"), ("0", ">")):
            plain = plain.replace(f"\x1b[{code}m", mark)
        assert "\x1b" not in plain
        return plain.replace("> >", ">").removeprefix("{A: >")


def shown(*pieces: str, palette: Palette = STYLED, options: ViewOptions | None = None, **more: Any) -> str:
    return Shown(options or ViewOptions(), palette, **more).answer(*pieces)


def test_text_is_shown_as_it_is_and_ends_its_line() -> None:
    assert shown("a *b*", "\nc") == "a *b*\nc\n>"
    assert shown("a\n") == "a\n>"
    assert shown() == "\n>"


def test_reasoning_is_dimmed_and_stands_apart() -> None:
    assert shown("<think>hm", " so</think>\n\n", "yes") == "<hm>< so>\n\nyes\n>"
    assert shown("hm</think>yes", reasoning_open=True) == "<hm>\n\nyes\n>"
    assert shown("<think>hm</think>yes", palette=Palette()).removeprefix("A: ") == "(thinking) hm\n\n(answer) yes\n"


def test_folded_reasoning_is_one_line_that_counts() -> None:
    tokens = iter(range(0, 100, 5))
    folded = shown(
        "<think>a", "b", "c", "</think>yes", options=ViewOptions(reasoning="folded"), tokens=lambda: next(tokens)
    )
    line = "\r{A: >"
    assert folded == (
        f"{line}<thinking ... 5 tokens, 0.0 s>|{line}<thinking ... 10 tokens, 1.0 s>|"
        f"{line}<thinking ... 15 tokens, 2.0 s>|{line}<thought: 20 tokens, 3.0 s>|\nyes\n>"
    )
    plain = shown("<think>a", "b</think>yes", palette=Palette(), options=ViewOptions(reasoning="folded"))
    assert plain == "A: thinking ... 1.0 s\nyes\n"


def test_a_counting_line_fits_the_screen() -> None:
    view = Shown(ViewOptions(reasoning="folded"), columns=20)
    assert "<thinking ... 0.…>" in view.answer("<think>a", "b</think>yes")


def test_reasoning_that_is_off_leaves_no_trace_but_can_be_asked_for() -> None:
    view = Shown(ViewOptions(reasoning="off"))
    assert view.answer("<think>hm", " so</think>", "yes") == (
        "\r{A: ><thinking ... 0.0 s>|\r{A: ><thinking ... 1.0 s>|\r{A: >|yes\n>"
    )
    assert view.view.reasoning == "hm so"


def test_a_tool_call_is_named_and_its_arguments_are_readable() -> None:
    assert shown(f"well\n{CALL}") == 'well\n\ncalls {sum> {"of": [1, 2]}\n>'
    long = '{"name": "f", "arguments": {"text": "' + "x" * 60 + '", "ü": 1}}'
    assert '\n  "ü": 1\n}' in shown(f"<tool_call>{long}</tool_call>")
    two = shown(f"{CALL}\n{CALL}", palette=Palette())
    assert two == 'A: calls sum {"of": [1, 2]}\n\ncalls sum {"of": [1, 2]}\n'


def test_a_tool_call_that_is_still_coming_counts() -> None:
    start, rest = CALL[:20], CALL[20:]
    assert shown("well", start, rest) == ("well\n\n\r<calling a tool ... 0.0 s>|\r|calls {sum> " + '{"of": [1, 2]}\n>')


def test_markdown_is_drawn_on_request_in_text_alone() -> None:
    options = ViewOptions(markdown=True)
    assert shown("<think>a *b*</think>**c", "** d", options=options) == "<a *b*>\n\n{c> d\n>"
    assert shown("| a |\n|---|\n| b |", options=options) == "{a>\n<───>\nb\n>"


@pytest.mark.parametrize("palette", [Palette(), STYLED, Palette(True, 256)])
def test_nothing_of_an_answer_is_obeyed(palette: Palette) -> None:
    evil = "\x1b[2J\r\x07\x9b1m"
    call = '<tool_call>{"name": "\\u001b[2J", "arguments": {"\\u001b": 1}}</tool_call>'
    view = Shown(ViewOptions(markdown=True), palette)
    view.view.write(f"<think>{evil}</think>`{evil}` {call}")
    view.view.end()
    for text in ("[2J", "\r", "\x07", "\x9b"):
        assert f"\x1b{text}" not in view.sent
        assert text == "[2J" or text not in view.sent.replace("\r\x1b", "").replace("\rA", "")
