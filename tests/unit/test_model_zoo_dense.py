"""The dense engine computes what transformers computes, for every architecture that it batches, alone and mixed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.register_assert_rewrite("tests.engine_contract", "tests.model_zoo")

from samplerpool.config.arguments import EngineConfig  # noqa: E402
from samplerpool.engine.base import EngineRequest  # noqa: E402
from samplerpool.engine.dense import DenseEngine  # noqa: E402
from tests.engine_contract import drive, params  # noqa: E402
from tests.model_zoo import ZOO, Reference, assert_same_answer, assert_varied, build, prompt_of  # noqa: E402
from tests.model_zoo import reference_greedy as greedy  # noqa: E402

LENGTHS = (3, 9, 17, 30)
NEW_TOKENS = 12
PACKED = [name for name, entry in ZOO.items() if entry.method == "packed"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def expected(name: str) -> list[Reference]:
    """What ``generate`` says, for prompts of all lengths; some are shorter and some longer than the windows."""
    model = build(name)
    return [greedy(model, prompt_of(length), NEW_TOKENS) for length in LENGTHS]


class Watched(DenseEngine):
    """Keeps the logits that each request's tokens were taken from."""

    seen: dict[Any, list[Tensor]]

    def _sample(self, rows: list[Any], logits: Tensor) -> Any:
        for row, values in zip(rows, logits, strict=True):
            self.seen.setdefault(row.request.request_id, []).append(values.clone())
        return super()._sample(rows, logits)


def watched(name: str, **options: Any) -> Watched:
    config = EngineConfig(engine="dense", max_batch=8, options={"cache_gib": 0.05, **options})
    engine = Watched(build(name), config, eos_token_ids=frozenset(), max_model_len=64)
    engine.seen = {}
    return engine


def answers_of(engine: Watched, numbers: list[int], *, apart: bool = False) -> dict[int, Reference]:
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


@pytest.mark.parametrize("name", PACKED)
class TestDenseEngine:
    def test_answers_vary(self, name: str) -> None:
        assert_varied(expected(name))

    @pytest.mark.parametrize("kernel", [False, True], ids=["torch", "kernel"])
    def test_mixed_batches(self, name: str, kernel: bool) -> None:
        engine = watched(name, prefix_cache=False, kernel=kernel)
        everything = answers_of(engine, list(range(len(LENGTHS))))
        for number, answer in answers_of(engine, [2, 0, 3], apart=True).items():
            assert_same_answer(answer, expected(name)[number])
        for number, answer in everything.items():
            assert_same_answer(answer, expected(name)[number])
        engine.close()

    def test_alone_in_small_chunks_and_again_from_the_prefix_cache(self, name: str) -> None:
        engine = watched(name, prefill_chunk=7, step_tokens=7)
        for number in (3, 1, 3):
            (answer,) = answers_of(engine, [number]).values()
            assert_same_answer(answer, expected(name)[number])
        engine.close()
