"""Which way a model can be run, and whether an engine computes what the model computes.

No flag of transformers says reliably how a model may be batched: some crash in a way that their flags allow, some are
silently wrong. So flags choose (``choose_method``), and a probe at the start confirms: sequences of different lengths,
computed together by the engine, are held against plain forward passes, taken before the engine changed the model. It
costs a fraction of a second and turns a wrong answer into another engine, or into an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from samplerpool.config.sampling import BASE_ADAPTER, resolve, sampling_params
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.sequential import forward_arguments
from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.types import TokenLogprobs

PROMPT_LENGTHS = (9, 21)
NEW_TOKENS = 3
TOP_TOKENS = 20
GREEDY_TOLERANCE = 0.25
"""How far below the largest logit a token may lie, in standard deviations of the logits: rounding, not error."""
LOGPROBS_TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
"""How far log-probabilities may lie apart on average, in the same unit, by dtype; else as far as tokens may."""

OWN_ATTENTION = "its attention does not go through transformers' attention interface"
WINDOWS = ("sliding_window", "attention_window", "attention_chunk_size", "local_attention", "block_size")
"""Fields of configurations that limit how far back a layer looks."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a model can be run.

    Args:
        name: ``packed`` (many rows in one forward pass, without padding), ``padded`` (the same by the model's own
            attention, all rows as long as the longest) or ``sequential`` (one row at a time).
        reason: why, for people; goes on behind "because".
        longest: for ``sequential``, a ``max_model_len`` with which it would be one of the others, if there is one.
    """

    name: Literal["packed", "padded", "sequential"]
    reason: str
    longest: int | None = None


def choose_method(model: Any, max_model_len: int) -> Method:
    """The best way that the model's flags allow.

    Args:
        max_model_len: longest prompt plus completion; some rotary embeddings change beyond a length.
    """
    for obstacle in _obstacles(model):
        return Method("sequential", obstacle)
    limit = _fixed_rope_limit(model.config.get_text_config())
    if limit is not None and max_model_len > limit:
        return Method("sequential", f"its rotary embedding changes beyond {limit:,} tokens", longest=limit)
    if model._can_set_attn_implementation():
        return Method("packed", "its attention goes through transformers' attention interface")
    for obstacle in padding_obstacles(model):
        return Method("sequential", f"{OWN_ATTENTION}, and {obstacle}")
    return Method("padded", OWN_ATTENTION)


def _obstacles(model: Any) -> Iterator[str]:
    """What keeps a model from being computed many rows at a time, the plainest first."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        yield "it has an encoder"
    if getattr(model, "_is_stateful", False):
        yield "it carries a state that is no key-value cache"
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
    }
    if kinds:
        yield f"it has layers of the kind {', '.join(sorted(kinds))}"


def padding_obstacles(model: Any) -> Iterator[str]:
    """What keeps a model's own attention from taking rows of different lengths with padding behind the shorter ones."""
    config = model.config.get_text_config()
    layers = getattr(config, "attention_layers", None) or ()
    if any(getattr(config, name, None) for name in WINDOWS) or "local" in layers:
        yield "it looks at windows of tokens"
    if config._attn_implementation not in ("eager", "sdpa"):
        yield f"its attention implementation {config._attn_implementation!r} has a way of its own with padding"
    if not {"attention_mask", "past_key_values"} <= forward_arguments(model):
        yield "it does not take a mask and a cache"
    if not type(model).__module__.startswith("transformers."):
        yield "its code is not of transformers, so nobody knows what else it looks at"


def _fixed_rope_limit(config: Any) -> int | None:
    """Length up to which the rotary frequencies stay the same for all rows, if there is one."""
    for parameters in _changing_ropes(config):
        return int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None


def dynamic_rope_factor(config: Any) -> float:
    """How many times ``max_position_embeddings`` a dynamic rotary embedding reaches; 1 for others."""
    factors = (float(rope.get("factor") or 1) for rope in _changing_ropes(config) if rope["rope_type"] == "dynamic")
    return max(factors, default=1.0)


def _changing_ropes(config: Any) -> list[dict[str, Any]]:
    """Parameters of rotary embeddings whose frequencies depend on a sequence's length."""
    stated = getattr(config, "rope_parameters", None) or {}
    each = [stated, *(value for value in stated.values() if isinstance(value, dict))]
    return [parameters for parameters in each if parameters.get("rope_type") in ("dynamic", "longrope")]


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """A prompt, and what plain forward passes say comes next.

    Args:
        logits: float32, shape [new tokens, vocabulary]; computed in
        dtype: the model's.
        adapter: with which it was computed.
    """

    prompt_ids: tuple[int, ...]
    logits: Tensor
    dtype: torch.dtype = torch.float32
    adapter: str = BASE_ADAPTER


