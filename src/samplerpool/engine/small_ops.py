"""The small operations between a layer's matrix products, for float32 on the CPU: one compiled pass for each.

torch takes six operations for a normalization and fourteen for a rotary embedding, each a pass over memory and, for the
few rows of a decode step, mostly the cost of calling it. Compiled by numba like the attention kernel (``kernels``), on
the same threads. Arguments are checked where they could make the compiled code read or write what it must not.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from samplerpool.engine.kernels import compile_cached
from samplerpool.engine.openmp import openmp_parallel

LANES = 8
"""Numbers in a vector; what is compiled handles whole vectors only."""

BLOCK = 64
"""Outputs in a block of a weight."""

_SMALL_WORK = 1 << 14
"""Numbers below which waking the other threads costs more than they save."""


@dataclass(frozen=True, slots=True)
class Gate:
    """An activation of the form ``g / (1 + exp(-slope * (g + cubic * g^3)))``."""

    slope: float
    cubic: float


SILU = Gate(1.0, 0.0)
GELU_TANH = Gate(1.5957691216057308, 0.044715)
"""2 sqrt(2 / pi): 0.5 (1 + tanh(x)) is the logistic function of 2 x (Hendrycks and Gimpel 2016)."""


class _Op:
    """One compiled operation. Each call has an argument of its own, as engines may run on several threads."""

    def __init__(self, compiled: Any, argument: str) -> None:
        self._compiled = compiled  # owns the code
        self._address = compiled.address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
        self._pack = struct.Struct(argument).pack
        self._room = (ctypes.c_char * struct.calcsize(argument)).from_buffer_copy

    def run(self, work: int, *argument: int | float) -> None:
        """Run it on torch's threads, or in this one where there is little to do."""
        room = self._room(self._pack(0, *argument))
        at = ctypes.addressof(room)
        parallel = openmp_parallel() if work >= _SMALL_WORK else None
        threads = torch.get_num_threads()
        if parallel is None or threads == 1:
            self._call(at)
        else:
            parallel(self._address, at, threads, 0)


@dataclass(frozen=True, slots=True)
class _Ops:
    norm: _Op
    gate: _Op
    rope: _Op
    product: _Op


def why_unavailable() -> str | None:
    """What keeps the operations from being used, None if nothing does. The first call compiles or loads them."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@lru_cache(maxsize=1)
def _load() -> _Ops | str:
    return compile_cached(_build)


def _build(cache: bool) -> _Ops:
    from samplerpool.engine import small_ops_compiled as source

    arguments = (source.NORM_ARGUMENT, source.GATE_ARGUMENT, source.ROPE_ARGUMENT, source.PRODUCT_ARGUMENT)
    return _Ops(*map(_Op, source.compile_all(cache=cache), arguments))


def _ops() -> _Ops:
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"The compiled operations are not available: {loaded}")
    return loaded


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """A weight as ``multiply_few`` reads it, in blocks of ``BLOCK`` outputs: ``[blocks, block_inputs, BLOCK]``.

    Args:
        address: of its float32 numbers. The caller answers for them.
        outputs, inputs: its shape; what blocks have beyond that is not used.
        bias: float32, shape [blocks * BLOCK].
    """

    address: int
    outputs: int
    inputs: int
    block_inputs: int
    bias: Tensor


def multiply_few(input: Tensor, weight: BlockedWeight) -> Tensor:
    """``F.linear`` of one row or two, at the speed of memory: the weight is read once, from front to back.

    Args:
        input: float32, shape [..., inputs].

    Returns:
        Shape [..., outputs].
    """
    rows = _rows(input, weight.inputs)
    if rows.dtype is not torch.float32 or rows.device.type != "cpu" or rows.stride(-1) != 1:
        raise ValueError(f"input must be float32 on the CPU without gaps, not {rows.dtype} on {rows.device}")
    blocks = weight.bias.numel() // BLOCK
    out = rows.new_empty(rows.shape[0], blocks * BLOCK)
    _ops().product.run(
        weight.outputs * weight.inputs, blocks, rows.data_ptr(), rows.stride(0), rows.shape[0], weight.inputs,
        weight.address, weight.block_inputs, weight.bias.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out[:, : weight.outputs].contiguous().view(*input.shape[:-1], weight.outputs)


def fits(dim: int) -> bool:
    """Whether vectors of so many numbers can be handled."""
    return dim > 0 and dim % LANES == 0


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalization over the last dimension.

    Args:
        x: float32, shape [..., dim].
        weight: float32, shape [dim].

    Returns:
        A new tensor of x's shape.
    """
    dim = x.shape[-1]
    rows = _rows(x, dim)
    _check("x", rows, dim)
    _check("weight", weight, dim)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    count = rows.shape[0]
    _ops().norm.run(
        count * dim, count, rows.data_ptr(), rows.stride(0), out.data_ptr(), weight.data_ptr(), dim, eps
    )  # fmt: skip
    return out.view(x.shape)


