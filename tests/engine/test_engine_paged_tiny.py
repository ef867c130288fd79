"""The paged engine with a tiny random model: the contract, and the same greedy tokens as ``generate``."""

from __future__ import annotations

import functools
import threading
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.engine.paged import PagedEngine
from samplerpool.engine.probe import plain_answers, probe
from samplerpool.errors import EngineError, InvalidParameter, StartFailed
from tests.engine_contract import Answer, EngineContract, answer_of, drive, params

VOCABULARY = 600


@functools.cache
def tiny_model() -> Any:
    """A Llama that nobody trained, with weights large enough for varied answers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def prompt_of(name: str, length: int = 12) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def generated(prompt_ids: tuple[int, ...], new_tokens: int, **options: Any) -> list[int]:
    """The tokens of transformers' own loop."""
    output = tiny_model().generate(
        torch.tensor([prompt_ids]),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return list(output[0, len(prompt_ids) :].tolist())


@functools.cache
def end_token() -> int:
    """A token that the ending prompt's answer has for the first time after some others."""
    tokens = generated(prompt_of("ending"), 50)
    return next(token for i, token in enumerate(tokens) if i >= 5 and token not in tokens[:i])


def tiny_engine(*, max_batch: int = 4, max_model_len: int = 256, **options: Any) -> PagedEngine:
    config = EngineConfig(engine="paged", max_batch=max_batch, options=options)
    return PagedEngine(tiny_model(), config, eos_token_ids=frozenset({end_token()}), max_model_len=max_model_len)


class TestPagedEngine(EngineContract):
    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return tiny_engine(max_batch=max_batch, max_model_len=max_model_len)

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return prompt_of(name)

    def ending_prompt(self) -> tuple[int, ...]:
        return prompt_of("ending")

    def test_greedy_tokens_are_those_of_generate(self, engine: Engine) -> None:
        prompts = [prompt_of(f"greedy {i}", 3 + 9 * i) for i in range(6)]
        requests = [EngineRequest((0, i), p, params(max_new_tokens=40)) for i, p in enumerate(prompts)]
        answers = drive(engine, requests)
        assert [answers[0, i].token_ids for i in range(6)] == [generated(p, 40) for p in prompts]

    def test_what_looks_at_earlier_tokens_is_that_of_generate(self, engine: Engine) -> None:
        words = [[5], [6, 7], generated(prompt_of("shaped 3"), 3)]
        shapes: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({}, {}),
            ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
            ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
            ({"bad_words": words}, {"bad_words_ids": words}),
            ({"logit_bias": {9: 4.0}}, {"sequence_bias": {(9,): 4.0}}),
            ({"repetition_penalty": 3.0, "no_repeat_ngram_size": 3},) * 2,
        ]
        prompts = [prompt_of(f"shaped {i}") for i in range(len(shapes))]
        requests = [
            EngineRequest((0, i), p, params(max_new_tokens=40, **ours))
            for i, (p, (ours, _)) in enumerate(zip(prompts, shapes, strict=True))
        ]
        answers = drive(engine, requests)
        for i, (prompt_ids, (_, theirs)) in enumerate(zip(prompts, shapes, strict=True)):
            assert answers[0, i].token_ids == generated(prompt_ids, 40, **theirs)

    def test_logprobs_are_those_of_the_model(self, engine: Engine) -> None:
        prompt_ids = prompt_of("scored")
        answer = answer_of(engine, prompt_ids, max_new_tokens=10, logprobs=4, repetition_penalty=2.0)
        whole = torch.tensor([[*prompt_ids, *answer.token_ids]])
        with torch.inference_mode():
            expected = tiny_model()(whole).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        for entry, row in zip(answer.logprobs, expected, strict=True):
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-3)
            assert [logprob for _, logprob in entry.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)

    def test_neighbours_with_other_settings_change_nothing(self, engine: Engine) -> None:
        mixed = [
            {},
            {"temperature": 1.0, "seed": 1},
            {"temperature": 2.0, "top_k": 20, "seed": 2},
            {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.4, "seed": 3},
            {"temperature": 1.0, "min_p": 0.2, "seed": 4},
        ]
        requests = [
            EngineRequest((0, i), prompt_of(f"mixed {i}"), params(max_new_tokens=24, **values))
            for i, values in enumerate(mixed)
        ]
        together = drive(engine, requests)
        assert [drive(engine, [request])[request.request_id] for request in requests] == [
            together[request.request_id] for request in requests
        ]

    def test_top_k_of_one_is_greedy(self, engine: Engine) -> None:
        sampled = answer_of(engine, prompt_of("k"), max_new_tokens=20, temperature=1.0, top_k=1, seed=9)
        assert sampled.token_ids == generated(prompt_of("k"), 20)

    def test_a_prompt_longer_than_a_step_is_taken_in_pieces(self) -> None:
        engine = tiny_engine(max_batch_tokens=16)
        try:
            answer = answer_of(engine, prompt_of("long", 100), max_new_tokens=20)
        finally:
            engine.close()
        assert answer == Answer(generated(prompt_of("long", 100), 20), "length")

    def test_answers_survive_a_cache_too_small_for_all(self) -> None:
        requests = [
            EngineRequest((0, i), prompt_of(f"crowd {i}"), params(max_new_tokens=50, temperature=1.0, seed=i))
            for i in range(4)
        ]
        roomy = tiny_engine()
        bytes_per_token = 2 * 2 * 2 * 16 * 4
        tight = tiny_engine(cache_gib=112 * bytes_per_token / 2**30)
        try:
            assert tight.max_model_len < 4 * 62
            assert drive(tight, requests) == drive(roomy, requests)
        finally:
            roomy.close()
            tight.close()

    def test_the_cache_is_free_after_aborts_and_ends(self, make: Any) -> None:
        engine = make(max_batch=3)
        drive(engine, [self.request(i, tokens=100) for i in range(5)], until=lambda a: len(a) == 3)
        for i in range(5):
            engine.abort((1, i))
        drive(engine, [self.request(9, tokens=3)])
        processor = engine._manager._manager.batch_processor
        assert not processor.scheduler.active_requests
        assert not processor.scheduler.waiting_requests
        assert not engine._manager.router.result_handlers
        assert all(not allocator.block_table for allocator in processor.cache.cache_allocators.values())

    def test_a_continuation_with_nothing_left_to_do_ends_at_once(self, engine: Engine) -> None:
        done = answer_of(engine, prompt_of("done"), max_new_tokens=5).token_ids
        assert answer_of(engine, prompt_of("done"), done, max_new_tokens=5) == Answer([], "length")
        stopped = answer_of(engine, prompt_of("done"), done, max_new_tokens=50, stop_token_ids=(done[-1],))
        assert stopped == Answer([], "stop")

    def test_a_step_without_news_returns_soon(self, engine: Engine) -> None:
        assert engine.step() == []


