"""Norms, feed-forward blocks and attention of a model's layers in as few operations as can be, for float32 on the CPU.

In a decode step the operations between the matrix products cost more by being called than by what they compute. Here
modules that are known by what they consist of get another ``forward``, made of packed products (``packed_group``) and
compiled operations (``small_ops``). Whether a module really computes what its parts suggest is not believed but tried,
on numbers that tell it from the known alternatives; a module that differs keeps its own code, and so does all that the
model is asked to compute without the engine's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

from samplerpool.engine import small_ops
from samplerpool.engine.arena import MIN_CAPACITY, Arena, Region
from samplerpool.engine.dense_attention import ArenaCache, attend
from samplerpool.engine.packed_group import GroupedLinear, PackedGroup
from samplerpool.engine.packed_linear import has_hooks
from samplerpool.engine.packed_step import Call, Span, Step, current_step

log = logging.getLogger(__name__)

_TOLERANCE = 1e-5
"""Of a trial, relative to the largest output: rounding, not another formula."""

_PROBE_TOKENS = 5

_ATTENTION_NAMES = frozenset(
    (
        *("ALL_ATTENTION_FUNCTIONS", "_attn_implementation", "apply_rotary_pos_emb", "attention_dropout"),
        *("attn_logit_softcapping", "config", "contiguous", "eager_attention_forward", "get_interface", "getattr"),
        *("head_dim", "k_norm", "k_proj", "layer_idx", "o_proj", "q_norm", "q_proj", "reshape", "scaling", "shape"),
        *("sinks", "sliding_window", "training", "transpose", "update", "v_proj", "view"),
    )
)
"""All that the code of an attention module may refer to. Something more, such as a temperature that changes at a far
position, might not show in a trial."""

_BLOCK_NAMES = frozenset(
    (
        *("act_fn", "activation_fn", "down_proj", "gate_proj", "up_proj"),
        *("dropout", "functional", "nn", "residual_dropout", "training"),
    )
)
"""The same of a feed-forward block: a limit of the gate, say, shows only in numbers beyond it."""


class FusedLayers:
    """What was replaced in a model, until ``undo``.

    Hooks of the replaced modules go on to be called; those that are put later on the layers of a group are not.

    Args:
        model: a causal language model of transformers whose attention is ``packed_attention`` and whose linear layers
            are packed.
        cache: that is passed to it; of
        arena: not in use yet, as trials write to it.
    """

    def __init__(self, model: nn.Module, cache: ArenaCache, arena: Arena) -> None:
        self.norms = self.blocks = self.attentions = 0
        self._replaced: list[nn.Module] = []
        if reason := small_ops.why_unavailable():
            log.warning("the layers keep their own code, which is slower: %s", reason)
            return
        with torch.inference_mode():
            self._fuse(model, cache, arena)
        log.info("replaced %d attentions, %d blocks, %d norms", self.attentions, self.blocks, self.norms)

    def _fuse(self, model: nn.Module, cache: ArenaCache, arena: Arena) -> None:
        # From the outside in: a trial compares with the module's own code all the way down.
        modules = [module for module in model.modules() if "forward" not in vars(module)]
        self.attentions = self._replace(modules, lambda module: _attention(module, cache, arena))
        self.blocks = self._replace(modules, _block)
        self.norms = self._replace(modules, find_norm)

    def _replace(self, modules: list[nn.Module], better: Callable[[Any], Callable[..., Any] | None]) -> int:
        count = len(self._replaced)
        for module in modules:
            try:
                forward = better(module)
            except Exception:  # whatever a module that has another form than its names suggest stumbles over
                log.debug("a %s keeps its own code", type(module).__name__, exc_info=True)
                continue
            if forward is not None:
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
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def _times(probe: Tensor, *sizes: float) -> Tensor:
    """Each row multiplied by its size."""
    return probe * torch.tensor(sizes, dtype=torch.float32)[:, None]


def _is_known(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether the module's code refers to nothing but these names, so that a trial shows all that it does."""
    forward = type(module).forward
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    code = forward.__code__
    within = code.co_freevars or any(isinstance(constant, CodeType) for constant in code.co_consts)
    return not within and names.issuperset(code.co_names)


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
    probe = _times(_probe(5, len(weight)), 1.0, 30.0, 1e4, 0.1, max(eps, 1e-12) ** 0.5)
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
    if group is None or not isinstance(down, nn.Module) or not _is_known(module, _BLOCK_NAMES):
        return None
    if not small_ops.fits(group.sizes[0]):
        return None
    probe = _times(_probe(1, 4, module.gate_proj.in_features), 1.0, 0.1, 5.0, 30.0)
    for gate in (small_ops.SILU, small_ops.GELU_TANH):
        block = Block(group, gate, down)
        with suppress(Exception):  # whatever a module of another kind raises
            found, expected = block(probe)[0], module(probe)[0]
            if all(_agree(one, other) for one, other in zip(found, expected, strict=True)):
                return block
    return None


def _group_of(module: nn.Module, *names: str) -> PackedGroup | None:
    """The group that just these layers are, in this order, if nobody wants to be told when they are called."""
    layers = [getattr(module, name, None) for name in names]
    if not all(isinstance(layer, GroupedLinear) and not has_hooks(layer) for layer in layers):
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
            step.write_index(self._kv_heads, self._keys.device),
            self._keys,
            self._values,
            heads=self._heads,
            norms=self._norms,
        )
        return self._output(attend(step, self._layer, query, self._call).flatten(2)), None


def _attention(module: Any, cache: ArenaCache, arena: Arena) -> Attention | None:
    group = _group_of(module, "q_proj", "k_proj", "v_proj")
    output = getattr(module, "o_proj", None)
    if group is None or not isinstance(output, nn.Module) or not _is_known(module, _ATTENTION_NAMES):
        return None
    shape = arena.shapes[module.layer_idx]
    dim = shape.key_dim
    if dim != shape.value_dim or group.sizes[1:] != [shape.kv_heads * dim] * 2 or not small_ops.fits(dim):
        return None
    norms = None
    if hasattr(module, "q_norm"):
        if has_hooks(module.q_norm) or has_hooks(module.k_norm):
            return None
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
