"""What one process does for the dense engine: packed passes over its model and its arena, as it is told.

A model that is divided among several processes (``ranks``) has one of these in each: the engine, which decides and
samples, is in the first alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import kernels
from samplerpool.engine.arena import MIN_CAPACITY, Arena, Region
from samplerpool.engine.batched import OPTIONS, cache_tokens, checked_options, layer_shapes
from samplerpool.engine.dense_attention import IMPLEMENTATION, ArenaCache, packed_attention
from samplerpool.engine.fused_layers import FusedLayers
from samplerpool.engine.packed_group import pack_groups
from samplerpool.engine.packed_linear import pack_linears
from samplerpool.engine.packed_step import Span, Step
from samplerpool.engine.ranks import least_of_all, limit_waiting

log = logging.getLogger(__name__)

AttentionInterface.register(IMPLEMENTATION, packed_attention)


class PackedPasses:
    """A model with its arena.

    Args:
        model: a causal language model of transformers, on its device. Its attention implementation is replaced until
            ``close``, and on CPU its linear layers are prepacked for good, unless they are divided among ranks or have
            hooks.
        config: as for ``DenseEngine``.
        max_model_len: longest prompt plus completion.
        ranks: processes among which the model is divided; the arena then holds this one's heads.

    Raises:
        StartFailed: the model cannot be batched this way, or there is no memory for its cache.
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """

    def __init__(self, model: Any, config: EngineConfig, max_model_len: int, ranks: int = 1) -> None:
        options = checked_options("dense", config.options, OPTIONS)
        self._model = model
        self.shapes = layer_shapes(model)
        # Regions are powers of two, so rows of the full length may need twice as much.
        most = 2 * config.max_batch * (max_model_len + MIN_CAPACITY)
        tokens = cache_tokens(self.shapes, model, config, options.get("cache_gib"), least=MIN_CAPACITY, most=most)
        if ranks > 1:
            limit_waiting(model)
            tokens = least_of_all(tokens, model.device)
        self.arena = Arena(self.shapes, tokens, model.dtype, model.device)
        self._cache = ArenaCache(self.arena)
        self._attention_before = model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)
        on_host = model.device.type == "cpu" and model.dtype == torch.float32
        self.compiled = on_host and options.get("kernel", True) and _kernel_available()
        if on_host and ranks == 1 and options.get("packed_linears", True):
            pack_groups(model, compiled=self.compiled)
            pack_linears(model, compiled=self.compiled)
        self.fused = FusedLayers(model, self._cache, self.arena) if self.compiled and ranks == 1 else None

    @torch.inference_mode()
    def copy(self, source: Region, target: Region, length: int) -> None:
        """Copy a row's first tokens to another region."""
        self.arena.copy(source, target, length)

    @torch.inference_mode()
    def run(self, decodes: Sequence[Span], chunks: Sequence[Span], ids: Sequence[int], last: Sequence[int]) -> Tensor:
        """One packed pass.

        Args:
            ids: the tokens of all spans, one behind the other.
            last: places among them behind which the next token's logits are wanted.

        Returns:
            Shape [len(last), vocabulary].
        """
        with Step(self.arena, decodes, chunks, compiled=self.compiled) as step:
            logits: Tensor = self._model(
                input_ids=self._tensor(ids)[None],
                position_ids=self._tensor(step.positions())[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=self._tensor(last),
            ).logits[0]
        return logits

    def close(self) -> None:
        """Give the model its own attention and layers back. Idempotent."""
        if self.fused is not None:
            self.fused.undo()
        self._model.set_attn_implementation(self._attention_before)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.device)


def _kernel_available() -> bool:
    reason = kernels.why_unavailable()
    if reason is not None:
        log.warning("attention is computed by torch alone, which is slower: %s", reason)
    return reason is None
