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