def test_a_dead_thread_raises_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    try:
        answers = drive(engine, [EngineRequest((0, 0), prompt_of("x"), params(max_new_tokens=200))], until=bool)
        assert answers
        monkeypatch.setattr(engine._manager._manager.batch_processor, "_generation_step", lambda model: 1 / 0)
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            drive(engine)
        assert not engine.has_work()
        with pytest.raises(EngineError, match="started again"):
            drive(engine, [EngineRequest((0, 1), prompt_of("y"), params())])
    finally:
        engine.close()


def test_no_thread_is_left_after_close() -> None:
    before = set(threading.enumerate())
    engine = tiny_engine()
    started = set(threading.enumerate()) - before
    assert started
    assert all(thread.daemon for thread in started), "a forgotten engine must not keep the process alive"
    engine.close()
    assert set(threading.enumerate()) == before


def test_unknown_and_impossible_options_are_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"no option 'pages'.*page_size"):
        tiny_engine(pages=3)
    with pytest.raises(InvalidParameter, match=r"cache_gib must be a number above 0, not 'much'"):
        tiny_engine(cache_gib="much")


def test_a_model_with_another_kind_of_state_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(StartFailed, match="cannot take a MambaForCausalLM"):
        PagedEngine(model, EngineConfig(), eos_token_ids=frozenset(), max_model_len=64)


def test_the_probe_passes_a_right_engine_and_catches_a_wrong_one() -> None:
    expected = plain_answers(tiny_model())
    engine = tiny_engine()
    try:
        probe(engine, expected)
        for answer in expected:
            answer.logits.neg_()
        with pytest.raises(StartFailed, match="computes other tokens"):
            probe(engine, expected)
    finally:
        engine.close()


class _Renderer:
    """As much of a renderer as building an engine takes."""

    codec: Any = SimpleNamespace(eos_token_ids=frozenset({2}))
    media_kinds: frozenset[str] = frozenset()


def test_the_factory_builds_it_by_name() -> None:
    engine = build_engine(EngineConfig(engine="paged", max_batch=2), tiny_model(), _Renderer())  # type: ignore[arg-type]
    try:
        assert (engine.name, engine.max_model_len) == ("paged", 512)
        assert len(answer_of(engine, prompt_of("built"), max_new_tokens=7).token_ids) == 7
    finally:
        engine.close()


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"max_model_len=513 is more than the model's 512"):
        build_engine(EngineConfig(engine="paged", max_model_len=513), tiny_model(), _Renderer())  # type: ignore[arg-type]
