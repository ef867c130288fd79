"""The dense engine: in-flight batching over an arena of keys and values, one packed forward pass a step.

Decode rows and prefill chunks share a ``[1, N]`` pass without padding. A new request joins at the next step and a
finished one leaves at once. Attention reads the arena (``dense_attention``); what happens in a step is decided by
``schedule``; what the tokens are, by the row sampler.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import kernels
from samplerpool.engine.adapters import Adapters
from samplerpool.engine.arena import MIN_CAPACITY, Arena
from samplerpool.engine.base import EngineStats
from samplerpool.engine.batched import (
    OPTIONS,
    BatchedEngine,
    cache_tokens,
    checked_options,
    keys_per_token,
    layer_shapes,
)
from samplerpool.engine.dense_attention import IMPLEMENTATION, ArenaCache, packed_attention
from samplerpool.engine.fused_layers import FusedLayers
from samplerpool.engine.packed_group import pack_groups
from samplerpool.engine.packed_linear import pack_linears
from samplerpool.engine.packed_step import Span, Step
from samplerpool.engine.schedule import STEP_TOKENS, Plan, Row, Scheduler

log = logging.getLogger(__name__)

AttentionInterface.register(IMPLEMENTATION, packed_attention)


class DenseEngine(BatchedEngine):
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

    def __init__(
        self,
        model: Any,
        config: EngineConfig,
        *,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        options = checked_options(self.name, config.options, OPTIONS)
        shapes = layer_shapes(model)
        # Regions are powers of two, so rows of the full length may need twice as much.
        most = 2 * config.max_batch * (max_model_len + MIN_CAPACITY)
        tokens = cache_tokens(shapes, model, config, options.get("cache_gib"), least=MIN_CAPACITY, most=most)
        self._arena = Arena(shapes, tokens, model.dtype, model.device)
        self._cache = ArenaCache(self._arena)
        scheduler = Scheduler(
            self._arena.tokens,
            config.max_batch,
            prefill_chunk=options.get("prefill_chunk"),
            keys_per_token=keys_per_token(model, shapes),
            step_tokens=options.get("step_tokens", STEP_TOKENS),
            reuse=options.get("prefix_cache", True),
        )
        super().__init__(
            model,
            scheduler,
            eos_token_ids=eos_token_ids,
            max_batch=config.max_batch,
            max_model_len=max_model_len,
            adapters=adapters,
        )
        self._attention_before = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        on_host = model.device.type == "cpu" and model.dtype == torch.float32
        self._compiled = on_host and options.get("kernel", True) and _kernel_available()
        if on_host and options.get("packed_linears", True):
            pack_groups(model, compiled=self._compiled)
            pack_linears(model, compiled=self._compiled)
        self._fused = FusedLayers(model, self._cache, self._arena) if self._compiled else None
        self._adapters.attach(model)

    def stats(self) -> EngineStats:
        """Also whether the compiled kernel attends."""
        stats = super().stats()
        return replace(stats, details={**stats.details, "attention_kernel": self._compiled})

    def close(self) -> None:
        """Drop all requests, and give the model its attention back. Idempotent."""
        if self._fused is not None:
            self._fused.undo()
        self._model.set_attn_implementation(self._attention_before)
        super().close()

    @torch.inference_mode()
    def _forward(self, plan: Plan) -> tuple[list[Row], Tensor]:
        """Run the packed pass; the rows whose last token was in it, and their next tokens' logits."""
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
        owners = [(row.adapter, 1) for row in plan.decodes] + [(row.adapter, count) for row, count in plan.chunks]
        self._adapters.route(owners, [row.adapter for row in rows])
        with Step(self._arena, decodes, chunks, compiled=self._compiled) as step:
            logits: Tensor = self._model(
                input_ids=self._tensor(ids)[None],
                position_ids=self._tensor(step.positions())[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=self._tensor(last),
            ).logits[0]
        return rows, logits


def _kernel_available() -> bool:
    reason = kernels.why_unavailable()
    if reason is not None:
        log.warning("attention is computed by torch alone, which is slower: %s", reason)
    return reason is None


def _span(row: Row, count: int) -> Span:
    assert row.region is not None
    return Span(row.region, row.computed, count)
