"""Linear layers whose weights are kept in the blocked order in which oneDNN multiplies them, for float32 on the CPU.

For the few rows of a decode step, ``F.linear`` (MKL) reorders the weight, or reads it badly, at each call. With the
weight reordered once, four rows and more take a tenth to a third less time, and output heads half; at one row both run
at the speed of memory. torch's compiler packs weights by the same operators (``torch._inductor.fx_passes.
mkldnn_fusion``); they are not public, so each shape is tried before it is used.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

SMALLEST = 1 << 18
"""Elements of a weight below which the operator's fixed cost (about 30 µs) is more than packing saves."""

_ROWS = 32
"""oneDNN picks the order for so many rows; the order for 32 serves all numbers of rows well, that for 1 does not."""

_TOLERANCE = 1e-4
"""Of the trial, relative to the largest output: far above rounding, far below any mistake."""


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
    """A linear layer over a packed weight. For inference only: there is no gradient.

    ``weight`` can still be read, and is in the ``state_dict``: a tied weight is the shared parameter itself, any other
    is unpacked at each reading. It cannot be loaded or changed.
    """

    def __init__(
        self, packed: Tensor, shape: tuple[int, int], bias: Any, *, tied: Any = None, transposed: bool = False
    ) -> None:
        """
        Args:
            packed: of ``_pack``.
            shape: output features, input features.
            bias: the parameter ``[output features]``, or None.
            tied: the weight's parameter, where something else holds it too.
            transposed: the ``state_dict`` is to have the weight's transpose, as ``Conv1D`` had.
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.register_parameter("bias", bias)
        if tied is not None:
            self.register_parameter("weight", tied)
        self._packed, self._transposed = packed, transposed

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "weight" not in self._parameters:
            return self._packed.to_dense()
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or not input.numel():
            return F.linear(input, self.weight, self.bias)
        return _multiply(input, self._packed, self.bias)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if "weight" not in self._parameters:
            destination[prefix + "weight"] = self.weight.t().contiguous() if self._transposed else self.weight

    def _load_from_state_dict(self, *_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("This model's linear layers are packed, so it takes no new weights: load them, then pack.")


def pack_linears(model: nn.Module, *, enabled: bool = True) -> PackReport:
    """Replace a model's linear layers (and GPT-2's ``Conv1D``) by packed ones, in place, where that makes them faster.

    Each weight is given up as soon as it is packed, so memory grows by one layer at a time and shrinks again; only tied
    weights stay beside their packed copies. Outputs equal those before up to float32 rounding.

    Args:
        model: on the CPU, for inference only from then on. Layers that are not float32, not on the CPU, small, of a
            class derived from ``nn.Linear``, or with hooks, stay as they are.
        enabled: False does nothing but count.
    """
    sites: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):
                sites.setdefault(child, []).append((parent, name))
    reason = _why_not() if enabled else "switched off"
    if reason is not None:
        return PackReport(packed=0, kept=len(sites), packed_bytes=0, extra_bytes=0, reason=reason)
    return _pack_sites(model, sites)


def _why_not() -> str | None:
    if not _has_onednn():
        return "torch has no oneDNN here, or it is switched off"
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return f"torch {torch.__version__} has no operators for packed weights"
    return None


def _has_onednn() -> bool:
    backend: Any = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled)


def _pack_sites(model: nn.Module, sites: dict[nn.Module, list[tuple[nn.Module, str]]]) -> PackReport:
    holders = Counter(parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False))
    tried: dict[tuple[int, ...], bool] = {}
    packed = kept = packed_bytes = extra_bytes = 0
    while sites:  # emptied on the way: what is replaced must not be held here
        layer, places = sites.popitem()
        tied = holders[cast(Tensor, layer.weight).data_ptr()] > len(places)
        replacement = _replacement(layer, tied, tried)
        if replacement is None:
            kept += 1
            continue
        for parent, name in places:
            parent.register_module(name, replacement)
        size = 4 * replacement.in_features * replacement.out_features
        packed, packed_bytes, extra_bytes = packed + 1, packed_bytes + size, extra_bytes + size * tied
    return PackReport(packed, kept, packed_bytes, extra_bytes)


def _replacement(layer: nn.Module, tied: bool, tried: dict[tuple[int, ...], bool]) -> PackedLinear | None:
    """The packed form of a layer, or None if the layer is better left alone. ``tried`` remembers each shape's trial."""
    parameter = cast(nn.Parameter, layer.weight)
    if not _is_packable(layer, parameter):
        return None
    transposed = isinstance(layer, Conv1D)
    weight = parameter.detach().t().contiguous() if transposed else parameter.detach()
    packed = _pack(weight)
    shape = (weight.shape[0], weight.shape[1])
    if shape not in tried:
        tried[shape] = _is_right(packed, weight)
    if not tried[shape]:
        return None
    keep = parameter if tied and not transposed else None
    replacement = PackedLinear(packed, shape, layer.bias, tied=keep, transposed=transposed)
    return replacement.train(layer.training)


def _is_packable(layer: nn.Module, weight: Tensor) -> bool:
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return (
        weight.dtype is torch.float32
        and weight.device.type == "cpu"
        and weight.layout is torch.strided
        and weight.dim() == 2
        and weight.numel() >= SMALLEST
        and not hooked
    )


def _is_right(packed: Tensor, weight: Tensor) -> bool:
    """Whether the packed weight multiplies, and unpacks, as it should."""
    for rows in (1, 3):
        probe = torch.linspace(-1, 1, rows * weight.shape[1]).view(rows, -1)
        expected = F.linear(probe, weight)
        difference = (_multiply(probe, packed, None) - expected).abs().max()
        if not difference <= _TOLERANCE * expected.abs().max():
            return False
    return torch.equal(packed.to_dense(), weight)


def _pack(weight: Tensor) -> Tensor:
    """An opaque tensor that only oneDNN's operators take."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS))


def _multiply(input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], ""))
