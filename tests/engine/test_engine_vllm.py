"""vLLM behind our interface: the contract, and the answers of transformers, with a tiny random model.

vLLM wants other releases than we do (scripts/constraints.txt), so these run in an environment of their own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.engine.sequential import SequentialEngine
from samplerpool.errors import EngineError, InvalidParameter, StartFailed, UnsupportedParameter
from samplerpool.model.model_engine import ModelEngine
from tests.engine_contract import Answer, EngineContract, answer_of, drive, params
from tests.lora import generated as generated_with
from tests.lora import save_adapter, with_adapters
from tests.tiny_tokenizer import tiny_tokenizer

pytest.importorskip("vllm", reason="vLLM is not in this environment; the README says how to run these tests in another")

from samplerpool.engine.vllm_engine import VllmEngine

VOCABULARY = 600
OPTIONS = {"enforce_eager": True, "cache_gib": 1 / 64}


@functools.cache
def tiny_model() -> Any:
    """A Llama that nobody trained, with large weights for varied answers, and heads as large as vLLM takes them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def prompt_of(name: str, length: int = 12) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(sum(name.encode()) * 31 + len(name))
    return tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


def generated(prompt_ids: tuple[int, ...], new_tokens: int, **options: Any) -> list[int]:
    """The tokens of transformers' own loop."""
    ids = torch.tensor([prompt_ids])
    output = tiny_model().generate(
        ids,
        attention_mask=torch.ones_like(ids),
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint, whose answers end with ``end_token``."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = end_token()
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def vllm_engine(folder: Path, *, lora: dict[str, Path] | None = None, **config: Any) -> Engine:
    """As a worker builds it."""
    adapters = {"name": "lora", "adapter_name_or_path": lora} if lora else None
    checkpoint = ModelEngine(ModelArguments(model=str(folder), peft_config=adapters), weights=False)
    config = {"max_batch": 4, "max_model_len": 256, "options": {}, **config}
    config["options"] = {**OPTIONS, **config["options"]}
    return build_engine(EngineConfig(engine="vllm", **config), checkpoint=checkpoint)


@contextlib.contextmanager
def closing(engine: Engine) -> Iterator[Any]:
    try:
        yield engine
    finally:
        engine.close()
        gc.collect()  # vLLM's objects refer to each other, and hold the cache


class TestVllmEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder: Path) -> None:
        self.folder = folder

    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        return vllm_engine(self.folder, max_batch=max_batch, max_model_len=max_model_len)

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return prompt_of(name)

    def ending_prompt(self) -> tuple[int, ...]:
        return prompt_of("ending")


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """One for all of the following, since each takes a second to start."""
    with closing(vllm_engine(folder)) as engine:
        yield engine


def test_greedy_tokens_are_those_of_generate(engine: Engine) -> None:
    prompts = [prompt_of(f"greedy {i}", 3 + 9 * i) for i in range(6)]
    requests = [EngineRequest((0, i), p, params(max_new_tokens=40)) for i, p in enumerate(prompts)]
    answers = drive(engine, requests)
    assert [answers[0, i].token_ids for i in range(6)] == [generated(p, 40) for p in prompts]


def test_what_looks_at_earlier_tokens_is_that_of_generate(engine: Engine) -> None:
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


def test_logprobs_are_those_of_the_model(engine: Engine) -> None:
    prompt_ids = prompt_of("scored")
    answer = answer_of(engine, prompt_ids, max_new_tokens=10, logprobs=4, repetition_penalty=2.0)
    whole = torch.tensor([[*prompt_ids, *answer.token_ids]])
    with torch.inference_mode():
        expected = tiny_model()(whole).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    for entry, row in zip(answer.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-3)
        assert [logprob for _, logprob in entry.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-3)


MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 2.0, "top_k": 20, "seed": 2},
    {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 1.4, "seed": 3},
    {"temperature": 1.0, "min_p": 0.2, "presence_penalty": 0.5, "seed": 4},
    {"temperature": 1.5, "typical_p": 0.7, "seed": 5},
]


