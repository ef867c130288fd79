"""The padded engine on tiny random models: the contract, and that the slab's ways change no tokens."""

from __future__ import annotations

import functools
import random
import zlib
from typing import Any

import pytest
import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.arena import Arena, LayerShape, Region
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, EngineRequest
from samplerpool.engine.batched import layer_shapes
from samplerpool.engine.padded import PaddedEngine, _swap
from samplerpool.engine.slab import Swap
from samplerpool.errors import InvalidParameter, StartFailed
from tests.engine_contract import EngineContract, answer_of, drive, params
from tests.model_zoo import build, prompt_of, reference_greedy


@functools.cache
def model(name: str = "bloom") -> Any:
    return build(name)


@functools.cache
def reference(name: str, prompt_ids: tuple[int, ...], tokens: int) -> list[int]:
    return reference_greedy(model(name), list(prompt_ids), tokens).token_ids


def named_prompt(name: str) -> tuple[int, ...]:
    return tuple(prompt_of(12, zlib.crc32(name.encode()) % 10_000))


def padded(
    name: str = "bloom",
    *,
    max_batch: int = 4,
    max_model_len: int = 256,
    eos: frozenset[int] = frozenset(),
    cache_tokens: int = 4096,
    price_of_pass: int | None = None,
    **options: Any,
) -> PaddedEngine:
    per_token = sum(shape.numbers_per_token for shape in layer_shapes(model(name))) * 4
    options = {"cache_gib": cache_tokens * per_token / 2**30, **options}
    config = EngineConfig(max_batch=max_batch, options=options)
    engine = PaddedEngine(model(name), config, eos_token_ids=eos, max_model_len=max_model_len)
    if price_of_pass is not None:
        engine._price = price_of_pass
    return engine


class TestPaddedEngine(EngineContract):
    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return padded(max_batch=max_batch, max_model_len=max_model_len, eos=frozenset({self.end()}))

    @staticmethod
    @functools.cache
    def end() -> int:
        """A token that the ending prompt's answer has for the first time after some others."""
        tokens = reference("bloom", named_prompt("ending"), 50)
        return next(token for i, token in enumerate(tokens) if i >= 5 and token not in tokens[:i])

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return named_prompt(name)

    def ending_prompt(self) -> tuple[int, ...]:
        return named_prompt("ending")


WAYS: list[dict[str, Any]] = [
    {},
    {"step_tokens": 5, "price_of_pass": 0},
    {"step_tokens": 5, "price_of_pass": 60},
    {"price_of_pass": 1_000_000},
    {"prefix_cache": False},
    {"cache_tokens": 768},
    {"cache_tokens": 512, "step_tokens": 30},
    {"cache_tokens": 512, "prefix_cache": False},
]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
@pytest.mark.parametrize("name", ["bloom", "falcon", "mpt"])
def test_greedy_tokens_are_those_of_generate_whoever_comes_and_goes(name: str, options: dict[str, Any]) -> None:
    """Rows of many lengths come in the middle of others, some are aborted; with little memory, places change."""
    dice = random.Random(3)
    engine = padded(name, max_batch=6, max_model_len=400, **options)
    wanted: dict[tuple[int, int], tuple[int, list[int]]] = {}
    answers: dict[Any, Any] = {}
    for number in range(24):
        prompt_ids = tuple(prompt_of(dice.choice((5, 12, 30, 100)), number % 7))
        tokens = dice.choice((3, 10, 25, 60))
        wanted[1, number] = (tokens, reference(name, prompt_ids, 60))
        priority = dice.choice((BATCH, INTERACTIVE))
        steps = iter(range(dice.randint(0, 6)))
        request = EngineRequest((1, number), prompt_ids, params(max_new_tokens=tokens), priority)
        drive(engine, [request], answers, until=lambda _, steps=steps: next(steps, None) is None)
        if number % 5 == 4:
            engine.abort((1, number - 2))
    drive(engine, answers=answers)
    ended = {key: answer.token_ids for key, answer in answers.items() if answer.finish_reason}
    assert len(ended) >= 20
    assert ended == {key: wanted[key][1][: wanted[key][0]] for key in ended}