def gated(both: Tensor, gate: Gate) -> Tensor:
    """The activation of the first half of the last dimension, times the second half.

    Args:
        both: float32, shape [..., 2 * dim].

    Returns:
        Shape [..., dim].
    """
    dim = both.shape[-1] // 2
    rows = _rows(both, 2 * dim)
    _check("both", rows, 2 * dim)
    if not fits(dim):
        raise ValueError(f"half of the last dimension must be a multiple of {LANES}, not {dim}")
    count = rows.shape[0]
    out = rows.new_empty(count, dim)
    _ops().gate.run(
        2 * count * dim, count, rows.data_ptr(), rows.stride(0), out.data_ptr(), dim, gate.slope, gate.cubic
    )
    return out.view(*both.shape[:-1], dim)


def rotate_and_keep(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    heads: int,
    norms: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Rotary embedding of queries and keys; keys and values go to where they are kept.

    Args:
        qkv: float32, shape [tokens, (heads + 2 * kv_heads) * dim]; the queries in it are changed.
        cos, sin: float32, shape [tokens, rotary], rotary being dim or less; the first dimensions are rotated, one half
            against the other.
        index: int64, shape [tokens * kv_heads], which vectors of
        keys, values: float32, shape [vectors, dim], a token's keys and values become. The caller answers for them.
        norms: weights [dim] of queries' and keys' normalization within each head, and its eps; before the rotation.

    Returns:
        The queries, shape [tokens, heads, dim], a view.
    """
    tokens, dim, rotary = qkv.shape[0], keys.shape[-1], cos.shape[-1]
    kv_heads = (qkv.shape[-1] // dim - heads) // 2
    _check("qkv", qkv, (heads + 2 * kv_heads) * dim)
    for name, table in (("cos", cos), ("sin", sin)):
        _check(name, table, rotary, rows=tokens)
    _check("keys", keys, dim, rows=keys.shape[0])
    _check("values", values, dim, rows=keys.shape[0])
    if rotary > dim or not fits(rotary // 2) or not fits(dim) or index.dtype is not torch.int64:
        raise ValueError(f"{rotary} rotary dimensions of {dim}, index of {index.dtype}: not what is handled")
    if index.shape != (tokens * kv_heads,) or not index.is_contiguous():
        raise ValueError(f"index must have {tokens * kv_heads} numbers without gaps, not {list(index.shape)}")
    query_weight, key_weight, eps = (0, 0, 0.0) if norms is None else _norm_arguments(norms, dim)
    _ops().rope.run(
        qkv.numel(), tokens, qkv.data_ptr(), qkv.stride(0), heads, kv_heads, dim, rotary,
        cos.data_ptr(), sin.data_ptr(), index.data_ptr(), keys.data_ptr(), values.data_ptr(),
        query_weight, key_weight, eps,
    )  # fmt: skip
    return qkv[:, : heads * dim].view(tokens, heads, dim)


def _norm_arguments(norms: tuple[Tensor, Tensor, float], dim: int) -> tuple[int, int, float]:
    query, key, eps = norms
    _check("the queries' weight", query, dim)
    _check("the keys' weight", key, dim)
    return query.data_ptr(), key.data_ptr(), eps


def _rows(x: Tensor, dim: int) -> Tensor:
    """Shape [rows, dim], each row without gaps; a copy only if need be."""
    rows = x.reshape(-1, dim)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _check(name: str, tensor: Tensor, dim: int, rows: int | None = None) -> None:
    """The last dimension without gaps and of whole vectors; with ``rows``, so many, without gaps between them too."""
    right = tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.stride(-1) == 1
    if rows is not None:
        right = right and tensor.shape == (rows, dim) and (rows <= 1 or tensor.stride(0) == dim)
    if not right or tensor.shape[-1] != dim or not fits(dim):
        wanted = f"{dim} (a multiple of {LANES})" if rows is None else f"{rows} x {dim}"
        raise ValueError(f"{name} must be float32 on the CPU, {wanted} without gaps, not {list(tensor.shape)}")
