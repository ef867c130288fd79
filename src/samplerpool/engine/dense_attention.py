"""Attention over the arena: what the model's layers call, for decode rows and prefill chunks of one packed step.

The model runs on ``[1, N]`` tokens without a mask. Its layers hand new keys and values to the cache (``ArenaCache``),
which only writes them, and then call ``packed_attention``, which reads what each token may see from the arena: all at
once by the compiled kernel, or in pure torch, decode rows by grouped matrix products and prefill chunks one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from samplerpool.engine.arena import Arena
from samplerpool.engine.latent_attention import attend_to_latents, caches_latents
from samplerpool.engine.packed_step import Call, Sight, Span, Step, current_step

IMPLEMENTATION = "samplerpool"
"""The name under which transformers knows this attention."""


class ArenaCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """What the model takes for its ``past_key_values``: writes this step's keys and values into the arena."""

    def __init__(self, arena: Arena) -> None:
        super().__init__(layers=[])
        self._arena = arena

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write, and give back what came: attention reads from the arena."""
        index = (current_step().write_index(keys.shape[1], keys.device),)
        for target, new in ((self._arena.keys[layer_idx], keys), (self._arena.values[layer_idx], values)):
            target.index_put_(index, new[0].transpose(0, 1).reshape(-1, new.shape[-1]))  # index_copy_ is slow here
        return keys, values

    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Tokens before this step's. Models are given their positions and need it not, but for Llama 4.

        Its layers ask by their number and add the answer to 0, 1, 2 ..., so they get what makes positions of that.
        """
        if layer_idx is None:
            return 0
        step, device = current_step(), self._arena.keys[layer_idx].device
        return torch.tensor(step.positions(), device=device) - torch.arange(step.tokens, device=device)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call.

    Args:
        query: shape [1, heads, N, key_dim]; ``key`` and ``value`` [1, kv_heads, N, dim] are in the arena already.

    Returns:
        Shape [1, N, heads, value_dim].
    """
    step = current_step()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(scale, sight_of(module, sliding_window), softcap, s_aux)
    rows = query[0].transpose(0, 1)  # [N, heads, dim]
    if not caches_latents(module):
        return attend(step, module.layer_idx, rows, call), None
    out = query.new_empty(1, step.tokens, query.shape[1], value.shape[-1])
    attend_to_latents(step, module, call.sight, rows, out[0], scale)
    return out, None


def attend(step: Step, layer: int, query: Tensor, call: Call) -> Tensor:
    """Attention of all tokens of a step, whose keys and values are in the arena already.

    Args:
        query: shape [tokens, heads, key_dim].

    Returns:
        Shape [1, tokens, heads, value_dim].
    """
    step.calls.append(call)
    shape = step.arena.shapes[layer]
    out = query.new_empty(1, step.tokens, query.shape[1], shape.value_dim)
    if step.compiled:
        step.kernel_plan(call.sight, query.shape[1] // shape.kv_heads).run(
            query,
            out[0],
            kv_heads=shape.kv_heads,
            scaling=call.scaling,
            layer=layer,
            sliding_window=call.sight.window or None,
            softcap=call.softcap,
            sinks=call.sinks,
        )
        return out
    count = len(step.decodes)
    if count:
        _decode(step, layer, query[:count], out[0], call)
    for chunk in step.chunks:
        tokens = slice(count, count + chunk.count)
        _prefill(step, layer, chunk, query[tokens], out[0, tokens], call)
        count += chunk.count
    return out


def sight_of(module: Any, sliding_window: int | None) -> Sight:
    """How far a layer sees. Llama 4 says it by the layer's kind, the others by an argument of each call."""
    config = getattr(module, "config", None)
    chunk = getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if chunk and kinds and kinds[module.layer_idx] == "chunked_attention":
        return Sight(chunk=chunk)
    return Sight(window=sliding_window or 0)


def _decode(step: Step, layer: int, query: Tensor, out: Tensor, call: Call) -> None:
    """Decode rows in pure torch: one grouped matrix product for each run of neighbouring regions."""
    heads = query.shape[1]
    for index, first, spans in step.runs():
        rows, length = len(spans), max(span.end for span in spans)
        keys, values = step.arena.run_views(layer, first, rows, length)
        grouped = query[index : index + rows].reshape(rows, keys.shape[1], heads // keys.shape[1], -1)
        bias = step.bias(spans, call.sight, query)
        result = _attend(grouped * call.scaling, keys, values, bias, call.softcap, call.sinks)
        out[index : index + rows] = result.reshape(rows, heads, -1)


def _prefill(step: Step, layer: int, chunk: Span, query: Tensor, out: Tensor, call: Call) -> None:
    """One chunk: the query heads of a kv head are its rows, so keys are not repeated."""
    first = call.sight.first(chunk.start)
    keys, values = (view[:, first:] for view in step.arena.views(layer, chunk.region, chunk.end))
    kv_heads, group = keys.shape[0], query.shape[1] // keys.shape[0]
    grouped = query.reshape(chunk.count, kv_heads, group, -1).permute(1, 2, 0, 3)  # [kv, group, tokens, dim]
    bias = step.chunk_bias(chunk, call.sight, query)[:, first:]
    if call.softcap or call.sinks is not None:
        flat = (grouped * call.scaling).reshape(1, kv_heads, group * chunk.count, -1)
        repeated = None if call.sinks is None else call.sinks.repeat_interleave(chunk.count)
        result = _attend(flat, keys[None], values[None], bias.repeat(group, 1), call.softcap, repeated)
        result = result.view(kv_heads, group, chunk.count, -1)
    else:
        result = functional.scaled_dot_product_attention(
            grouped,
            keys[:, None].expand(-1, group, -1, -1),
            values[:, None].expand(-1, group, -1, -1),
            attn_mask=bias,
            scale=call.scaling,
        )
    out.copy_(result.permute(2, 0, 1, 3).reshape(chunk.count, query.shape[1], -1))


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention by plain products.

    Args:
        query: scaled, shape [rows, kv_heads, queries, dim].
        keys, values: shape [rows, kv_heads, keys, dim].
        bias: additive mask that broadcasts to [rows, kv_heads, queries, keys].
        sinks: one further logit a query head, shape [kv_heads * queries].
    """
    scores = torch.matmul(query, keys.transpose(-1, -2))
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    if sinks is None:
        return torch.matmul(torch.softmax(scores.float(), -1).to(values.dtype), values)
    extra = sinks.view(1, scores.shape[1], scores.shape[2], 1).expand(scores.shape[0], -1, -1, -1)
    weights = torch.softmax(torch.cat((scores, extra.to(scores.dtype)), -1).float(), -1)[..., :-1]
    return torch.matmul(weights.to(values.dtype), values)
