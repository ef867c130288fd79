"""Bad words become token ids where the tokenizer is: on a request's way into the engine."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import sampling_params
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.loop import EngineLoop, RequestEvent, RequestOutput
from samplerpool.engine.scripted import ScriptedEngine, ScriptedRenderer
from samplerpool.errors import InvalidParameter
from samplerpool.samplers.intake import Intake, Job
from samplerpool.wire.messages import TokenPrompt

TIMEOUT_S = 10.0


class _Recording(ScriptedEngine):
    """Takes bad words, and remembers what it was asked to check."""

    supported = ScriptedEngine.supported | {"bad_words"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.checked: list[EngineRequest] = []

    def check(self, request: EngineRequest) -> None:
        self.checked.append(request)
        super().check(request)


def last_output(engine: ScriptedEngine, params: dict[str, Any], defaults: dict[str, Any]) -> RequestOutput:
    """The end of one request that goes through an intake."""
    events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def listener(new: Sequence[RequestEvent]) -> None:
        for event in new:
            events.put(event)

    loop = EngineLoop(engine, ScriptedRenderer())
    intake = Intake(loop, ScriptedRenderer(), lambda: (sampling_params(defaults),))
    try:
        intake.submit([Job((0, 1), TokenPrompt(list(b"<user>[[say:ok]]")), params, 0, listener)])
        while True:
            event = events.get(timeout=TIMEOUT_S)
            if isinstance(event, RequestOutput) and event.finish_reason is not None:
                return event
    finally:
        intake.close()
        loop.close()


@pytest.mark.parametrize("from_launch", [False, True])
def test_texts_are_banned_as_they_stand_and_behind_a_space(from_launch: bool) -> None:
    engine = _Recording(EngineConfig())
    words = {"bad_words": ["no", [1, 2], "é"]}
    output = last_output(engine, *(({}, words) if from_launch else (words, {})))
    assert output.finish_reason == "stop"
    (request,) = engine.checked
    spelled = [b"no", b" no", b"\x01\x02", "é".encode(), " é".encode()]
    assert request.params.bad_words == tuple(tuple(word) for word in spelled)


def test_a_contradiction_is_refused_before_the_engine_sees_it() -> None:
    engine = _Recording(EngineConfig())
    output = last_output(engine, {"bad_words": [[]]}, {})
    assert isinstance(output.error, InvalidParameter)
    assert not engine.checked
