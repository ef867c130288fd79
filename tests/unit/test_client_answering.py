"""What is said while an answer waits or goes on elsewhere, and what of a text that begins anew is new."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.client.answering import behind
from samplerpool.client.facts import WorkerFacts, worker_facts
from samplerpool.client.interruptions import going_on, setback, waiting
from samplerpool.client.routing import WorkerView
from samplerpool.errors import (
    EngineBroken,
    LeaseExpired,
    QueueFull,
    RequestLost,
    SamplerPoolError,
    WorkerDied,
    WorkerDraining,
)
from samplerpool.samplers.asking import PIECES_AT_ONCE
from samplerpool.samplers.streaming import StreamingSampler
from samplerpool.types import RenderedPrompt
from samplerpool.wire.messages import ChatPrompt, TokenPrompt


def view(index: int, *, coming: bool, reason: str = "") -> WorkerView:
    return WorkerView(index, False, 0, 0, reason, coming)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WorkerDied("x"), "worker 3 died"),
        (WorkerDied("x", reason="was killed by SIGKILL"), "worker 3 died (it was killed by SIGKILL)"),
        (WorkerDied("x", requested=True), "worker 3 was stopped"),
        (EngineBroken("x"), "the engine of worker 3 broke"),
        (WorkerDraining("x"), "worker 3 is being stopped"),
        (QueueFull("x"), "worker 3 has no room"),
        (LeaseExpired("x"), "worker 3 has lost the request"),
        (RequestLost("x"), "worker 3 has lost the request"),
    ],
)
def test_a_setback_in_a_few_words(error: SamplerPoolError, words: str) -> None:
    assert setback(3, error) == words


def test_what_is_waited_for() -> None:
    gone, coming = view(0, coming=True), view(1, coming=True)
    assert waiting("worker 0 died", 0, [gone]) == "worker 0 died; waiting for it to come back"
    assert waiting("worker 0 died", 0, [gone, coming]) == "worker 0 died; waiting for workers 0, 1"
    assert waiting("worker 0 died", 0, [view(0, coming=False), coming]) == "worker 0 died; waiting for worker 1"
    assert waiting("", -1, [view(0, coming=True, reason="Worker 0 is loading.")]) == (
        "Worker 0 is loading; waiting for worker 0"
    )
    assert waiting("", -1, [gone]) == "no worker is there; waiting for worker 0"
    assert waiting("worker 0 is being stopped", 0, [WorkerView(0, True, 0, 0)]) == (
        "worker 0 is being stopped; waiting for it to come back"
    )


def test_who_goes_on() -> None:
    assert going_on("worker 0 died", 0, 1) == "worker 0 died; worker 1 goes on"
    assert going_on("worker 0 died", 0, 0) == "worker 0 died; it goes on"


def parts(text: str, cuts: list[int]) -> Generator[str, None, None]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    yield from (text[a:b] for a, b in itertools.pairwise(places))


@given(st.text("ab\ufffd", max_size=8), st.text("abé", max_size=12), st.lists(st.integers(0, 12), max_size=5))
@settings(deadline=None)
def test_behind_what_was_shown_stands_what_is_new(shown: str, whole: str, cuts: list[int]) -> None:
    told = list(behind(shown, parts(whole, cuts)))
    assert all(told)
    common = next(
        (i for i, (a, b) in enumerate(zip(shown, whole, strict=False)) if a != b), min(len(shown), len(whole))
    )
    assert "".join(told) == whole[common:]


def test_the_stream_below_ends_with_it() -> None:
    ended = []

    def stream() -> Generator[str, None, None]:
        try:
            yield "abc"
            yield "def"
        finally:
            ended.append(True)

    new = behind("a", stream())
    assert next(new) == "bc"
    new.close()
    assert ended


def test_facts_are_what_was_told_and_gaps_are_none() -> None:
    told = {
        "model": "m",
        "engine": "dense",
        "max_model_len": 512,
        "running": 2,
        "queued": 1,
        "tokens_per_s": 7.5,
        "adapters": ["a"],
        "answer_tags": {"think": ["<t>", "</t>"]},
        "hidden_tags": ["tool_call"],
        "steps": 9,
        "incarnation": "x",
        "pid": 5,
    }
    up = WorkerView(1, True, 3, 0)
    tags = {"think": ("<t>", "</t>")}
    assert worker_facts(up, told, answered=True) == WorkerFacts(
        1, True, False, "", True, "m", "dense", 512, 2, 1, 7.5, ("a",), tags, {}, ("tool_call",), 9, "x"
    )
    assert worker_facts(view(0, coming=True, reason="Gone."), {}, answered=False) == WorkerFacts(
        0, False, True, "Gone."
    )


def test_what_tokens_stand_for_is_asked_in_requests_that_any_worker_takes() -> None:
    class Told(StreamingSampler):
        def __init__(self) -> None:
            self.asked: list[int] = []

        def _rendered(self, prompt: ChatPrompt | TokenPrompt, worker: int | None) -> RenderedPrompt:
            assert isinstance(prompt, TokenPrompt)
            self.asked.append(len(prompt.prompt_ids))
            return RenderedPrompt(prompt.prompt_ids, [str(token_id) for token_id in prompt.prompt_ids])

    sampler = Told()
    ids = [*range(PIECES_AT_ONCE, -1, -1), 3, 3]
    assert sampler.pieces(ids) == [str(token_id) for token_id in ids]
    assert sampler.asked == [PIECES_AT_ONCE, 1]
    assert sampler.pieces([]) == []
