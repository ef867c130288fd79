"""The dense engine: in-flight batching over an arena of keys and values, one packed forward pass a step.

Decode rows and prefill chunks share a ``[1, N]`` pass without padding. A new request joins at the next step and a
finished one leaves at once. Attention reads the arena (``dense_attention``); what happens in a step is decided by
``schedule``; what the tokens are, by the row sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AttentionInterface

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import PARAMS
from samplerpool.engine import kernels
from samplerpool.engine.arena import MIN_CAPACITY, Arena, LayerShape
from samplerpool.engine.base import (
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.engine.dense_attention import IMPLEMENTATION, ArenaCache, Span, Step, packed_attention
from samplerpool.engine.packed_linear import pack_linears
from samplerpool.engine.row_sampler import RowSampler, SamplingRow
from samplerpool.engine.schedule import STEP_TOKENS, Plan, Row, Scheduler
from samplerpool.errors import InvalidParameter, StartFailed

OPTIONS: Mapping[str, type] = {
    "cache_gib": float,
    "prefill_chunk": int,
    "step_tokens": int,
    "prefix_cache": bool,
    "packed_linears": bool,
    "kernel": bool,
}
MEMORY_SHARE = 0.5
"""Of the memory that is free at the start, for the caches of all workers of this machine together."""

AttentionInterface.register(IMPLEMENTATION, packed_attention)


class DenseEngine:
    """See the module's docstring.

    Args:
        model: a causal language model of transformers, on its device. Its attention implementation is replaced until
            ``close``, and on CPU its linear layers are prepacked for good.
        config: ``max_batch`` and the options ``cache_gib`` (memory for keys and values), ``prefill_chunk`` (tokens of
            prefill in a step beside interactive streams), ``step_tokens`` (tokens in a step otherwise),
            ``prefix_cache``, ``packed_linears`` and ``kernel`` (each can be turned off).
        eos_token_ids: end the answer, unless a request ignores them.
        max_model_len: longest prompt plus completion; lowered to what the arena can hold.

    Raises:
        StartFailed: the model cannot be batched this way, or there is no memory for its cache.
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """

    name = "dense"
    supported = frozenset(PARAMS)

    def __init__(self, model: Any, config: EngineConfig, *, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        options = _checked(config.options)
        self.max_batch = config.max_batch
        self.vocab_size = model.config.get_text_config().vocab_size
        self._model = model
        self._eos_token_ids = eos_token_ids
        self._device = model.device
        shapes = layer_shapes(model)
        tokens = _arena_tokens(shapes, model, config, options, max_model_len)
        self._arena = Arena(shapes, tokens, model.dtype, model.device)
        self._cache = ArenaCache(self._arena)
        self._scheduler = Scheduler(
            self._arena.tokens,
            config.max_batch,
            prefill_chunk=options.get("prefill_chunk"),
            step_tokens=options.get("step_tokens", STEP_TOKENS),
            reuse=options.get("prefix_cache", True),
        )
        self.max_model_len = min(max_model_len, self._scheduler.longest_row)
        self._attention_before = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        on_host = model.device.type == "cpu" and model.dtype == torch.float32
        self._compiled = on_host and options.get("kernel", True) and kernels.available()
        if on_host and options.get("packed_linears", True):
            pack_linears(model)
        self._sampler = RowSampler(model.config.get_text_config().vocab_size, eos_token_ids, model.device)
        self._sampling: dict[RequestId, SamplingRow] = {}
        self._ready: list[StepOutput] = []

    # ---- the engine interface -------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> None:
        """Refuse what can never be done."""
        check_supported(self, request.params)
        check_prompt(self, request)
        self._sampler.check(request.params)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; it joins at the next step that has room for it."""
        row = Row(request, self._eos_token_ids, self.max_model_len)
        if reason := row.finish_reason():  # a continuation with nothing left to do
            self._ready.append(StepOutput(request.request_id, (), reason))
            return
        self._sampling[request.request_id] = SamplingRow(request.params, row.tokens, row.prompt_tokens)
        self._scheduler.add(row)

    def step(self) -> list[StepOutput]:
        """Compute one packed pass, and what it gives."""
        outputs, self._ready = self._ready, []
        plan = self._scheduler.plan()
        if not plan.decodes and not plan.chunks:
            return outputs
        rows, logits = self._forward(plan)
        self._scheduler.done(plan)
        if rows:
            outputs += self._sample(rows, logits)
        return outputs

    def abort(self, request_id: RequestId) -> None:
        """Drop a request before the next step."""
        self._ready = [output for output in self._ready if output.request_id != request_id]
        self._sampling.pop(request_id, None)
        self._scheduler.remove(request_id)

    def has_work(self) -> bool:
        """Whether any request is running or queued, or an end waits to be told."""
        return bool(self._scheduler.running or self._scheduler.queued or self._ready)

    def stats(self) -> EngineStats:
        """Requests, the arena's use, and what shared prefixes saved."""
        scheduler = self._scheduler
        details = {
            "cache_tokens": scheduler.total_tokens,
            "cache_tokens_used": scheduler.used_tokens,
            "prefix_hits": scheduler.prefix_hits,
            "prefix_tokens": scheduler.prefix_tokens,
            "preemptions": scheduler.preemptions,
            "attention_kernel": self._compiled,
        }
        return EngineStats(len(scheduler.running), scheduler.queued, details)

    def close(self) -> None:
        """Drop all requests, and give the model its attention back. Idempotent."""
        self._model.set_attn_implementation(self._attention_before)
        self._scheduler.clear()
        self._sampling.clear()
        self._ready.clear()

    # ---- one step -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _forward(self, plan: Plan) -> tuple[list[Row], Tensor]:
        """Run the packed pass; the rows whose last token was in it, and their next tokens' logits."""
        for copy in plan.copies:
            self._arena.copy(copy.source, copy.target, copy.length)
        decodes = [_span(row, 1) for row in plan.decodes]
        chunks = [_span(row, count) for row, count in plan.chunks]
        ids = [row.tokens[-1] for row in plan.decodes]
        last: list[int] = list(range(len(ids)))
        rows = list(plan.decodes)
        for row, count in plan.chunks:
            ids += row.tokens[row.computed : row.computed + count]
            if count == row.pending:
                rows.append(row)
                last.append(len(ids) - 1)
        with Step(self._arena, decodes, chunks, compiled=self._compiled) as step:
            logits: Tensor = self._model(
                input_ids=self._tensor(ids)[None],
                position_ids=self._tensor(step.positions())[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=self._tensor(last),
            ).logits[0]
        return rows, logits

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def _sample(self, rows: list[Row], logits: Tensor) -> list[StepOutput]:
        sampled = self._sampler.sample(logits.float(), [self._sampling[row.request.request_id] for row in rows])
        outputs = []
        for index, (row, token_id) in enumerate(zip(rows, sampled.token_ids, strict=True)):
            row.tokens.append(token_id)
            reason = row.finish_reason()
            if reason is not None:
                self._scheduler.remove(row.request.request_id)
                del self._sampling[row.request.request_id]
            outputs.append(StepOutput(row.request.request_id, (token_id,), reason, logprobs=sampled.of(index)))
        return outputs


def _span(row: Row, count: int) -> Span:
    assert row.region is not None
    return Span(row.region, row.computed, count)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options, with the right types.

    Raises:
        InvalidParameter
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        kind = OPTIONS.get(name)
        if kind is None:
            raise InvalidParameter(f"The dense engine has no option {name!r}; it has {', '.join(OPTIONS)}.")
        right = isinstance(value, bool) if kind is bool else isinstance(value, int | float) and value > 0
        if not right or (isinstance(value, bool) and kind is not bool):
            what = "true or false" if kind is bool else "a number above 0"
            raise InvalidParameter(f"The dense engine's option {name} must be {what}, not {value!r}.")
        checked[name] = kind(value)
    return checked


@torch.inference_mode()
def layer_shapes(model: Any) -> list[LayerShape]:
    """The geometry of each layer's cache, from a pass of two tokens through the untouched model.

    Raises:
        StartFailed: its cache is not one of keys and values alone.
    """
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        raise StartFailed("The model's cache does not consist of keys and values alone, so its rows cannot be batched.")
    return [LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]


def _arena_tokens(
    shapes: Sequence[LayerShape], model: Any, config: EngineConfig, options: Mapping[str, Any], max_model_len: int
) -> int:
    """How many tokens the arena gets: what was asked for, or a fair share of what is free.

    Raises:
        StartFailed: not even the smallest region fits.
    """
    per_token: int = sum(shape.numbers_per_token for shape in shapes) * model.dtype.itemsize
    if "cache_gib" in options:
        budget = int(options["cache_gib"] * 2**30)
    elif model.device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(model.device)[0] * 0.8)
    else:
        budget = int(psutil.virtual_memory().available * MEMORY_SHARE * config.machine_share)
    # Regions are powers of two, so rows of the full length may need twice as much.
    tokens = min(budget // per_token, 2 * config.max_batch * (max_model_len + MIN_CAPACITY))
    if tokens < MIN_CAPACITY:
        raise StartFailed(
            f"There is no memory for keys and values: one token takes {per_token:,} bytes, and the budget is "
            f"{budget:,} bytes. Give it more with --engine-option cache_gib=N."
        )
    return tokens
