"""The engines that batch compute what transformers computes, for every architecture, alone and mixed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.batched import BatchedEngine
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.padded import PaddedEngine
from tests.engine_contract import drive, params
from tests.model_zoo import ZOO, Reference, assert_same_answer, assert_varied, build, prompt_of
from tests.model_zoo import reference_greedy as greedy

LENGTHS = (3, 9, 17, 30)
NEW_TOKENS = 12
BATCHED = [name for name, entry in ZOO.items() if entry.method != "sequential"]
WAYS = [
    pytest.param(name, kernel, id=f"{name}-{'kernel' if kernel else 'torch'}")
    for name in BATCHED
    for kernel in ([False, True] if ZOO[name].method == "packed" else [False])
]


@functools.cache
def expected(name: str) -> list[Reference]:
    """What ``generate`` says, for prompts of all lengths; some are shorter and some longer than the windows."""
    model = build(name)
    return [greedy(model, prompt_of(length), NEW_TOKENS) for length in LENGTHS]


class Watch(BatchedEngine):
    """Keeps the logits that each request's tokens were taken from."""

    seen: dict[Any, list[Tensor]]

    def _sample(self, rows: list[Any], logits: Tensor) -> Any:
        for row, values in zip(rows, logits, strict=True):
            self.seen.setdefault(row.request.request_id, []).append(values.clone())
        return super()._sample(rows, logits)


class WatchedDense(Watch, DenseEngine):
    pass


class WatchedPadded(Watch, PaddedEngine):
    pass


def watched(name: str, **options: Any) -> Watch:
    kind = WatchedDense if ZOO[name].method == "packed" else WatchedPadded
    config = EngineConfig(engine="dense", max_batch=8, options={"cache_gib": 0.05, **options})
    engine = kind(build(name), config, eos_token_ids=frozenset(), max_model_len=64)
    engine.seen = {}
    return engine


def answers_of(engine: Watch, numbers: list[int], *, apart: bool = False) -> dict[int, Reference]:
    """Greedy answers to some of the prompts, together, or with the last one coming while the others run."""
    requests = [
        EngineRequest((0, number), tuple(prompt_of(LENGTHS[number])), params(max_new_tokens=NEW_TOKENS))
        for number in numbers
    ]
    engine.seen.clear()
    early, late = (requests[:-1], requests[-1:]) if apart else (requests, [])
    answers = drive(engine, early, until=lambda a: apart and any(len(x.token_ids) > 2 for x in a.values()))
    drive(engine, late, answers)
    return {n: Reference(answers[0, n].token_ids, torch.stack(engine.seen[0, n]).float()) for n in numbers}


@pytest.mark.parametrize("name", BATCHED)
def test_answers_vary(name: str) -> None:
    assert_varied(expected(name))


@pytest.mark.parametrize(("name", "kernel"), WAYS)
def test_mixed_batches(name: str, kernel: bool) -> None:
    engine = watched(name, prefix_cache=False, kernel=kernel)
    everything = answers_of(engine, list(range(len(LENGTHS))))
    for number, answer in answers_of(engine, [2, 0, 3], apart=True).items():
        assert_same_answer(answer, expected(name)[number])
    for number, answer in everything.items():
        assert_same_answer(answer, expected(name)[number])
    engine.close()


@pytest.mark.parametrize("name", BATCHED)
def test_alone_and_mixed_in_small_chunks_and_again_from_the_prefix_cache(name: str) -> None:
    engine = watched(name, prefill_chunk=7, step_tokens=7)
    answers = [answers_of(engine, [3]), answers_of(engine, [0, 1, 2], apart=True), answers_of(engine, [3])]
    for number, answer in (item for some in answers for item in some.items()):
        assert_same_answer(answer, expected(name)[number])
    assert engine.stats().details["prefix_hits"] == 1
    engine.close()
