"""Typing into a chat, in a real terminal: many lines, pastes, completion, history, plain terminals, resizing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from samplerpool.chat.terminal import BURST_S
from samplerpool.samplers.sync_sampler import SyncSampler
from tests.process.chat_screen import chat_screen


@pytest.fixture
def pool() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", workers=1) as sampler:
        yield sampler


def test_lines_are_joined_by_a_backslash_alt_enter_and_a_paste_of_any_length(pool: SyncSampler) -> None:
    with chat_screen("--max-new-tokens", "9000") as screen:
        screen.at_prompt()
        screen.send("one\\")
        screen.wait_for("one\\")
        screen.press("enter")
        screen.wait_until_gone("one\\")
        screen.send("two")
        screen.wait_for("two")
        screen.press("alt-enter")
        screen.send("three")
        screen.wait_for("three")
        screen.press("enter")
        screen.wait_for("Assistant: one\ntwo\nthree")
        screen.at_prompt()
        screen.paste("\n".join(f"line {number}" for number in range(200)))
        screen.wait_for("line 199")
        screen.press("enter")
        screen.wait_until(lambda: screen.everything.count("\nline 199") == 1, "the answer's last line")
        screen.at_prompt()
        assert screen.everything.count("Assistant: ") == 2


def test_a_paste_that_the_terminal_does_not_mark_is_one_message(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.at_prompt()
        screen.send("first\rsecond\rthird\r")
        screen.wait_for("User: first\n      second\n      third")
        time.sleep(10 * BURST_S)  # as somebody who types; what comes sooner is of the paste
        screen.press("enter")
        screen.wait_for("Assistant: first\nsecond\nthird")
        screen.at_prompt()


def test_tab_completes_and_history_is_searched_in_the_next_session(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.at_prompt()
        screen.send("/set tempe")
        screen.wait_for("/set tempe")
        screen.press("tab")
        screen.wait_for("/set temperature")
        screen.press("ctrl-c")
        screen.ask("find me again")
        screen.at_prompt()
        screen.press("ctrl-d")
        assert screen.exit_code() == 0
    with chat_screen() as screen:
        screen.at_prompt()
        screen.press("ctrl-r")
        screen.wait_for("I-search")
        screen.send("me ag")
        screen.wait_for("User: find me again")
        screen.press("enter")
        screen.wait_until_gone("I-search")
        screen.press("enter")
        screen.wait_for("Assistant: find me again")


def test_a_resize_in_the_middle_of_an_answer_and_at_the_prompt_loses_nothing(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.ask("[[say:abcdefghijklmnopqrstuvwxyz]][[pace:0.02]]")
        screen.wait_for("Assistant: abc")
        screen.resize(60)
        screen.wait_for("Assistant: abcdefghijklmnopqrstuvwxyz")
        screen.at_prompt()
        screen.resize(40)
        screen.send("still here")
        screen.wait_for("User: still here")
        screen.press("enter")
        screen.wait_for("Assistant: still here")


def test_a_dumb_terminal_gets_lines_and_nothing_that_it_would_have_to_obey(pool: SyncSampler) -> None:
    with chat_screen(TERM="dumb") as screen:
        screen.at_prompt()
        screen.send("[[say:<think>hm</think>yes]]\r")
        screen.wait_for("Assistant: (thinking) hm", "(answer) yes")
        screen.at_prompt()
        screen.press("ctrl-d")
        assert screen.exit_code() == 0
        assert "\x1b" not in screen.raw


def test_a_terminal_that_lacks_characters_is_told_what_to_do(pool: SyncSampler) -> None:
    with chat_screen(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as screen:
        screen.wait_for("encoding is ascii", "export LC_ALL=C.UTF-8")
        screen.ask("[[say:a\\u2026 \\u00fc]]")
        screen.at_prompt()
        screen.press("ctrl-d")
        assert screen.exit_code() == 0


def test_no_color_means_none(pool: SyncSampler) -> None:
    with chat_screen(NO_COLOR="1") as screen:
        screen.ask("[[say:<think>hm</think>yes]]")
        screen.at_prompt()
        assert screen.lines[1:4] == ["Assistant: hm", "", "yes"]
        assert screen.style_of("User").fg == screen.style_of("yes").fg == "default"
