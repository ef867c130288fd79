"""Norms, feed-forward blocks and attention of a model's layers in as few operations as can be, for float32 on the CPU.

In a decode step the operations between the matrix products cost more by being called than by what they compute. Here
modules that are known by what they consist of get another ``forward``, made of packed products (``packed_group``) and
compiled operations (``small_ops``). Whether a module really computes what its parts suggest is not believed but tried,
on numbers that tell it from the known alternatives; a module that differs keeps its own code, and so does all that the
model is asked to compute without the engine's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from samplerpool.engine import small_ops
from samplerpool.engine.arena import MIN_CAPACITY, Arena, Region
from samplerpool.engine.dense_attention import ArenaCache, Call, Span, Step, attend, current_step
from samplerpool.engine.packed_group import GroupedLinear, PackedGroup

_TOLERANCE = 1e-5
"""Of a trial, relative to the largest output: rounding, not another formula."""

_PROBE_TOKENS = 5

_KNOWN_NAMES = frozenset(
    (
        *("ALL_ATTENTION_FUNCTIONS", "_attn_implementation", "apply_rotary_pos_emb", "attention_dropout"),
        *("attn_logit_softcapping", "config", "contiguous", "eager_attention_forward", "get_interface", "getattr"),
        *("head_dim", "k_norm", "k_proj", "layer_idx", "o_proj", "q_norm", "q_proj", "reshape", "scaling", "shape"),
        *("sinks", "sliding_window", "training", "transpose", "update", "v_proj", "view"),
    )
)
"""All that the code of an attention module may refer to. Something more, such as a temperature that changes at a far
position, might not show in a trial."""


class FusedLayers:
    """What was replaced in a model, until ``undo``.

    Args:
        model: a causal language model of transformers whose attention is ``packed_attention`` and whose linear layers
            are packed.
        cache: that is passed to it; of
        arena: not in use yet, as trials write to it.
    """

    def __init__(self, model: nn.Module, cache: ArenaCache, arena: Arena) -> None:
        self.norms = self.blocks = self.attentions = 0
        self._replaced: list[nn.Module] = []
        if small_ops.why_unavailable() is None:
            with torch.inference_mode():
                self._fuse(model, cache, arena)

    def _fuse(self, model: nn.Module, cache: ArenaCache, arena: Arena) -> None:
        # From the outside in: a trial compares with the module's own code all the way down.
        modules = [module for module in model.modules() if "forward" not in vars(module)]
        self.attentions = self._replace(modules, lambda module: _attention(module, cache, arena))
        self.blocks = self._replace(modules, _block)
        self.norms = self._replace(modules, find_norm)

    def _replace(self, modules: list[nn.Module], better: Callable[[Any], Callable[..., Any] | None]) -> int:
        count = len(self._replaced)
        for module in modules:
            if (forward := better(module)) is not None:
                module.forward = forward  # on the instance: its class, and other models, keep theirs
                self._replaced.append(module)
        return len(self._replaced) - count

    def undo(self) -> None:
        """Give all modules their own code back. Idempotent."""
        for module in self._replaced:
            del module.forward
        self._replaced.clear()


def _agree(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * other.abs().max())


def _probe(*shape: int) -> Tensor:
    """Numbers without a pattern that a formula could hide behind, always the same ones."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- norms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Norm:
    """Root mean square normalization over the last dimension."""

    weight: Tensor
    eps: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        return small_ops.rms_norm(hidden_states, self.weight, self.eps)


def find_norm(module: nn.Module) -> Norm | None:
    """The norm that a module is, if it is one of this kind."""
    parameters = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = parameters.get("weight")
    if len(parameters) != 1 or weight is None or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if weight.dtype is not torch.float32 or weight.device.type != "cpu" or not small_ops.fits(len(weight)):
        return None
    # Rows of all sizes: in the smallest, eps decides.
    probe = _probe(4, len(weight)) * torch.tensor([1.0, 30.0, 0.1, max(eps, 1e-12) ** 0.5])[:, None]
    for scale in (weight.detach(), 1 + weight.detach()):
        norm = Norm(scale, eps)
        with suppress(Exception):  # whatever a module of another kind raises
            expected = module(probe)
            found = norm(probe)
            if all(_agree(one, other) for one, other in zip(found, expected, strict=True)):
                return norm
    return None


# ---- feed-forward blocks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """``down(activation(gate(x)) * up(x))``."""

    group: PackedGroup
    gate: small_ops.Gate
    down: nn.Module

    def __call__(self, hidden_states: Tensor) -> Tensor:
        return cast(Tensor, self.down(small_ops.gated(self.group.multiply(hidden_states), self.gate)))


