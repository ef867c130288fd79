"""A weight in the blocked order in which oneDNN multiplies it, for float32 on the CPU.

For the few rows of a decode step, ``F.linear`` (MKL) reorders the weight, or reads it badly, at each call. With the
weight reordered once, four rows and more take a tenth to a third less time, and output heads half. torch's compiler
packs weights by the same operators (``torch._inductor.fx_passes.mkldnn_fusion``); they are not public, so each shape is
tried before it is used.

One row or two are limited by how fast the weight can be read, of which oneDNN reaches some 60 %. They are multiplied by
``small_ops.multiply_few``, which reads the same blocks, where these lie in memory as it expects.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from samplerpool.engine import small_ops

FEW_ROWS = 2
"""Up to so many, our own product is faster than oneDNN's."""

_PACK_ROWS = 32
"""oneDNN picks the order for so many rows; the order for 32 serves all numbers of rows well, that for 1 does not."""

_TOLERANCE = 1e-4
"""Of the trial, relative to the largest output: far above rounding, far below any mistake."""


def why_not() -> str | None:
    """What keeps weights from being packed here; None if nothing does."""
    if not _has_onednn():
        return "torch has no oneDNN here, or it is switched off"
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return f"torch {torch.__version__} has no operators for packed weights"
    return None


def _has_onednn() -> bool:
    backend: Any = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled)


class PackedWeight:
    """One weight.

    Args:
        weight: float32, shape [outputs, inputs]. It is copied.
        bias: float32, shape [outputs], or None.
        compiled: whether the compiled product of few rows may be used.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, compiled: bool = True) -> None:
        self.outputs, self.inputs = weight.shape
        self._bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        self._blocked = self._blocks() if compiled else None
        if self._blocked is not None and not self._is_right(weight, (1, 2)):
            self._blocked = None

    def multiply(self, input: Tensor) -> Tensor:
        """``F.linear``, shapes [..., inputs] to [..., outputs]."""
        if self._blocked is not None and input.numel() <= FEW_ROWS * self.inputs:
            return small_ops.multiply_few(input, self._blocked)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, self._packed, self._bias, "none", [], ""))

    def dense(self) -> Tensor:
        """The weight as it was, a new tensor."""
        return cast(Tensor, self._packed.to_dense())

    def is_right(self, weight: Tensor) -> bool:
        """Whether it multiplies, and unpacks, as it should."""
        return self._is_right(weight, (1, 3)) and torch.equal(self.dense(), weight)

    def _is_right(self, weight: Tensor, counts: tuple[int, ...]) -> bool:
        for rows in counts:
            probe = torch.linspace(-1, 1, rows * self.inputs, dtype=weight.dtype).view(rows, -1)
            expected = F.linear(probe, weight, self._bias)
            difference = (self.multiply(probe) - expected).abs().max()
            if not difference <= _TOLERANCE * expected.abs().max():
                return False
        return True

    def _blocks(self) -> small_ops.BlockedWeight | None:
        """The packed numbers, if they can be what ``multiply_few`` reads; that they are is tried."""
        if small_ops.why_unavailable() is not None or not hasattr(torch.ops.mkldnn, "data_ptr"):
            return None
        blocks = -(-self.outputs // small_ops.BLOCK)
        block_inputs, rest = divmod(torch.ops.mkldnn._nbytes(self._packed), blocks * small_ops.BLOCK * 4)
        if rest or block_inputs < self.inputs:
            return None
        bias = torch.zeros(blocks * small_ops.BLOCK, dtype=torch.float32)
        if self._bias is not None:
            bias[: self.outputs] = self._bias.detach()
        address = torch.ops.mkldnn.data_ptr(self._packed)
        return small_ops.BlockedWeight(address, self.outputs, self.inputs, block_inputs, bias)
