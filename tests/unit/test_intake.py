"""The intake thread: what it cannot pass on costs one request, and its end leaves nobody waiting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.loop import EngineLoop, Prepared, RequestEvent, RequestOutput
from samplerpool.engine.scripted import ByteCodec, ScriptedEngine, ScriptedRenderer
from samplerpool.errors import Aborted, EngineError, PromptTooLong, UnsupportedParameter
from samplerpool.samplers.intake import SLACK, Intake, Job
from samplerpool.types import PromptCount
from samplerpool.wire.messages import ChatPrompt, TokenPrompt

TIMEOUT_S = 10.0


class StallingCodec(ByteCodec):
    """Decodes only when it may."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        self.reached.set()
        if 33 in token_ids:
            raise ValueError("this token cannot be decoded")
        assert self.go_on.wait(TIMEOUT_S)
        return super().decode(token_ids, **options)


class StallingRenderer(ScriptedRenderer):
    def __init__(self) -> None:
        super().__init__()
        self.codec: StallingCodec = StallingCodec()


class Events:
    """Gathers the events of one request."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def __call__(self, events: Sequence[RequestEvent]) -> None:
        for event in events:
            self._events.put(event)

    def end(self) -> RequestOutput:
        while True:
            event = self._events.get(timeout=TIMEOUT_S)
            if isinstance(event, RequestOutput) and event.finish_reason is not None:
                return event


@pytest.fixture
def renderer() -> StallingRenderer:
    return StallingRenderer()


@pytest.fixture
def intake(renderer: StallingRenderer) -> Iterator[Intake]:
    loop = EngineLoop(ScriptedEngine(EngineConfig()), renderer)
    intake = Intake(loop, renderer, tuple)
    yield intake
    renderer.codec.go_on.set()
    intake.close()
    loop.close()


def job(number: int, events: Events, generated_ids: Sequence[int] = ()) -> Job:
    return Job((0, number), TokenPrompt([65], generated_ids), {"max_new_tokens": 5}, 0, events)


def test_tokens_that_cannot_be_decoded_cost_their_request_alone(intake: Intake, renderer: StallingRenderer) -> None:
    renderer.codec.go_on.set()
    bad, good = Events(), Events()
    intake.submit([job(1, bad, [33]), job(2, good)])
    assert isinstance(bad.end().error, EngineError)
    assert good.end().error is None


def test_what_is_only_counted_goes_through_all_checks_and_never_reaches_the_engine(renderer: StallingRenderer) -> None:
    loop = EngineLoop(ScriptedEngine(EngineConfig(max_model_len=40)), renderer)
    intake = Intake(loop, renderer, lambda: (SamplingParams(max_new_tokens=9),))
    events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def count(number: int, text: str, **params: Any) -> None:
        prompt = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": text}]}])
        intake.submit([Job((0, number), prompt, params, 1, lambda new: [events.put(e) for e in new], count_only=True)])

    try:
        count(1, "hello")
        count(2, "hello", max_new_tokens=50)
        count(3, "x" * 50)
        count(4, "hello", repetition_penalty=1.5)
        first, second, third, fourth = (events.get(timeout=TIMEOUT_S) for _ in range(4))
    finally:
        renderer.codec.go_on.set()
        intake.close()
        loop.close()
    assert first == Prepared((0, 1), PromptCount(len("<user>hello\n"), 9, 40, []))
    assert second == Prepared((0, 2), PromptCount(len("<user>hello\n"), 50, 40, []))
    for event, expected in ((third, PromptTooLong), (fourth, UnsupportedParameter)):
        assert isinstance(event, RequestOutput)
        assert isinstance(event.error, expected)
    assert (loop.steps, intake.queued()) == (0, 0)


def test_nobody_waits_while_a_continuation_is_rebuilt(intake: Intake, renderer: StallingRenderer) -> None:
    first, second = Events(), Events()
    intake.submit([job(1, first, [66])])
    assert renderer.codec.reached.wait(TIMEOUT_S)
    other = threading.Thread(target=lambda: (intake.submit([job(2, second)]), intake.abort((0, 1))))
    other.start()
    other.join(TIMEOUT_S / 10)
    waited = other.is_alive()
    renderer.codec.go_on.set()
    other.join()
    assert not waited
    assert second.end().error is None


def test_jobs_that_were_dropped_take_no_memory_while_another_one_is_prepared(
    intake: Intake, renderer: StallingRenderer
) -> None:
    intake.submit([job(1, Events(), [66])])
    assert renderer.codec.reached.wait(TIMEOUT_S)
    kept = Events()
    intake.submit([job(2, kept)])
    for number in range(3, 1000):
        intake.submit([job(number, Events())])
        intake.abort((0, number))
        assert len(intake._heap) <= SLACK + 4
    assert intake.queued() == 2
    renderer.codec.go_on.set()
    assert kept.end().error is None


def test_what_is_queued_at_the_end_or_comes_later_is_refused(intake: Intake, renderer: StallingRenderer) -> None:
    queued, late = Events(), Events()
    intake.submit([job(1, Events(), [66])])
    assert renderer.codec.reached.wait(TIMEOUT_S)
    intake.submit([job(2, queued)])
    closing = threading.Thread(target=intake.close)
    closing.start()
    while not intake._closing:
        closing.join(0.001)
    renderer.codec.go_on.set()
    closing.join()
    intake.submit([job(3, late)])
    for events in (queued, late):
        assert isinstance(events.end().error, Aborted)