def _block(module: Any) -> Block | None:
    group, down = _group_of(module, "gate_proj", "up_proj"), getattr(module, "down_proj", None)
    if group is None or not isinstance(down, nn.Module) or not small_ops.fits(group.sizes[0]):
        return None
    width = module.gate_proj.in_features
    probe = _probe(1, 4, width) * torch.tensor([1.0, 0.1, 5.0, 30.0])[:, None]
    for gate in (small_ops.SILU, small_ops.GELU_TANH):
        block = Block(group, gate, down)
        with suppress(Exception):  # whatever a module of another kind raises
            found, expected = block(probe)[0], module(probe)[0]
            if all(_agree(one, other) for one, other in zip(found, expected, strict=True)):
                return block
    return None


def _group_of(module: nn.Module, *names: str) -> PackedGroup | None:
    """The group that just these layers are, in this order."""
    layers = [getattr(module, name, None) for name in names]
    if not all(isinstance(layer, GroupedLinear) for layer in layers):
        return None
    groups = {id(layer.group): layer.group for layer in layers if isinstance(layer, GroupedLinear)}
    group = next(iter(groups.values()))
    return group if len(groups) == 1 and len(group.sizes) == len(names) else None


# ---- attention ----------------------------------------------------------------------------------------------------


class Attention:
    """Queries, keys and values by one product; rotary embedding and cache in one pass; then ``attend``.

    Args:
        module: the layer's, with its own code.
        call: how it attends.
        norms: of queries and keys, where it has them.
    """

    def __init__(
        self,
        module: Any,
        group: PackedGroup,
        cache: ArenaCache,
        arena: Arena,
        call: Call,
        norms: tuple[Norm, Norm] | None,
    ) -> None:
        self._own_forward = type(module).forward.__get__(module)
        self._group, self._output = group, module.o_proj
        self._cache, self._call = cache, call
        self._layer: int = module.layer_idx
        self._keys, self._values = arena.keys[self._layer], arena.values[self._layer]
        shape = arena.shapes[self._layer]
        self._kv_heads = shape.kv_heads
        self._heads = group.sizes[0] // shape.key_dim
        self._norms = None if norms is None else (norms[0].weight, norms[1].weight, norms[0].eps)

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the module does; ``hidden_states`` has the shape [1, tokens of the step, width]."""
        if past_key_values is not self._cache or position_embeddings is None:
            return cast(
                "tuple[Tensor, Tensor | None]",
                self._own_forward(
                    hidden_states,
                    position_embeddings=position_embeddings,
                    attention_mask=attention_mask,
                    past_key_values=past_key_values,
                    **kwargs,
                ),
            )
        step = current_step()
        query = small_ops.rotate_and_keep(
            self._group.multiply(hidden_states)[0],
            position_embeddings[0][0],
            position_embeddings[1][0],
            step.write_index(self._kv_heads),
            self._keys,
            self._values,
            heads=self._heads,
            norms=self._norms,
        )
        return self._output(attend(step, self._layer, query, self._call).flatten(2)), None


def _attention(module: Any, cache: ArenaCache, arena: Arena) -> Attention | None:
    group = _group_of(module, "q_proj", "k_proj", "v_proj")
    if group is None or not isinstance(getattr(module, "o_proj", None), nn.Module) or not _is_known(module):
        return None
    shape = arena.shapes[module.layer_idx]
    dim = shape.key_dim
    if dim != shape.value_dim or group.sizes[1:] != [shape.kv_heads * dim] * 2 or not small_ops.fits(dim):
        return None
    norms = None
    if hasattr(module, "q_norm"):
        query_norm, key_norm = find_norm(module.q_norm), find_norm(module.k_norm)
        if query_norm is None or key_norm is None or query_norm.eps != key_norm.eps:
            return None
        norms = query_norm, key_norm
    with suppress(Exception):  # whatever a module of another kind raises
        calls, expected = _tried(module, module, cache, arena)
        fused = Attention(module, group, cache, arena, calls[0], norms)
        _, found = _tried(module, fused, cache, arena)
        if len(calls) == 1 and all(map(_agree, found, expected)):
            return fused
    return None


def _is_known(module: nn.Module) -> bool:
    """Whether the module's code refers to nothing but what a trial can show."""
    forward = type(module).forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    return _KNOWN_NAMES.issuperset(forward.__code__.co_names)


def _tried(
    module: Any, forward: Callable[..., Any], cache: ArenaCache, arena: Arena
) -> tuple[list[Call], tuple[Tensor, Tensor, Tensor]]:
    """Attend to a chunk of tokens; how that was done, what came out, and the keys and values that were kept."""
    layer, region = module.layer_idx, Region(0, MIN_CAPACITY)
    # Angles without the usual pattern, so that other ways to rotate give something else.
    angles = _probe(2, _PROBE_TOKENS, arena.shapes[layer].key_dim)
    with Step(arena, [], [Span(region, 0, _PROBE_TOKENS)]) as step:
        output = forward(
            hidden_states=_probe(1, _PROBE_TOKENS, module.q_proj.in_features),
            position_embeddings=(angles[:1], angles[1:]),
            attention_mask=None,
            past_key_values=cache,
        )[0]
    keys, values = arena.views(layer, region, _PROBE_TOKENS)
    found = (output, keys.clone(), values.clone())
    keys.zero_()
    values.zero_()
    return step.calls, found