def mixed_requests(new_tokens: int = 24, length: int = 12) -> list[EngineRequest]:
    return [
        EngineRequest((0, i), prompt_of(f"mixed {i}", length), params(max_new_tokens=new_tokens, **values))
        for i, values in enumerate(MIXED)
    ]


def our_answers(requests: list[EngineRequest]) -> dict[Any, Answer]:
    """Of an engine of ours, the one without numba: vLLM cannot start in a process that has llvmlite loaded."""
    engine = SequentialEngine(tiny_model(), EngineConfig(), eos_token_ids=frozenset({end_token()}), max_model_len=256)
    with closing(engine):
        return drive(engine, requests)


def test_sampled_tokens_are_those_of_our_own_engine(engine: Engine) -> None:
    requests = mixed_requests()
    assert drive(engine, requests) == our_answers(requests)


def test_neighbours_with_other_settings_change_nothing(engine: Engine) -> None:
    requests = mixed_requests()
    together = drive(engine, requests)
    assert [drive(engine, [request])[request.request_id] for request in requests] == [
        together[request.request_id] for request in requests
    ]


def test_a_continuation_with_nothing_left_to_do_ends_at_once(engine: Engine) -> None:
    done = answer_of(engine, prompt_of("done"), max_new_tokens=5).token_ids
    assert answer_of(engine, prompt_of("done"), done, max_new_tokens=5) == Answer([], "length")


