"""The line below the prompt."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from samplerpool.chat.statusline import StatusFacts, StatusPoller, status_text
from samplerpool.chat.widths import clipped, width

FACTS = StatusFacts("/models/SmolLM2-135M-Instruct", "worker 0", 1, 3, 31.54, 204, 8192)
DEADLINE_S = 30.0


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (100, "SmolLM2-135M-Instruct · worker 0 · 1 running, 3 waiting · 31.5 tokens/s · context 204/8192"),
        (79, "SmolLM2-1… · worker 0 · 1 running, 3 waiting · 31.5 tokens/s · context 204/8192"),
        (78, "SmolLM2-135M-Instruct · worker 0 · 1 running, 3 waiting · context 204/8192"),
        (60, "SmolLM2-135M-Inst… · 1 running, 3 waiting · context 204/8192"),
        (40, "SmolLM2-135M-Instruct · context 204/8192"),
        (12, "SmolLM2-135…"),
        (1, "…"),
    ],
)
def test_what_matters_least_is_left_out_first(columns: int, line: str) -> None:
    assert status_text(FACTS, columns) == line
    assert width(line) <= columns


def test_what_is_not_known_is_not_said() -> None:
    assert status_text(StatusFacts(), 80) == ""
    assert status_text(StatusFacts("m"), 80) == "m"
    assert status_text(StatusFacts("m", context_size=10), 80) == "m · context 10"
    assert status_text(StatusFacts("m", context_used=7), 80) == "m · context 7"
    assert status_text(StatusFacts("m", running=2, queued=0), 80) == "m · 2 running"
    assert status_text(StatusFacts("m", running=0, queued=0), 80) == "m · idle"


def test_the_poller_tells_of_news_and_survives_what_it_looks_at() -> None:
    news = threading.Event()
    looks: list[int] = []

    def look() -> StatusFacts:
        looks.append(1)
        if len(looks) > 1:
            raise OSError("gone")
        return FACTS

    poller = StatusPoller(look)
    poller.start(news.set)
    assert news.wait(DEADLINE_S)
    assert poller.facts == FACTS
    poller.stop()
    news.clear()
    poller.start(news.set)
    assert news.wait(DEADLINE_S)
    assert poller.facts == replace(StatusFacts(), model=FACTS.model)
    poller.stop()


def test_a_look_that_ends_after_the_prompt_says_nothing() -> None:
    looking, go_on, told = threading.Event(), threading.Event(), threading.Event()

    def look() -> StatusFacts:
        looking.set()
        go_on.wait(DEADLINE_S)
        return FACTS

    poller = StatusPoller(look)
    poller.start(told.set)
    assert looking.wait(DEADLINE_S)
    poller.stop()
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "samplerpool-watch-status":
            thread.join(DEADLINE_S)
    assert not told.is_set()
    assert poller.facts == StatusFacts()


@pytest.mark.parametrize(
    ("text", "columns"),
    [("abc", 3), ("漢字", 4), ("😀", 2), ("e\u0301", 1), ("👩\u200d💻", 2), ("ü", 1), ("", 0)],
)
def test_widths(text: str, columns: int) -> None:
    assert width(text) == columns
    assert clipped(text, columns) == text


def test_a_clipped_text_never_takes_more_columns() -> None:
    assert clipped("漢字漢字", 5) == "漢字…"
    assert clipped("漢字漢字", 4) == "漢…"
    assert clipped("ab", 1) == "…"
    assert clipped("ab", 0) == ""
