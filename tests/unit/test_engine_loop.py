"""The engine's thread: text, stop strings, failures, the end."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import EngineRequest, StepOutput
from samplerpool.engine.loop import Admitted, EngineLoop, RequestEvent, RequestOutput
from samplerpool.engine.scripted import END_OF_SEQUENCE, ScriptedEngine, ScriptedRenderer
from samplerpool.errors import Aborted, EngineBroken, EngineError

TIMEOUT_S = 10.0


class Collector:
    """Gathers outputs until a request has ended."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def __call__(self, events: Sequence[RequestEvent]) -> None:
        for event in events:
            self.events.put(event)

    def until_end(self) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        while not outputs or outputs[-1].finish_reason is None:
            event = self.events.get(timeout=TIMEOUT_S)
            if isinstance(event, Admitted):
                assert not outputs
                continue
            outputs.append(event)
        return outputs


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    loop = EngineLoop(ScriptedEngine(EngineConfig()), ScriptedRenderer())
    yield loop
    loop.close()


def request(text: str, number: int = 1, **params: Any) -> EngineRequest:
    resolved = resolve(sampling_params({"max_new_tokens": 1000, "seed": 1, **params}))
    return EngineRequest((0, number), tuple(f"<user>{text}\n".encode()), resolved)


def run(loop: EngineLoop, request: EngineRequest, **options: Any) -> list[RequestOutput]:
    collector = Collector()
    loop.submit(request, collector, **options)
    return collector.until_end()


def test_tokens_are_numbered_without_gaps_and_text_adds_up(loop: EngineLoop) -> None:
    outputs = run(loop, request("[[say:héllo 👋]]"))
    assert "".join(o.text for o in outputs) == "héllo 👋"
    position = 0
    for output in outputs:
        assert output.index == position
        position += len(output.token_ids)
    assert (outputs[-1].finish_reason, outputs[-1].completion_tokens) == ("stop", position)


def test_a_stop_string_ends_the_request_and_frees_its_place(loop: EngineLoop) -> None:
    outputs = run(loop, request("[[say:one two three]]", stop=["two"]))
    assert "".join(o.text for o in outputs) == "one "
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].completion_tokens == len("one two")
    assert not loop.engine.has_work()


@pytest.mark.parametrize(
    ("said", "params", "delivered", "expected"),
    [
        (b"one two", {"stop": ["two"]}, 0, ("one ", "stop", 7)),
        (b"one two", {"stop": ["two"]}, 4, ("", "stop", 7)),
        (b"one", {"max_new_tokens": 3}, 1, ("ne", "length", 3)),
        ("👋".encode()[:2], {"max_new_tokens": 2}, 0, ("\ufffd", "length", 2)),
        ((*b"one", END_OF_SEQUENCE), {}, 3, ("", "stop", 4)),
        (b"one!", {"stop_token_ids": [33]}, 0, ("one!", "stop", 4)),
    ],
)
def test_a_continuation_that_lacks_only_its_end_gets_it_and_no_token(
    loop: EngineLoop, said: Sequence[int], params: dict[str, Any], delivered: int, expected: tuple[str, str, int]
) -> None:
    """Its worker died between the last token and the word that it was the last."""
    begun = replace(request("[[say:something else]]", **params), generated_ids=tuple(said))
    (end,) = run(loop, begun, delivered_chars=delivered)
    assert (end.text, end.finish_reason, end.completion_tokens) == expected
    assert (list(end.token_ids), loop.engine.steps) == ([], 0)


def test_the_parsed_answer_of_a_continuation_is_that_of_the_whole(loop: EngineLoop) -> None:
    begun = replace(request("[[say:one<eos>two]]", skip_special_tokens=False), generated_ids=tuple(b"one<eos>"))
    end = run(loop, begun, delivered_chars=5, parse=True)[-1]
    assert end.message is not None
    assert end.message["content"][0]["value"] == "one<eos>two<eos>"


def test_what_is_held_back_when_a_step_raises_is_left_to_the_continuation(loop: EngineLoop) -> None:
    outputs = run(loop, request("[[say:a EN]][[raise:4]]", stop=["END"]))
    assert isinstance(outputs[-1].error, EngineBroken)
    assert "".join(output.text for output in outputs) == "a "


class CoarseEngine(ScriptedEngine):
    """Gives many tokens at a time, as an engine does that computes on a thread of its own."""

    def step(self) -> list[StepOutput]:
        first, *others = (output for _ in range(5) for output in super(CoarseEngine, self).step())
        for output in others:
            first.token_ids = [*first.token_ids, *output.token_ids]
            first.logprobs = [*(first.logprobs or ()), *(output.logprobs or ())]
            first.finish_reason = output.finish_reason
        return [first]