def test_what_vllm_itself_refuses_ends_that_request_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has checks of its own, which may be stricter than ours."""
    vllm: Any = engine
    take = vllm._engine.add_request

    def refusing(key: str, prompt: Any, *more: Any, **named: Any) -> Any:
        if len(prompt["prompt_token_ids"]) == 13:
            raise ValueError("no prompts of 13 tokens")
        return take(key, prompt, *more, **named)

    monkeypatch.setattr(vllm._engine, "add_request", refusing)
    requests = [EngineRequest((0, i), prompt_of("refused", 12 + i), params(max_new_tokens=3)) for i in range(3)]
    answers = drive(engine, requests)
    assert [answers[0, i].finish_reason for i in range(3)] == ["length", "error", "length"]
    assert "no prompts of 13 tokens" in str(answers[0, 1].error)
    assert not engine.has_work()


# ---- engines of their own -------------------------------------------------------------------------------------------


def test_long_prompts_in_pieces_and_a_cache_too_small_for_all_change_nothing(folder: Path) -> None:
    """vLLM asks for a draw behind each piece and forgets it, and begins requests anew for which it finds no room."""
    requests = mixed_requests(new_tokens=60, length=100)
    bytes_per_token = 2 * 2 * 2 * 32 * 4
    tight = {"max_num_batched_tokens": 32, "cache_gib": 600 * bytes_per_token / 2**30, "block_size": 32}
    with closing(vllm_engine(folder, max_batch=6, options=tight)) as engine:
        scheduler = engine._engine.engine_core.engine_core.scheduler
        preempted = []
        original = scheduler._preempt_request
        scheduler._preempt_request = lambda request, *more, **named: (
            preempted.append(request.request_id),
            original(request, *more, **named),
        )[1]
        assert drive(engine, requests) == our_answers(requests)
        assert preempted, "there was room for all"


def test_each_request_with_its_adapter(folder: Path, tmp_path: Path) -> None:
    adapters = {
        name: save_adapter(copy.deepcopy(tiny_model()), tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))
    }
    expected = with_adapters(copy.deepcopy(tiny_model()), adapters)
    with closing(vllm_engine(folder, lora=adapters)) as engine:
        assert (engine.adapters, engine.adapter) == (("a", "b"), "base")
        names = ["a", "base", "b", "a"]
        requests = [
            EngineRequest((0, i), prompt_of("adapted"), params(max_new_tokens=12, adapter=name))
            for i, name in enumerate(names)
        ]
        answers = drive(engine, requests)
        assert [answers[0, i].token_ids for i in range(4)] == [
            generated_with(expected, name, prompt_of("adapted"), 12) for name in names
        ]
        assert len({tuple(answer.token_ids) for answer in answers.values()}) == 3
        with pytest.raises(UnsupportedParameter, match="adapter 'c'"):
            engine.check(EngineRequest((0, 9), prompt_of("x"), params(adapter="c")))


def test_a_failure_inside_of_vllm_raises_now_and_from_then_on(folder: Path) -> None:
    with closing(vllm_engine(folder)) as engine:
        drive(engine, [EngineRequest((0, 0), prompt_of("x"), params(max_new_tokens=100))], until=bool)

        def failing(*_: Any, **__: Any) -> None:
            raise RuntimeError("device-side assert triggered")

        engine._engine.model_executor.execute_model = failing
        with pytest.raises(EngineError, match=r"RuntimeError: device-side assert triggered.*started again"):
            drive(engine)
        assert not engine.has_work()
        with pytest.raises(EngineError, match="started again"):
            drive(engine, [EngineRequest((0, 1), prompt_of("y"), params())])


def test_the_longest_request_is_what_model_and_cache_allow(folder: Path) -> None:
    with closing(vllm_engine(folder, max_model_len=None)) as engine:
        assert engine.max_model_len == 512
    bytes_per_token = 2 * 2 * 2 * 32 * 4
    small = {"cache_gib": 200 * bytes_per_token / 2**30, "block_size": 32}
    with closing(vllm_engine(folder, max_model_len=None, options=small)) as engine:
        assert 100 < engine.max_model_len < 220
    with pytest.raises(StartFailed, match=r"vLLM cannot run this model: .*KV cache"):
        vllm_engine(folder, max_model_len=500, options=small)
    with pytest.raises(InvalidParameter, match=r"max_model_len=513 is more than the model's 512"):
        vllm_engine(folder, max_model_len=513)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"enforce_eagr": True}, r"Unknown option of the vllm engine 'enforce_eagr'; did you mean 'enforce_eager'"),
        ({"max_num_seqs": 8}, r"max_num_seqs is no option: it is --max-batch"),
        ({"tensor_parallel_size": 2}, r"a worker has one device"),
        ({"cache_gib": "much"}, r"cache_gib must be a number above 0, not 'much'"),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidParameter, match=complaint):
        vllm_engine(folder, options=options)


def test_what_vllm_refuses_at_the_start_is_told_in_its_words(folder: Path) -> None:
    with pytest.raises(StartFailed, match=r"vLLM cannot run this model: .*Unknown quantization method: nope"):
        vllm_engine(folder, options={"quantization": "nope"})
    speculative = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    with pytest.raises(StartFailed, match=r"not supported when speculative decoding is enabled"):
        vllm_engine(folder, options={"speculative_config": speculative})


def test_what_a_model_of_its_own_loading_cannot_have_is_refused(folder: Path) -> None:
    for given in (
        {"quant_config": {"name": "torchao", "quant_type": "int8_weight_only"}},
        {"flash_attn": "sdpa"},
        {"peft_config": {"name": "lora", "adapter_name_or_path": str(folder)}},
    ):
        checkpoint = SimpleNamespace(model_args=ModelArguments(model=str(folder), **given))
        with pytest.raises(InvalidParameter, match="vLLM loads the model itself, and has no use for"):
            VllmEngine(checkpoint, EngineConfig())  # type: ignore[arg-type]  # the rest is not looked at
    with pytest.raises(InvalidParameter, match="cannot take a model that is loaded already"):
        build_engine(EngineConfig(engine="vllm"), tiny_model(), SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(StartFailed, match="built for cpu, and the worker's device is cuda"):
        vllm_engine(folder, device="cuda")
