"""The dense engine on tiny random models: the contract, and that no way of computing changes the tokens."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import kernels
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.factory import build_engine
from samplerpool.engine.scripted import ScriptedRenderer
from samplerpool.errors import InvalidParameter, StartFailed
from tests.engine_contract import EngineContract, answer_of, drive, params

VOCABULARY = 97


def tiny_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return model


@functools.lru_cache
def untouched_model() -> Any:
    return tiny_model()


def build(max_batch: int = 4, max_model_len: int = 256, eos: frozenset[int] = frozenset(), **options: Any) -> Engine:
    config = EngineConfig(max_batch=max_batch, options={"cache_gib": 0.02, **options})
    return DenseEngine(tiny_model(), config, eos_token_ids=eos, max_model_len=max_model_len)


def prompt(name: str, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(sum(map(ord, name)) * 1000 + length)
    return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())


@functools.lru_cache
def reference(prompt_ids: tuple[int, ...], tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt_ids)])
    mask = torch.ones_like(ids)  # otherwise generate takes some tokens for padding
    out = untouched_model().generate(
        ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in out[0, len(prompt_ids) :]]


class TestDenseEngine(EngineContract):
    first_token_steps = 3

    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return build(max_batch, max_model_len, eos=frozenset({self.end()}))

    @staticmethod
    def end() -> int:
        return reference(prompt("ending", 9), 5)[4]

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        del tokens
        for length in range(7, 60):
            candidate = prompt(name, length)
            if self.end() not in reference(candidate, 40):
                return candidate
        raise AssertionError("no prompt without an end")

    def ending_prompt(self) -> tuple[int, ...]:
        return prompt("ending", 9)


WAYS: list[dict[str, Any]] = [
    {},
    {"kernel": False},
    {"packed_linears": False},
    {"prefix_cache": False},
    {"step_tokens": 5},
    {"step_tokens": 7, "kernel": False, "prefix_cache": False},
]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: ",".join(options) or "default")
def test_greedy_tokens_are_those_of_generate_alone_and_together(options: dict[str, Any]) -> None:
    prompts = [prompt("p", length) for length in (1, 5, 23, 70)]
    expected = [reference(p, 30) for p in prompts]
    engine = build(8, **options)
    assert len({token for answer in expected for token in answer}) > 12
    for p, answer in zip(prompts, expected, strict=True):
        assert list(answer_of(engine, p, max_new_tokens=30, temperature=0.0).token_ids) == answer
    requests = [
        EngineRequest((2, n), p, params(max_new_tokens=30, temperature=0.0), n % 2) for n, p in enumerate(prompts)
    ]
    together = drive(engine, requests)
    assert [list(together[2, n].token_ids) for n in range(4)] == expected


def test_a_seed_gives_the_same_tokens_whatever_surrounds_it() -> None:
    p, wanted = prompt("seeded", 12), {"max_new_tokens": 40, "temperature": 0.9, "top_p": 0.95, "seed": 11}
    alone = list(answer_of(build(64), p, **wanted).token_ids)
    header = list(p)
    others = [
        EngineRequest((3, n), (*header[: n % 12 + 1], *prompt(f"o{n}", 5)), params(max_new_tokens=20, seed=n), n % 2)
        for n in range(40)
    ]
    for options in ({}, {"prefix_cache": False}, {"step_tokens": 9}, {"kernel": False}):
        engine = build(64, **options)
        subject = EngineRequest((4, 0), p, params(**wanted), BATCH)
        answers = drive(engine, [*others[:20], subject, *others[20:]])
        assert list(answers[4, 0].token_ids) == alone


def test_a_preempted_row_goes_on_with_the_same_tokens() -> None:
    p = prompt("preempted", 10)
    wanted = params(max_new_tokens=60, temperature=1.0, seed=3)
    alone = list(answer_of(build(), p, max_new_tokens=60, temperature=1.0, seed=3).token_ids)
    engine = build(1)
    engine.add(EngineRequest((1, 1), p, wanted, BATCH))
    got: list[int] = []
    for at in range(400):
        if at in (5, 25):
            engine.add(EngineRequest((2, at), prompt("i", 6), params(max_new_tokens=4, seed=1), INTERACTIVE))
        if not engine.has_work():
            break
        for output in engine.step():
            if output.request_id == (1, 1):
                got += output.token_ids
    assert got == alone
    assert engine.stats().details["preemptions"] == 2


def test_memory_that_does_not_hold_all_rows_changes_nothing() -> None:
    prompts = [prompt(f"m{n}", 30) for n in range(6)]
    expected = [reference(p, 100) for p in prompts]
    per_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, kv heads, dim, bytes
    engine = build(6, cache_gib=512 * per_token / 2**30)
    requests = [
        EngineRequest((1, n), p, params(max_new_tokens=100, temperature=0.0), BATCH) for n, p in enumerate(prompts)
    ]
    answers = drive(engine, requests)
    assert [list(answers[1, n].token_ids) for n in range(6)] == expected
    assert engine.stats().details["preemptions"] > 0


def test_prefixes_are_reused_and_counted() -> None:
    engine = build(4)
    turn = prompt("turn", 40)
    answer = answer_of(engine, turn, max_new_tokens=10, temperature=0.0)
    again = (*turn, *answer.token_ids, 5, 6)
    assert list(answer_of(engine, again, max_new_tokens=10, temperature=0.0).token_ids) == reference(again, 10)
    details = engine.stats().details
    assert details["prefix_hits"] == 1
    assert details["prefix_tokens"] >= 49


def test_the_model_gets_its_attention_back() -> None:
    model, renderer = tiny_model(), ScriptedRenderer()
    before = model.config._attn_implementation
    first = build_engine(EngineConfig(engine="dense", options={"cache_gib": 0.02}), model, renderer)
    with pytest.raises(StartFailed, match="in use by another sampler"):
        build_engine(EngineConfig(engine="dense"), model, renderer)
    first.close()
    assert model.config._attn_implementation == before
    build_engine(EngineConfig(engine="dense", options={"cache_gib": 0.02}), model, renderer).close()


def test_a_fork_does_not_share_keys_and_values() -> None:
    engine = build()
    address = engine._arena.keys[0].data_ptr()  # type: ignore[attr-defined]
    ranges = [line.split()[:2] for line in Path("/proc/self/maps").read_text().splitlines()]
    kinds = [kind for where, kind in ranges if int(where.split("-")[0], 16) <= address < int(where.split("-")[1], 16)]
    assert kinds == ["rw-p"]


def test_options_are_checked() -> None:
    for options, words in (({"cache": 1}, "has no option"), ({"cache_gib": 0}, "above 0"), ({"kernel": 1}, "true or")):
        with pytest.raises(InvalidParameter, match=words):
            build(**options)


@pytest.mark.skipif(not kernels.available(), reason=f"no kernel: {kernels.why_unavailable()}")
def test_the_kernel_is_used_where_it_can_be() -> None:
    assert build().stats().details["attention_kernel"] is True
    assert build(kernel=False).stats().details["attention_kernel"] is False


def test_the_log_says_why_the_kernel_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "why_unavailable", lambda: "numba is on holiday")
    assert build().stats().details["attention_kernel"] is False
    assert "numba is on holiday" in caplog.text


def test_a_long_prompt_moves_the_steps_before_its_first_token() -> None:
    engine = build(max_model_len=512, prefill_chunk=16, step_tokens=16)
    engine.add(EngineRequest((0, 0), prompt("long", 160), params(max_new_tokens=1)))
    seen = []
    while not engine.step():
        seen.append(engine.steps)
    assert seen == list(range(1, 10))
    engine.close()
