"""Linear layers with packed weights (``packed_weight``), in place of a model's own, for float32 on the CPU."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from samplerpool.engine.packed_weight import PackedWeight, why_not

log = logging.getLogger(__name__)

SMALLEST = 1 << 18
"""Elements of a weight below which the operator's fixed cost (about 30 µs) is more than packing saves."""


@dataclass(frozen=True, slots=True)
class PackReport:
    """What ``pack_linears`` did."""

    packed: int
    """Layers that now multiply packed weights."""
    kept: int
    """Linear layers that were left as they were."""
    packed_bytes: int
    """Size of the packed weights."""
    extra_bytes: int
    """How much of that is additional: copies of weights that something else holds too, such as tied embeddings."""
    reason: str | None = None
    """Why nothing was packed, if so."""


class PackedLinear(nn.Linear):
    """A linear layer over a packed weight. For inference: a gradient goes through to the input alone, and slowly.

    ``weight`` can still be read, and is in the ``state_dict``: a tied weight is the shared parameter itself, any other
    is unpacked at each reading. It cannot be loaded or changed.
    """

    def __init__(self, packed: PackedWeight, bias: Any, *, tied: Any = None, transposed: bool = False) -> None:
        """
        Args:
            bias: the parameter that ``packed`` adds, or None.
            tied: the weight's parameter, where something else holds it too.
            transposed: the ``state_dict`` is to have the weight's transpose, as ``Conv1D`` had.
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = packed.outputs, packed.inputs
        self.register_parameter("bias", bias)
        if tied is not None:
            self.register_parameter("weight", tied)
        self._packed, self._transposed = packed, transposed

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "weight" not in self._parameters:
            return self._packed.dense()
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        if input.requires_grad or input.dim() < 2 or not input.numel():
            return F.linear(input, self.weight, self.bias)
        return self._packed.multiply(input)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "weight" not in self._parameters:
            destination[prefix + "weight"] = self.weight.t().contiguous() if self._transposed else self.weight

    def _load_from_state_dict(self, *_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("This model's linear layers are packed, so it takes no new weights: load them, then pack.")


def pack_linears(model: nn.Module, *, enabled: bool = True, compiled: bool = True) -> PackReport:
    """Replace a model's linear layers (and GPT-2's ``Conv1D``) by packed ones, in place, where that makes them faster.

    Each weight is given up as soon as it is packed, so memory grows by one layer at a time and shrinks again; only tied
    weights stay beside their packed copies. Outputs equal those before up to float32 rounding.

    Args:
        model: on the CPU, for inference only from then on. Layers that are not float32, not on the CPU, small, of a
            class derived from ``nn.Linear``, or with hooks, stay as they are.
        enabled: False does nothing but count.
        compiled: whether the compiled product of few rows may be used.
    """
    sites: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):
                sites.setdefault(child, []).append((parent, name))
    reason = why_not() if enabled else "switched off"
    if reason is not None:
        log.info("no linear layers are packed: %s", reason)
        return PackReport(packed=0, kept=len(sites), packed_bytes=0, extra_bytes=0, reason=reason)
    return _pack_sites(model, sites, compiled)


def _pack_sites(model: nn.Module, sites: dict[nn.Module, list[tuple[nn.Module, str]]], compiled: bool) -> PackReport:
    shared = shared_weights(model)
    packed = kept = packed_bytes = extra_bytes = 0
    while sites:  # emptied on the way: what is replaced must not be held here
        layer, places = sites.popitem()
        tied = shared[cast(Tensor, layer.weight).data_ptr()] > len(places)
        replacement = _replacement(layer, tied, compiled)
        if replacement is None:
            kept += 1
            continue
        for parent, name in places:
            parent.register_module(name, replacement)
        size = 4 * replacement.in_features * replacement.out_features
        packed, packed_bytes, extra_bytes = packed + 1, packed_bytes + size, extra_bytes + size * tied
    return PackReport(packed, kept, packed_bytes, extra_bytes)


def _replacement(layer: nn.Module, tied: bool, compiled: bool) -> PackedLinear | None:
    """The packed form of a layer, or None if the layer is better left alone."""
    parameter = cast(nn.Parameter, layer.weight)
    if not _is_packable(layer, parameter):
        return None
    transposed = isinstance(layer, Conv1D)
    weight = parameter.detach().t().contiguous() if transposed else parameter.detach()
    bias = cast("Tensor | None", layer.bias)
    packed = PackedWeight(weight, bias, compiled=compiled)
    if not packed.is_right(weight):
        return None
    keep = parameter if tied and not transposed else None
    replacement = PackedLinear(packed, bias, tied=keep, transposed=transposed)
    return replacement.train(layer.training)


def shared_weights(model: nn.Module) -> Counter[int]:
    """Addresses of weights to how many names they have, for those with several."""
    holders = Counter(parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False))
    return Counter({address: count for address, count in holders.items() if count > 1})


def _is_packable(layer: nn.Module, weight: Tensor) -> bool:
    return is_plain(layer, weight) and weight.numel() >= SMALLEST


def is_plain(layer: nn.Module, weight: Tensor) -> bool:
    """Whether a layer does nothing but multiply a float32 matrix on the CPU."""
    return (
        type(weight) in (nn.Parameter, Tensor)  # those of other classes, such as quantized ones, only look like it
        and weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and weight.layout is torch.strided
        and weight.dim() == 2
        and not has_hooks(layer)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something of others is to be called along with a module, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
