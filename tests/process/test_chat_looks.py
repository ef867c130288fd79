"""What a chat looks like on the screen of a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from samplerpool.samplers.sync_sampler import SyncSampler
from tests.process.chat_screen import chat_screen


@pytest.fixture
def pool() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", workers=1) as sampler:
        yield sampler


def test_a_session_reads_as_it_was_typed(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.ask("[[say:zwölf 😀 漢字]]")
        screen.at_prompt()
        assert screen.lines[:2] == ["User: [[say:zwölf 😀 漢字]]", "Assistant: zwölf 😀 漢字"]
        screen.press("ctrl-d")
        assert screen.exit_code() == 0


def test_the_line_below_the_prompt_says_who_answers_and_how_full_the_context_is(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.wait_for("scripted · worker 0 · idle · context 32768")
        screen.ask("hello")
        screen.wait_for("tokens/s · context 29/32768")


def test_tab_lists_the_commands_with_what_they_do(pool: SyncSampler) -> None:
    with chat_screen() as screen:
        screen.at_prompt()
        screen.send("/")
        screen.press("tab")
        screen.wait_for(" help ", "Show all commands, or how one is used.")
        screen.press("ctrl-c")
        screen.at_prompt()


def test_one_of_several_pools_is_chosen_from_a_list() -> None:
    with (
        SyncSampler.launch(engine="scripted", workers=1, pool="first"),
        SyncSampler.launch(engine="scripted", workers=2, pool="second"),
    ):
        with chat_screen() as screen:
            screen.wait_for("2 pools are running:", "1  first: scripted, 1 worker", "2  second: scripted, 2 workers")
            screen.send("3\r2\r")
            screen.wait_for("scripted · 2 workers")
            screen.press("ctrl-d")
            assert screen.exit_code() == 0
        with chat_screen() as screen:
            screen.wait_for("or Enter for none:")
            screen.press("enter")
            assert screen.exit_code() == 2
            assert "--pool NAME" in screen.everything
