"""The dense engine: in-flight batching over an arena of keys and values, one packed forward pass a step.

Decode rows and prefill chunks share a ``[1, N]`` pass without padding. A new request joins at the next step and a
finished one leaves at once. Attention reads the arena (``dense_attention``); what happens in a step is decided by
``schedule``; what the tokens are, by the row sampler.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.adapters import Adapters
from samplerpool.engine.base import EngineStats
from samplerpool.engine.batched import OPTIONS, BatchedEngine, checked_options, keys_per_token
from samplerpool.engine.packed_passes import PackedPasses
from samplerpool.engine.packed_step import Span
from samplerpool.engine.ranks import ALONE, Group, SharedPasses
from samplerpool.engine.schedule import STEP_TOKENS, Copy, Plan, Row, Scheduler


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
        group: of processes among which the model is divided, whose rank 0 this is.

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
        group: Group = ALONE,
    ) -> None:
        options = checked_options(self.name, config.options, OPTIONS)

        def own() -> PackedPasses:
            return PackedPasses(model, config, max_model_len, group.size)

        self._group = group
        self._passes = own() if group.size == 1 else SharedPasses(own, group, config, max_model_len)
        self._arena = self._passes.arena
        scheduler = Scheduler(
            self._arena.tokens,
            config.max_batch,
            prefill_chunk=options.get("prefill_chunk"),
            keys_per_token=keys_per_token(model, self._passes.shapes),
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
        self._adapters.attach(model)

    def stats(self) -> EngineStats:
        """Also whether the compiled kernel attends, and among how many processes the model is divided."""
        stats = super().stats()
        ranks = {"tensor_parallel": self._group.size} if self._group.size > 1 else {}
        return replace(stats, details={**stats.details, "attention_kernel": self._passes.compiled, **ranks})

    def close(self) -> None:
        """Drop all requests, and give the model its attention back. Idempotent."""
        self._passes.close()
        super().close()

    def _copy(self, copy: Copy) -> None:
        self._passes.copy(copy.source, copy.target, copy.length)

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
        return rows, self._passes.run(decodes, chunks, ids, last)


def _span(row: Row, count: int) -> Span:
    assert row.region is not None
    return Span(row.region, row.computed, count)
