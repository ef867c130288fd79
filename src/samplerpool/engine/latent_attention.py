"""Attention of models that cache latents (multi-head latent attention, DeepSeek-V2): expanded as they are read.

The arena then holds a latent vector and a rotated key for each token, far smaller than keys and values; the module's
own ``expand_kv`` makes those of them, for all of a row's tokens at each step, as in transformers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from samplerpool.engine.packed_step import Sight, Step


def caches_latents(module: Any) -> bool:
    """Whether an attention module expands what is cached."""
    return hasattr(module, "expand_kv")


def attend_to_latents(step: Step, module: Any, sight: Sight, query: Tensor, out: Tensor, scale: float) -> None:
    """Attention of all tokens of a step, row by row.

    Args:
        query: shape [tokens, heads, key_dim].
        out: shape [tokens, heads, value_dim]; gets the result.
    """
    done = 0
    for span in (*step.decodes, *step.chunks):
        first = sight.first(span.start)
        latents, rotated = (view[None, :, first:] for view in step.arena.views(module.layer_idx, span.region, span.end))
        keys, values = module.expand_kv(latents, rotated)
        tokens = slice(done, done + span.count)
        bias = None if span.count == 1 else step.chunk_bias(span, sight, query)[:, first:]
        rows = query[tokens].transpose(0, 1)[None]
        result = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=bias, scale=scale)
        out[tokens] = result[0].transpose(0, 1)
        done += span.count
