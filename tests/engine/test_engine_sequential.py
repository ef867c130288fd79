"""The sequential engine: the contract with a tiny Mamba, and the answers of ``generate`` for models of every kind."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import sequential
from samplerpool.engine.base import BATCH, Engine, EngineRequest
from samplerpool.engine.sequential import PLACES, SequentialEngine
from samplerpool.errors import InvalidParameter
from tests.engine_contract import EngineContract, answer_of, drive, params
from tests.model_zoo import (
    VOCABULARY,
    ZOO,
    Reference,
    assert_same_answer,
    assert_varied,
    build,
    prompt_of,
    reference_greedy,
)

LENGTHS = (3, 9, 17, 30)
NEW_TOKENS = 10


@functools.cache
def model() -> Any:
    return build("mamba")


def named_prompt(name: str) -> tuple[int, ...]:
    return tuple(prompt_of(12, zlib.crc32(name.encode()) % 10_000))


@functools.cache
def end_token() -> int:
    """A token that the ending prompt's answer has for the first time after some others."""
    tokens = reference_greedy(model(), list(named_prompt("ending")), 50).token_ids
    return next(token for i, token in enumerate(tokens) if i >= 5 and token not in tokens[:i])


def engine_for(a_model: Any, *, max_batch: int = 4, max_model_len: int = 256, **options: Any) -> SequentialEngine:
    config = EngineConfig(engine="sequential", max_batch=max_batch, options=options)
    return SequentialEngine(a_model, config, eos_token_ids=frozenset({end_token()}), max_model_len=max_model_len)


class TestSequentialEngine(EngineContract):
    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return engine_for(model(), max_batch=max_batch, max_model_len=max_model_len)

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return named_prompt(name)

    def ending_prompt(self) -> tuple[int, ...]:
        return named_prompt("ending")

    def test_a_step_is_one_token_of_one_row_in_turn(self, engine: Engine) -> None:
        for i in range(3):
            engine.add(self.request(i))
        steps = [engine.step() for _ in range(6)]
        assert [[(o.request_id[1], len(o.token_ids)) for o in step] for step in steps] == [
            [(i, 1)] for i in (0, 1, 2, 0, 1, 2)
        ]

    def test_batch_rows_stand_still_while_interactive_ones_run(self, engine: Engine) -> None:
        answers = drive(engine, [self.request(i, tokens=30, priority=BATCH) for i in range(2)], until=lambda a: bool(a))
        before = sum(len(answer.token_ids) for answer in answers.values())
        drive(engine, [self.request(7, tokens=8)], answers, until=lambda a: (1, 7) in a and bool(a[1, 7].finish_reason))
        assert sum(len(answers[1, i].token_ids) for i in range(2) if (1, i) in answers) == before

    def test_few_rows_hold_a_cache(self, make: Any) -> None:
        engine = make(max_batch=64)
        assert engine.max_batch == PLACES
        drive(engine, [self.request(i, tokens=30, priority=BATCH) for i in range(PLACES + 3)], until=lambda a: bool(a))
        drive(engine, [self.request(10 + i, tokens=20) for i in range(PLACES)], until=lambda a: (1, 13) in a)
        rows = [*engine._turns, *engine._queues[0], *engine._queues[1]]
        assert sum(row.decoding is not None for row in rows) == PLACES

    def test_a_continuation_with_nothing_left_to_do_ends_at_once(self, engine: Engine) -> None:
        done = answer_of(engine, named_prompt("done"), max_new_tokens=5).token_ids
        again = answer_of(engine, named_prompt("done"), done, max_new_tokens=5)
        assert (again.token_ids, again.finish_reason) == ([], "length")

    def test_it_has_no_options(self) -> None:
        with pytest.raises(InvalidParameter, match="no option 'places'"):
            engine_for(model(), places=3)


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.method == "sequential"])
def test_answers_are_those_of_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo_model = build(name)
    prompts = [prompt_of(length) for length in LENGTHS]
    # A model for each: dynamic rotary embeddings remember earlier sequences.
    expected = [reference_greedy(build(name), prompt, NEW_TOKENS) for prompt in prompts]
    assert_varied(expected)
    seen: dict[tuple[int, ...], list[Tensor]] = {}

    class Recorder(sequential.Decoding):
        def __init__(self, a_model: Any, token_ids: list[int], *more: Any) -> None:
            super().__init__(a_model, token_ids, *more)
            self.key = tuple(token_ids)

        def next_logits(self) -> Tensor:
            logits = super().next_logits()
            seen.setdefault(self.key, []).append(logits[0])
            return logits

    monkeypatch.setattr(sequential, "Decoding", Recorder)
    engine = engine_for(zoo_model)
    wanted = params(max_new_tokens=NEW_TOKENS)
    answers = drive(engine, [EngineRequest((0, i), tuple(prompt), wanted) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        assert_same_answer(Reference(answers[0, i].token_ids, torch.stack(seen[tuple(prompt)])), expected[i])


def test_the_vocabulary_of_the_zoo_is_what_the_tests_think() -> None:
    assert model().config.vocab_size == VOCABULARY


def test_each_layer_of_a_prompts_only_pass_is_a_step_until_the_engine_is_closed() -> None:
    engine = engine_for(model())
    engine.add(EngineRequest((0, 0), named_prompt("one"), params(max_new_tokens=1)))
    engine.step()
    assert engine.steps == model().config.num_hidden_layers
    engine.close()
    model()(torch.tensor([[1, 2, 3]]))
    assert engine.steps == model().config.num_hidden_layers