def plain_answers(model: Any, adapter: str = BASE_ADAPTER) -> list[PlainAnswer]:
    """Greedy answers of plain forward passes; to be taken before an engine changes the model's attention or layers.

    Args:
        adapter: what is switched on in the model.

    Raises:
        StartFailed: the model cannot be run at all, or not as a causal language model.
    """
    try:
        return _plain_answers(model, adapter)
    except Exception as error:
        raise StartFailed(f"A {type(model).__name__} does not run as a causal language model: {error}.") from error


@torch.no_grad()
def _plain_answers(model: Any, adapter: str) -> list[PlainAnswer]:
    vocabulary = model.config.get_text_config().vocab_size
    answers = []
    for length in PROMPT_LENGTHS:
        prompt_ids = [(length * 31 + i * 7919) % vocabulary for i in range(length)]
        sequence, rows = torch.tensor([prompt_ids], device=model.device), []
        for _ in range(NEW_TOKENS):
            logits = model(input_ids=sequence, use_cache=False).logits[0, -1].float()
            rows.append(logits)
            sequence = torch.cat((sequence, logits.argmax().view(1, 1)), dim=1)
        answers.append(PlainAnswer(tuple(prompt_ids), torch.stack(rows).cpu(), model.dtype, adapter))
    return answers


@dataclass(slots=True)
class _Found:
    """What an engine answered."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def why_answers_differ(engine: Engine, expected: Sequence[PlainAnswer], *, compare: bool = True) -> str | None:
    """Let an engine answer the prompts together, greedily; say why that is not right, or None if it is.

    Each prompt comes while the one before it is on its way, so that prompts and single tokens are computed together.
    Prompts that are too long for the engine are left out.
    """
    expected = [answer for answer in expected if len(answer.prompt_ids) + NEW_TOKENS <= engine.max_model_len]
    if not expected:
        return None
    try:
        found = _answers(engine, expected)
    except Exception as error:
        why = error.data.get("reason", error.message) if isinstance(error, SamplerPoolError) else None
        return str(why or f"it fails with {type(error).__name__}: {error}")
    for answer, answered in zip(expected, found, strict=True) if compare else ():
        if not _tokens_agree(answer.logits, answered.token_ids):
            return f"it computes other tokens than the model by itself{_with(answer.adapter)}"
        if not _logprobs_agree(answer, answered):
            return f"it computes other probabilities than the model by itself{_with(answer.adapter)}"
    return None


def _with(adapter: str) -> str:
    return "" if adapter == BASE_ADAPTER else f" with the adapter {adapter!r}"


def _answers(engine: Engine, expected: Sequence[PlainAnswer]) -> list[_Found]:
    logprobs = {"logprobs": TOP_TOKENS} if "logprobs" in engine.supported else {}
    params = resolve(sampling_params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, seed=0, **logprobs))
    waiting = [
        EngineRequest((-1, i), answer.prompt_ids, replace(params, adapter=answer.adapter))
        for i, answer in enumerate(expected)
    ]
    found = [_Found() for _ in expected]
    engine.add(waiting.pop(0))
    while waiting or engine.has_work():
        for output in engine.step():
            if output.error is not None:
                raise output.error
            answer = found[output.request_id[1]]
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs or ()
        if waiting and any(answer.token_ids for answer in found):
            engine.add(waiting.pop(0))
    return found


def probe(engine: Engine, expected: Sequence[PlainAnswer], *, compare: bool = True) -> None:
    """Let the engine answer the prompts.

    Args:
        compare: not where the engine runs the model just as the library does: some models do not compute the same step
            by step as at once (dynamic rotary embeddings), and then that is the model's way.

    Raises:
        StartFailed: it cannot, or its answers are not the model's.
    """
    if why := why_answers_differ(engine, expected, compare=compare):
        raise StartFailed(f"The {engine.name} engine cannot run this model: {why}.", reason=why)


def _tokens_agree(logits: Tensor, tokens: list[int]) -> bool:
    """Whether these are the greedy tokens up to rounding; beyond the first that differs there is nothing to compare."""
    for row, token in zip(logits, tokens, strict=True):
        if row[token] < row.max() - GREEDY_TOLERANCE * row.std():
            return False
        if token != int(row.argmax()):
            return True
    return True


def _logprobs_agree(answer: PlainAnswer, found: _Found) -> bool:
    """Whether the most probable tokens have the plain passes' probabilities, as far as the tokens are the same."""
    tolerance = LOGPROBS_TOLERANCE.get(answer.dtype, GREEDY_TOLERANCE)
    for row, token, reported in zip(answer.logits, found.token_ids, found.logprobs, strict=False):
        token_ids, values = zip(*reported.top, strict=True)
        wanted = row.log_softmax(-1)[list(token_ids)]
        if (torch.tensor(values) - wanted).abs().mean() > tolerance * row.std():
            return False
        if token != int(row.argmax()):
            return True
    return True
