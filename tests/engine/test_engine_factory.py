"""Which engine is picked for which model, and what is said about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.engine import dense, dense_attention, packed_passes
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.engine.padded import PaddedEngine
from samplerpool.engine.probe import (
    choose_method,
    padding_obstacles,
    plain_answers,
    why_answers_differ,
)
from samplerpool.errors import InvalidParameter, StartFailed
from tests.engine_contract import drive, params
from tests.model_zoo import ZOO, build, prompt_of, reference_greedy

RENDERER: Any = SimpleNamespace(codec=SimpleNamespace(eos_token_ids=frozenset({2})), media_kinds=frozenset())


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def pick(warnings: list[str]) -> Iterator[Any]:
    """Builds an engine for a model of the zoo and closes it in the end."""
    engines: list[Engine] = []

    def build_for(name: str, engine: str = "auto", max_model_len: int | None = None, a_model: Any = None) -> Engine:
        options = {} if "sequential" in (engine, ZOO[name].method) else {"cache_gib": 0.05}
        config = EngineConfig(engine=engine, max_batch=4, max_model_len=max_model_len, options=options)
        engines.append(build_engine(config, a_model or build(name), RENDERER, warnings.append))
        return engines[-1]

    yield build_for
    for engine in engines:
        engine.close()


def answer(engine: Engine, length: int = 9, tokens: int = 6) -> list[int]:
    request = EngineRequest((0, 0), tuple(prompt_of(length)), params(max_new_tokens=tokens))
    return drive(engine, [request])[0, 0].token_ids


@pytest.mark.parametrize("name", ZOO)
def test_flags_choose_the_method(name: str) -> None:
    method = choose_method(build(name), max_model_len=64)
    assert method.name == ZOO[name].method, method.reason


def test_auto_picks_the_dense_engine_on_cpu_and_says_why(pick: Any, warnings: list[str]) -> None:
    engine = pick("qwen3")
    assert engine.name == "dense"
    assert "attention interface" in engine.stats().details["picked"]
    assert warnings == []
    assert answer(engine) == reference_greedy(build("qwen3"), prompt_of(9), 6).token_ids


def test_a_model_with_an_attention_of_its_own_gets_the_padded_engine(pick: Any, warnings: list[str]) -> None:
    automatic, asked_for = pick("bloom"), pick("bloom", "dense")
    assert (automatic.name, asked_for.name, warnings) == ("padded", "padded", [])
    why = "its attention does not go through transformers' attention interface"
    assert automatic.stats().details["picked"] == why
    assert asked_for.stats().details["picked"] == f"it was asked for as dense, and {why}"
    assert answer(automatic) == reference_greedy(build("bloom"), prompt_of(9), 6).token_ids


@pytest.mark.parametrize(("name", "why"), [("mamba", "carries a state"), ("gpt-neo", "it looks at windows of tokens")])
def test_auto_warns_of_models_that_cannot_be_batched(pick: Any, warnings: list[str], name: str, why: str) -> None:
    engine = pick(name)
    assert engine.name == "sequential"
    assert why in engine.stats().details["picked"]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: requests are computed one after the other")
    assert why in warnings[0]
    assert answer(engine) == reference_greedy(build(name), prompt_of(9), 6).token_ids


@pytest.mark.parametrize("name", ["dense", "paged", "sequential"])
def test_an_engine_by_its_name(pick: Any, warnings: list[str], name: str) -> None:
    engine = pick("llama", name)
    assert (engine.name, engine.stats().details["picked"], warnings) == (name, "it was asked for", [])


@pytest.mark.parametrize(("name", "why"), [("mamba", "it carries a state"), ("gpt-neo", "its attention .* windows")])
def test_the_dense_engine_by_name_refuses_what_it_cannot_batch(pick: Any, name: str, why: str) -> None:
    kind = type(build(name)).__name__
    with pytest.raises(StartFailed, match=f"dense engine cannot run a {kind}: {why}"):
        pick(name, "dense")


def test_a_changing_rotary_embedding_limits_the_length_unless_more_is_asked_for(pick: Any, warnings: list[str]) -> None:
    engine = pick("phi3-longrope")
    assert (engine.name, engine.max_model_len) == ("dense", 16)
    assert "limited to 16 tokens" in warnings[0]
    assert "--max-model-len 512" in warnings[0]
    longer = pick("phi3-longrope", max_model_len=100)
    assert (longer.name, longer.max_model_len) == ("sequential", 100)
    slow = "requests are computed one after the other, which is slow"
    assert warnings[1:] == [f"warning: {slow}, because its rotary embedding changes beyond 16 tokens"]


def test_dynamic_rotary_embeddings_reach_further_than_the_model_was_trained(pick: Any, warnings: list[str]) -> None:
    assert pick("llama-dynamic").name == "dense"
    assert pick("llama-dynamic", max_model_len=64).name == "sequential"
    assert "one after the other, which is slow, because its rotary embedding changes beyond 16" in warnings[-1]
    with pytest.raises(InvalidParameter, match=r"max_model_len=65 is more than the model's 64 positions"):
        pick("llama-dynamic", max_model_len=65)


def break_the_dense_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention a little sharper than it should be, as a scale that it does not know of would make it."""
    right = dense_attention.packed_attention

    def wrong(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        return right(module, query * 1.05, *args, **kwargs)

    monkeypatch.setitem(packed_passes.AttentionInterface._global_mapping, dense_attention.IMPLEMENTATION, wrong)


def test_where_the_dense_engine_is_wrong_the_padded_one_is_picked(
    pick: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_dense_engine(monkeypatch)
    model = build("llama")
    before = model.config._attn_implementation
    engine = pick("llama", a_model=model)
    assert engine.name == "padded"
    assert "the dense engine cannot run it: it computes other" in engine.stats().details["picked"]
    assert warnings == []
    assert model.config._attn_implementation == before
    assert answer(engine) == reference_greedy(build("llama"), prompt_of(9), 6).token_ids


def test_an_engine_with_wrong_answers_is_not_picked(
    pick: Any, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_dense_engine(monkeypatch)
    engine = pick("mistral-window")  # which the padded engine is no choice for
    assert engine.name == "sequential"
    assert "the dense engine cannot run it: it computes other" in engine.stats().details["picked"]
    assert "the dense engine cannot run it" in warnings[0]
    assert warnings[1] == "warning: the sequential engine has no options; ignored: cache_gib"
    assert answer(engine) == reference_greedy(build("mistral-window"), prompt_of(9), 6).token_ids


def test_an_engine_with_wrong_answers_is_refused_by_name(pick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    break_the_dense_engine(monkeypatch)
    with pytest.raises(StartFailed, match="dense engine cannot run this model: it computes other"):
        pick("llama", "dense")


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.method != "packed"])
def test_the_probe_notices_what_the_dense_engine_cannot_run(name: str) -> None:
    """Many of these models run in the packed form without an error, and are silently wrong."""
    assert not is_right(dense.DenseEngine, name)


@pytest.mark.parametrize("name", ZOO)
def test_flags_and_probe_say_the_same_of_padding(name: str) -> None:
    """The probe's prompts are shorter than real windows, so flags must find those."""
    method = choose_method(build(name), max_model_len=64)
    has_windows = any(padding_obstacles(build(name)))
    assert is_right(PaddedEngine, name) == (method.name != "sequential" and not has_windows)


def is_right(engine: Any, name: str) -> bool:
    """Whether an engine can be built for a model of the zoo, and passes the probe."""
    model = build(name)
    expected = plain_answers(model)
    config = EngineConfig(engine="dense", max_batch=4, options={"cache_gib": 0.05})
    try:
        built = engine(model, config, eos_token_ids=frozenset(), max_model_len=64)
    except StartFailed:
        return False
    right = why_answers_differ(built, expected) is None
    built.close()
    return right


def test_vllm_takes_no_model_that_is_loaded_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParameter, match=r"cannot take a model that is loaded already.*engine=\"vllm\""):
        build_engine(EngineConfig(engine="vllm"), build("llama"), RENDERER)
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    monkeypatch.setattr(os, "environ", dict(os.environ))
    checkpoint: Any = SimpleNamespace(model_args=ModelArguments())
    with pytest.raises(StartFailed, match=r"needs the package vllm.*pip install 'samplerpool\[vllm\]'"):
        build_engine(EngineConfig(engine="vllm"), checkpoint=checkpoint)