@pytest.mark.parametrize(("stop", "reason"), [("two", "stop"), ("ee", "stop"), ("four", "length")])
def test_an_answer_ends_with_its_stop_string_however_many_tokens_came_with_it(
    loop: EngineLoop, stop: str, reason: str
) -> None:
    wanted = request("[[say:one two three]]", stop=[stop], logprobs=1, max_new_tokens=13)
    coarse = EngineLoop(CoarseEngine(EngineConfig()), ScriptedRenderer())
    try:
        fine, found = run(loop, wanted), run(coarse, wanted)
    finally:
        coarse.close()
    assert len(found) < len(fine)
    for outputs in (fine, found):
        last, said = outputs[-1], "one two three".partition(stop)
        tokens = [token_id for output in outputs for token_id in output.token_ids]
        assert bytes(tokens) == "".join(said[:2]).encode()
        assert [entry.token_id for output in outputs for entry in output.logprobs or ()] == tokens
        assert "".join(output.text for output in outputs) == said[0]
        assert (last.finish_reason, last.completion_tokens) == (reason, len(tokens))


def test_logprobs_stay_with_their_tokens(loop: EngineLoop) -> None:
    outputs = run(loop, request("[[say:héllo]]", logprobs=1))
    for output in outputs:
        assert output.logprobs is not None
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    assert all(output.logprobs is None for output in run(loop, request("[[say:héllo]]", 2)))


def test_the_parsed_answer_comes_with_the_last_output(loop: EngineLoop) -> None:
    outputs = run(loop, request("[[say:yes]]"), parse=True)
    assert outputs[-1].message == {"role": "assistant", "content": [{"type": "text", "value": "yes"}]}
    assert all(o.message is None for o in outputs[:-1])


def test_a_step_that_raises_fails_all_and_the_loop_goes_on(loop: EngineLoop) -> None:
    bystander = Collector()
    loop.submit(request("[[tokens:1000]][[pace:0.05]]", 2), bystander)
    assert isinstance(run(loop, request("[[raise:1]]"))[-1].error, EngineBroken)
    assert isinstance(bystander.until_end()[-1].error, EngineBroken)
    assert loop.breaks == 1
    for breaks in (2, 3):
        run(loop, request("[[raise]]", breaks))
        assert loop.breaks == breaks
    assert run(loop, request("[[say:fine]]", 4))[-1].finish_reason == "stop"
    assert loop.breaks == 0


def test_an_aborted_request_is_silent_and_closing_fails_the_rest(loop: EngineLoop) -> None:
    aborted, rest = Collector(), Collector()
    loop.submit(request("[[tokens:900]][[pace:0.01]]", 1), aborted)
    loop.submit(request("[[tokens:900]][[pace:0.01]]", 2), rest)
    rest.events.get(timeout=TIMEOUT_S)
    loop.abort((0, 1))
    loop.abort((0, 99))
    loop.close()
    outputs = rest.until_end()
    assert isinstance(outputs[-1].error, Aborted)
    while not aborted.events.empty():
        event = aborted.events.get()
        assert isinstance(event, Admitted) or event.finish_reason is None


class SteppedEngine(ScriptedEngine):
    """Steps when it is told to, and notes who gained something."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.at_gate: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.gate: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.gained: list[list[int]] = []

    def step(self) -> list[StepOutput]:
        self.at_gate.put(None)
        self.gate.get(timeout=TIMEOUT_S)
        outputs = super().step()
        self.gained.append([output.request_id[1] for output in outputs])
        return outputs


def test_the_place_of_an_aborted_request_is_taken_in_the_step_after_the_present_one() -> None:
    engine = SteppedEngine(EngineConfig(max_batch=1))
    loop = EngineLoop(engine, ScriptedRenderer())
    listener = Collector()
    try:
        for number in (1, 2):
            loop.submit(request("[[tokens:900]]", number), listener)
        engine.at_gate.get(timeout=TIMEOUT_S)
        engine.gate.put(None)
        engine.at_gate.get(timeout=TIMEOUT_S)
        loop.abort((0, 1))  # while a step is under way
        for _ in range(2):
            engine.gate.put(None)
            engine.at_gate.get(timeout=TIMEOUT_S)
        assert engine.gained == [[1], [1], [2]]
    finally:
        for number in (1, 2):
            loop.abort((0, number))
        engine.gate.put(None)
        loop.close()


def test_what_goes_wrong_with_one_text_costs_that_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = ScriptedRenderer()

    def parse(text: str, prompt_ids: Any) -> Any:
        raise ZeroDivisionError(text)

    monkeypatch.setattr(renderer, "parse_message", parse)
    loop = EngineLoop(ScriptedEngine(EngineConfig()), renderer)
    try:
        assert isinstance(run(loop, request("[[say:a]]"), parse=True)[-1].error, EngineError)
        assert run(loop, request("[[say:b]]", 2))[-1].finish_reason == "stop"
    finally:
        loop.close()
