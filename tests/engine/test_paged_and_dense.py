"""The paged and the dense engine give the same tokens for the same seeds, whichever of them goes on with an answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig, ModelArguments, SampleArguments
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.paged import PagedEngine
from samplerpool.samplers.base_sampler import BaseSampler
from tests.engine_contract import drive, params
from tests.letters import LetterRenderer
from tests.model_zoo import build, prompt_of
from tests.near_ties import assert_same_tokens

NAME, VOCABULARY = "qwen2", 600
TOKENS = 40
EOS = frozenset({11})
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.0, "top_k": 10},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.7},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    {"temperature": 1.0, "no_repeat_ngram_size": 2, "logit_bias": {9: 3.0}, "bad_words": [[5], [9, 9]]},
    {"temperature": 1.5, "ignore_eos": False, "min_new_tokens": 5, "logit_bias": {11: 9.0}},
]
REQUESTS = [
    EngineRequest(
        (1, number),
        tuple(prompt_of(4 + 5 * number, number)),
        params(max_new_tokens=TOKENS, seed=7 * number, **values),
        BATCH if number % 2 else INTERACTIVE,
    )
    for number, values in enumerate(SETTINGS)
]
KINDS: dict[str, Callable[..., Engine]] = {"paged": PagedEngine, "dense": DenseEngine}
BOTH = pytest.mark.parametrize(("first", "second"), [("paged", "dense"), ("dense", "paged")])


@pytest.fixture
def make() -> Iterator[Callable[[str], Engine]]:
    """Builds engines by name, each with a model of its own, and closes them in the end."""
    engines: list[Engine] = []

    def build_one(name: str) -> Engine:
        config = EngineConfig(engine=name, max_batch=5, options={"cache_gib": 0.02})
        model = build(NAME, vocab_size=VOCABULARY)
        engines.append(KINDS[name](model, config, eos_token_ids=EOS, max_model_len=256))
        return engines[-1]

    yield build_one
    for engine in engines:
        engine.close()


@functools.cache
def plain_model() -> Any:
    return build(NAME, vocab_size=VOCABULARY)


@torch.no_grad()
def logits_after(request: EngineRequest, tokens: list[int]) -> Tensor:
    logits: Tensor = plain_model()(torch.tensor([[*request.prompt_ids, *tokens]])).logits[0, -1]
    return logits


def assert_same(found: list[int], wanted: list[int], request: EngineRequest) -> None:
    assert_same_tokens(found, wanted, request, functools.partial(logits_after, request))


def test_all_parameters_in_one_batch(make: Callable[[str], Engine]) -> None:
    paged, dense = (drive(make(name), REQUESTS) for name in KINDS)
    for request in REQUESTS:
        assert_same(paged[request.request_id].token_ids, dense[request.request_id].token_ids, request)
        assert paged[request.request_id].finish_reason == dense[request.request_id].finish_reason
    ended = dense[1, len(SETTINGS) - 1]
    assert ended.finish_reason == "stop"
    assert 5 < len(ended.token_ids) < TOKENS
    assert len({tuple(answer.token_ids) for answer in dense.values()}) == len(REQUESTS)


@BOTH
def test_one_goes_on_where_the_other_stopped(make: Callable[[str], Engine], first: str, second: str) -> None:
    whole, other = drive(make(first), REQUESTS), make(second)
    continued = [
        EngineRequest(r.request_id, r.prompt_ids, r.params, r.priority, tuple(whole[r.request_id].token_ids[:done]))
        for r, done in zip(REQUESTS, (1, 3, 7, 20, 39) * 3, strict=False)
    ]
    rest = drive(other, continued)
    for request in continued:
        answer = [*request.generated_ids, *rest[request.request_id].token_ids]
        assert_same(answer, whole[request.request_id].token_ids, request)


def test_logprobs(make: Callable[[str], Engine]) -> None:
    request = EngineRequest((2, 0), tuple(prompt_of(9)), params(max_new_tokens=8, logprobs=3, temperature=1.0, seed=2))
    paged, dense = (drive(make(name), [request])[2, 0].logprobs for name in KINDS)
    assert [entry.token_id for entry in paged] == [entry.token_id for entry in dense]
    for one, other in zip(paged, dense, strict=True):
        assert [token_id for token_id, _ in one.top] == [token_id for token_id, _ in other.top]
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


async def generations(engine: Engine, count: int, **values: Any) -> list[dict[str, Any]]:
    """What a batch is answered, as written to its rows."""
    letters = LetterRenderer()
    sampler = BaseSampler(SampleArguments(), ModelArguments(), None, letters, engine=engine)
    try:
        prompts = [letters.codec.decode(prompt_of(6, n), skip_special_tokens=True) for n in range(count)]
        samples: list[Any] = await sampler.batch_infer([{"prompt": prompt} for prompt in prompts], **values)
    finally:
        sampler.close()
    return [{**sample["generation"], "sample": sample.get("sample")} for sample in samples]


async def test_several_samples_of_a_prompt(make: Callable[[str], Engine]) -> None:
    wanted = {"num_return_sequences": 4, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 20, "seed": 3}
    paged, dense = [await generations(make(name), 3, **wanted) for name in KINDS]
    assert paged == dense
    assert len({row["text"] for row in dense}) == len({row["seed"] for row in dense}) == 12


async def test_stop_strings(make: Callable[[str], Engine]) -> None:
    wanted: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": TOKENS, "seed": 1}
    whole = await generations(make("dense"), 4, **wanted)
    stop = [row["text"][at : at + 2] for row, at in zip(whole[:3], (5, 17, 38), strict=True)]
    paged, dense = [await generations(make(name), 4, **wanted, stop=stop) for name in KINDS]
    assert paged == dense
    for row, unstopped, tokens in zip(dense, whole, (7, 19, 40, TOKENS), strict=True):
        assert unstopped["text"].startswith(row["text"])
        assert row["completion_tokens"] == tokens
    assert [row["finish_reason"] for row in dense] == ["stop", "stop", "stop", "length"]
    assert [len(row["text"]) for row in dense] == [5, 17, 38, TOKENS]
