"""The intake thread: what it cannot pass on costs one request, and its end leaves nobody waiting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.loop import Admitted, EngineLoop, Prepared, RequestEvent, RequestOutput
from samplerpool.engine.scripted import ByteCodec, ScriptedEngine, ScriptedRenderer
from samplerpool.errors import Aborted, EngineError, PromptTooLong, RenderError, UnsupportedParameter
from samplerpool.samplers.intake import SLACK, Intake, Job
from samplerpool.types import PromptCount, RenderedPrompt
from samplerpool.wire.messages import ChatPrompt, Purpose, TokenPrompt

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
        intake.submit([Job((0, number), prompt, params, 1, lambda new: [events.put(e) for e in new], purpose="count")])

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
    assert first == Prepared((0, 1), PromptCount(len("<user>hello\n<assistant>"), 9, 40, []))
    assert second == Prepared((0, 2), PromptCount(len("<user>hello\n<assistant>"), 50, 40, []))
    for event, expected in ((third, PromptTooLong), (fourth, UnsupportedParameter)):
        assert isinstance(event, RequestOutput)
        assert isinstance(event.error, expected)
    assert (loop.steps, intake.queued()) == (0, 0)


@pytest.fixture
def small() -> Iterator[tuple[Intake, EngineLoop]]:
    """Of an engine that holds 40 tokens."""
    renderer = ScriptedRenderer()
    loop = EngineLoop(ScriptedEngine(EngineConfig(max_model_len=40)), renderer)
    intake = Intake(loop, renderer, lambda: (SamplingParams(max_new_tokens=20),))
    yield intake, loop
    intake.close()
    loop.close()


def said(text: str, prefill: str = "", **options: Any) -> ChatPrompt:
    return ChatPrompt([{"role": "user", "content": [{"type": "text", "value": text}]}], None, options, prefill)


def events_of(intake: Intake, *jobs: tuple[Any, Purpose]) -> list[RequestEvent]:
    """All events of some jobs, in order."""
    events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def listen(new: Sequence[RequestEvent]) -> None:
        for event in new:
            events.put(event)

    intake.submit(
        [Job((0, n), prompt, {}, 0, listen, parse=True, purpose=purpose) for n, (prompt, purpose) in enumerate(jobs, 1)]
    )
    taken, left = [], len(jobs)
    while left:
        taken.append(event := events.get(timeout=TIMEOUT_S))
        left -= isinstance(event, Prepared) or (isinstance(event, RequestOutput) and event.finish_reason is not None)
    return taken


def test_a_prompt_is_shown_token_by_token_and_never_reaches_the_engine(small: tuple[Intake, EngineLoop]) -> None:
    intake, loop = small
    shown = events_of(intake, (said("é"), "render"), (TokenPrompt([65], [66, 256]), "render"))
    assert isinstance(shown[0], Prepared)
    assert isinstance(shown[0].told, RenderedPrompt)
    assert bytes(shown[0].told.token_ids) == "<user>é\n<assistant>".encode()
    assert shown[0].told.pieces[5:9] == [">", "<0xC3>", "<0xA9>", "\n"]
    assert shown[1] == Prepared((0, 2), RenderedPrompt((65, 66, 256), ["A", "B", "<eos>"]))
    full, too_long, unknown = events_of(
        intake, (TokenPrompt([65] * 40), "render"), (TokenPrompt([65] * 41), "render"), (TokenPrompt([300]), "render")
    )
    assert isinstance(full, Prepared)
    assert isinstance(too_long, RequestOutput)
    assert isinstance(too_long.error, PromptTooLong)
    assert isinstance(unknown, RequestOutput)
    assert isinstance(unknown.error, RenderError)
    assert loop.steps == 0


def test_an_answer_goes_on_behind_the_beginning_that_its_user_gave(small: tuple[Intake, EngineLoop]) -> None:
    intake, _ = small
    admitted, *outputs = events_of(intake, (said("[[say: b]]", "a"), "answer"))
    assert isinstance(admitted, Admitted)
    assert bytes(admitted.prompt_ids) == b"<user>[[say: b]]\n<assistant>a"
    texts = [output.text for output in outputs if isinstance(output, RequestOutput)]
    assert "".join(texts) == " b"
    last = outputs[-1]
    assert isinstance(last, RequestOutput)
    assert last.message == {"role": "assistant", "content": [{"type": "text", "value": "a b"}]}


def test_a_continuation_has_the_same_beginning_or_is_refused(small: tuple[Intake, EngineLoop]) -> None:
    intake, _ = small
    prompt_ids = list(b"<user>[[say:xyz]]\n<assistant>a ")
    *_, last = events_of(intake, (TokenPrompt(prompt_ids, list(b"x"), 1, None, "a "), "answer"))
    assert isinstance(last, RequestOutput)
    assert last.message == {"role": "assistant", "content": [{"type": "text", "value": "a xyz"}]}
    (refused,) = events_of(intake, (TokenPrompt(prompt_ids, list(b"x"), 1, None, "b "), "answer"))
    assert isinstance(refused, RequestOutput)
    assert isinstance(refused.error, RenderError)


@pytest.mark.parametrize(
    ("options", "prefill", "opened"),
    [
        ({}, "", False),
        ({"enable_thinking": True}, "", True),
        ({}, "<think>", True),
        ({"enable_thinking": True}, "x</think>", False),
    ],
)
def test_it_is_told_whether_an_answer_begins_inside_its_reasoning(
    small: tuple[Intake, EngineLoop], options: dict[str, Any], prefill: str, opened: bool
) -> None:
    admitted, *_ = events_of(small[0], (said("x", prefill, **options), "answer"))
    assert isinstance(admitted, Admitted)
    assert admitted.reasoning_open == opened


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