def test_a_long_row_does_not_make_short_ones_long(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = padded(max_batch=8, price_of_pass=200)
    prompts = [tuple(prompt_of(150 if number == 1 else 10, number)) for number in range(4)]
    requests = [EngineRequest((1, n), p, params(max_new_tokens=12)) for n, p in enumerate(prompts)]
    answers = drive(engine, requests, until=lambda a: len(a) == 4)
    shapes: list[tuple[int, ...]] = []
    plain = engine._run

    def noting(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        shapes.append(tuple(mask.shape))
        return plain(ids, mask, positions)

    monkeypatch.setattr(engine, "_run", noting)
    drive(engine, answers=answers, until=lambda _: bool(shapes))
    assert shapes == [(2, 151), (2, 11)]
    assert [answers[1, n].token_ids for n in range(4)] == [reference("bloom", p, 2) for p in prompts]


def test_a_preempted_row_goes_on_with_the_same_tokens() -> None:
    wanted = {"max_new_tokens": 60, "temperature": 1.0, "seed": 3}
    alone = answer_of(padded(), named_prompt("preempted"), **wanted).token_ids
    engine = padded(max_batch=1)
    answers = drive(
        engine,
        [EngineRequest((1, 1), named_prompt("preempted"), params(**wanted), BATCH)],
        until=lambda a: bool(a) and len(a[1, 1].token_ids) > 9,
    )
    drive(engine, [EngineRequest((1, 2), named_prompt("i"), params(max_new_tokens=4))], answers)
    assert answers[1, 1].token_ids == alone
    assert engine.stats().details["preemptions"] == 1
    assert engine.stats().details["prefix_hits"] == 1  # its own keys were kept


def test_rows_that_made_room_in_memory_go_on_with_the_same_tokens() -> None:
    engine = padded(max_batch=8, cache_tokens=4 * 128)
    batch = [
        EngineRequest(
            (1, n), tuple(prompt_of(20 + n, n)), params(max_new_tokens=60, temperature=1.0, top_p=0.9, seed=n), BATCH
        )
        for n in range(4)
    ]
    alone = [drive(padded(), [request])[request.request_id] for request in batch]
    answers = drive(engine, batch, until=lambda a: len(a) == 4 and len(a[1, 3].token_ids) > 9)
    assert engine.stats().details["preemptions"] == 0
    watched = EngineRequest((2, 0), tuple(prompt_of(200)), params(max_new_tokens=4))
    drive(engine, [watched], answers, until=lambda a: (2, 0) in a)
    assert engine.stats().details["preemptions"] >= 2
    drive(engine, answers=answers)
    assert [answers[request.request_id] for request in batch] == alone


def test_a_continuation_with_nothing_left_to_do_costs_no_kept_prefix() -> None:
    """A step without a forward pass copies nothing: what has to be moved before the next one is not forgotten."""
    engine = padded(max_batch=4)
    prompts = [tuple(prompt_of(20 + number, number)) for number in range(3)]
    requests = [EngineRequest((1, n), p, params(max_new_tokens=50)) for n, p in enumerate(prompts)]
    drive(engine, requests, until=lambda a: len(a) == 3)
    for number in range(3):
        engine.abort((1, number))
    done = answer_of(engine, prompts[0], reference("bloom", prompts[0], 5), max_new_tokens=5)
    assert (done.token_ids, done.finish_reason) == ([], "length")
    for p in prompts:
        assert answer_of(engine, p, max_new_tokens=10).token_ids == reference("bloom", p, 10)
    assert engine.stats().details["prefix_hits"] == 3


def test_regions_are_swapped_in_all_layers() -> None:
    arena = Arena([LayerShape(2, 3, 4), LayerShape(1, 5, 5)], 256, torch.float32, torch.device("cpu"))
    regions = [Region(64 * place, 64) for place in range(4)]
    for tensor in (*arena.keys, *arena.values):
        tensor.normal_()
    before = [[view.clone() for view in arena.views(layer, r, 64)] for layer in range(2) for r in regions]
    _swap(arena, Swap(regions[3], regions[1], 7))
    after = [arena.views(layer, r, 64) for layer in range(2) for r in regions]
    for layer in range(2):
        for place, other in ((0, 0), (1, 3), (2, 2), (3, 1)):
            for side in range(2):
                found = after[4 * layer + place][side]
                assert torch.equal(found[:, :7], before[4 * layer + other][side][:, :7])
                assert torch.equal(found[:, 7:], before[4 * layer + place][side][:, 7:])


def test_the_length_is_what_the_slab_holds() -> None:
    assert padded(cache_tokens=200, max_model_len=500).max_model_len == 192
    with pytest.raises(StartFailed, match="no memory for keys and values"):
        padded(cache_tokens=63)


def test_options_are_checked() -> None:
    padded(kernel=False)
    for options, words in (
        ({"cache": 1}, "has no option"),
        ({"step_tokens": 0}, "above 0"),
        ({"kernel": 1}, "true or"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            padded(**options)
