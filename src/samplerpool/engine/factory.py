"""Which engine a worker runs. Light to import: an engine's module is imported when it is built."""

from __future__ import annotations

import contextlib
from typing import Any

from samplerpool.config.arguments import ENGINES, EngineConfig
from samplerpool.engine.base import Engine, PromptRenderer
from samplerpool.errors import InvalidParameter, StartFailed


def build_engine(config: EngineConfig, model: Any = None, renderer: PromptRenderer | None = None) -> Engine:
    """The engine that ``config`` asks for, ready to take requests.

    Args:
        config: ``engine`` is a name, or ``auto`` for the best one for the model.
        model: a causal language model of transformers on its device, and
        renderer: whose codec knows its end-of-sequence tokens; the scripted engine needs neither.

    Raises:
        InvalidParameter: no such engine, an option it does not have, or a length that the model cannot take.
        StartFailed: the engine cannot run this model, or its cache does not fit into memory.
    """
    if config.engine not in ENGINES:
        raise InvalidParameter(f"There is no engine {config.engine!r}; choose one of {', '.join(ENGINES)}.")
    if config.engine == "scripted":
        from samplerpool.engine.scripted import ScriptedEngine

        return ScriptedEngine(config)
    if model is None or renderer is None:
        raise InvalidParameter(f"The engine {config.engine!r} needs a model; only the scripted one runs without.")
    return _paged(config, model, renderer.codec.eos_token_ids)


def model_length(config: EngineConfig, model: Any) -> int:
    """Longest prompt plus completion, in tokens: what was asked for, or else all that the model can take.

    Raises:
        InvalidParameter: more was asked for than the model can take.
    """
    from samplerpool.model.model_engine import max_model_len

    if config.max_model_len is None:
        return max_model_len(model.config, tokenizer=None)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.max_model_len > limit:
        raise InvalidParameter(
            f"max_model_len={config.max_model_len:,} is more than the model's {limit:,} positions; "
            "ask for less, or leave it out."
        )
    return config.max_model_len


def _paged(config: EngineConfig, model: Any, eos_token_ids: frozenset[int]) -> Engine:
    from samplerpool.engine.paged import PagedEngine
    from samplerpool.engine.paged_probe import plain_answers, probe

    length = model_length(config, model)
    expected = plain_answers(model)
    engine = PagedEngine(model, config, eos_token_ids=eos_token_ids, max_model_len=length)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(engine.close)
        probe(engine, expected)
        if config.max_model_len is not None and engine.max_model_len < length:
            raise StartFailed(
                f"The key-value cache holds {engine.max_model_len:,} tokens, fewer than max_model_len={length:,}; "
                "ask for less, or give the cache more room with --engine-option cache_gib=N."
            )
        on_failure.pop_all()
    return engine
