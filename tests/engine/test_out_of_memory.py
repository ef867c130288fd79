"""Steps that run out of memory, injected: no request is lost, no token changes, and only what cannot fit fails."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.base import BATCH, INTERACTIVE, EngineRequest
from samplerpool.engine.batched import BatchedEngine
from samplerpool.engine.budget import FIRST_PATIENCE
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.padded import PaddedEngine
from samplerpool.engine.schedule import Copy, Plan
from samplerpool.engine.shortage import shortage_of_memory
from samplerpool.errors import EngineError
from tests.engine_contract import drive, params
from tests.model_zoo import build as build_model
from tests.model_zoo import prompt_of

NO_MEMORY = "CUDA out of memory. Tried to allocate 1.5 GiB"
TOKENS = 40


@pytest.fixture(params=["dense", "dense-plain", "padded"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(kind: str) -> BatchedEngine:
    config = EngineConfig(max_batch=8, options={"cache_gib": 0.02, "kernel": kind != "dense-plain"})
    engine = PaddedEngine if kind == "padded" else DenseEngine
    model = build_model("bloom" if kind == "padded" else "llama")
    return engine(model, config, eos_token_ids=frozenset(), max_model_len=256)


def requests(lengths: Sequence[int] = (20, 3, 50, 35, 8, 27)) -> list[EngineRequest]:
    """Some greedy, some sampled with all that looks at earlier tokens; interactive and batch."""
    shaped = {"temperature": 0.8, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "logprobs": 1}
    return [
        EngineRequest(
            (1, number),
            tuple(prompt_of(length, number)),
            params(max_new_tokens=TOKENS + 3 * number, seed=number, **(shaped if number % 2 else {})),
            INTERACTIVE if number == 2 else BATCH,
        )
        for number, length in enumerate(lengths)
    ]


@functools.cache
def undisturbed(kind: str) -> dict[Any, Any]:
    return tokens_of(drive(build(kind), requests()))


def tokens_of(answers: dict[Any, Any]) -> dict[Any, Any]:
    return {key: (answer.token_ids, answer.finish_reason) for key, answer in answers.items()}


class Shortage:
    """Makes steps of an engine run out of memory, after they have written rubbish where they would have written."""

    def __init__(self, engine: BatchedEngine, fits: Callable[[Plan, int], bool]) -> None:
        self._engine = engine
        self._fits = fits
        self._forward = engine._forward
        self.steps = 0
        self.failures = 0
        self.least = (999, 999)
        engine._forward = self.forward  # type: ignore[method-assign]

    def forward(self, plan: Plan) -> Any:
        self.steps += 1
        budget = self._engine._scheduler.budget
        self.least = min(self.least[0], budget.rows), min(self.least[1], budget.tokens)
        if self._fits(plan, self.steps):
            return self._forward(plan)
        self.failures += 1
        arena = self._engine._arena
        for row, count in [*((row, 1) for row in plan.decodes), *plan.chunks]:
            assert row.region is not None
            for side in arena.views(0, row.region, row.computed + count):
                side[:, row.computed :] = 1e3
        raise torch.OutOfMemoryError(NO_MEMORY)


def test_the_youngest_wait_and_all_go_on_with_the_same_tokens(kind: str) -> None:
    engine = build(kind)
    shortage = Shortage(engine, lambda plan, _: len(engine._scheduler.running) <= 2)
    assert tokens_of(drive(engine, requests())) == undisturbed(kind)
    details = engine.stats().details
    assert details["out_of_memory"] == shortage.failures >= 2
    assert details["preemptions"] >= 4
    assert shortage.least[0] <= 2


def test_a_shortage_at_any_step_changes_no_token(kind: str) -> None:
    for at in (2, 5, 11, 23, 39):
        engine = build(kind)
        shortage = Shortage(engine, lambda _, step, at=at: step not in (at, at + 1))  # type: ignore[misc]
        assert tokens_of(drive(engine, requests())) == undisturbed(kind)
        assert shortage.failures == 2


def test_prompts_are_cut_smaller_where_large_steps_do_not_fit(kind: str) -> None:
    engine = build(kind)
    shortage = Shortage(engine, lambda plan, _: plan.tokens <= 20)
    assert tokens_of(drive(engine, requests())) == undisturbed(kind)
    assert shortage.failures >= 2
    assert shortage.least[1] <= 20


def test_a_request_that_does_not_fit_by_itself_fails_alone(kind: str) -> None:
    engine = build(kind)
    large = EngineRequest((2, 0), tuple(prompt_of(150)), params(max_new_tokens=TOKENS), BATCH)
    Shortage(engine, lambda plan, _: all(len(row.tokens) < 120 for row in (*plan.decodes, *dict(plan.chunks))))
    first, *rest = requests()
    answers = drive(engine, [first, large, *rest])
    failed = answers.pop((2, 0))
    assert isinstance(failed.error, EngineError)
    assert failed.error.data == {"tokens": 150}
    assert NO_MEMORY in failed.error.message
    assert tokens_of(answers) == undisturbed(kind)
    assert engine._sampling == {}


def test_memory_that_comes_back_is_used_again(kind: str) -> None:
    engine = build(kind)
    Shortage(engine, lambda _, step: step != 1)
    drive(engine, requests(), until=bool)
    details = engine.stats().details
    assert (details["out_of_memory"], details["batch_lowered_to"]) == (1, 3)
    drive(engine)
    long = EngineRequest((3, 0), tuple(prompt_of(9)), params(max_new_tokens=3 * FIRST_PATIENCE))
    drive(engine, [long])
    assert "batch_lowered_to" not in engine.stats().details


def test_a_shortage_in_sampling_draws_no_token_twice(kind: str) -> None:
    engine = build(kind)
    sample, calls = engine._sampler.sample, 0

    def fail_afterwards(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        sampled = sample(*arguments)
        if calls % 7 == 3:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return sampled

    engine._sampler.sample = fail_afterwards  # type: ignore[method-assign]
    assert tokens_of(drive(engine, requests())) == undisturbed(kind)
    assert engine.stats().details["out_of_memory"] == (calls + 4) // 7


def test_a_shortage_while_rows_are_moved_loses_nothing(kind: str) -> None:
    engine = build(kind)
    copy, calls = engine._copy, 0

    def fail_midway(what: Copy) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            for side in engine._arena.views(0, what.target, what.length):
                side.fill_(1e3)
            raise torch.OutOfMemoryError(NO_MEMORY)
        copy(what)

    engine._copy = fail_midway  # type: ignore[method-assign]
    assert tokens_of(drive(engine, requests())) == undisturbed(kind)
    assert calls >= 1
    assert engine.stats().details["out_of_memory"] == (calls + 2) // 3


def test_other_errors_are_no_shortage(kind: str) -> None:
    engine = build(kind)
    engine._forward = lambda plan: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError):
        drive(engine, requests())


def test_what_torch_itself_says_without_memory_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert shortage_of_memory(caught.value)
    assert shortage_of_memory(MemoryError()) == "MemoryError"
    assert shortage_of_memory(torch.OutOfMemoryError(NO_MEMORY + "\nmore")) == NO_MEMORY
    assert shortage_of_memory(RuntimeError("shapes do not match")) is None
    assert shortage_of_memory(ValueError("not enough memory")) is None
