"""The small operations between a layer's matrix products, as numba compiles them: one pass over memory for each.

``small_ops`` imports this when they are first wanted. As in ``kernels_compiled``, every argument is an address, a count
or a dimension, threads take rows by an atomic counter, and dimensions are multiples of the vectors' lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import cfunc, njit, types

from samplerpool.engine.kernels_simd import (
    add,
    divide,
    exp,
    load,
    load_float,
    load_int,
    multiply,
    multiply_add,
    prefetch,
    splat,
    store,
    subtract,
    sum_of,
    take_number,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}

_NEXT, _ROWS = 0, 8
"""Where every argument begins: the next row to be taken, and how many there are. All below are offsets in bytes."""

NORM_ARGUMENT = "=7q1f"
_NORM_INPUT, _NORM_INPUT_ROW, _NORM_OUT, _NORM_WEIGHT, _NORM_DIM, _NORM_EPS = range(16, 64, 8)

GATE_ARGUMENT = "=6q2f"
_GATE_INPUT, _GATE_INPUT_ROW, _GATE_OUT, _GATE_DIM, _GATE_SLOPE = range(16, 56, 8)
_GATE_CUBIC = _GATE_SLOPE + 4

ROPE_ARGUMENT = "=15q1f"
(
    _ROPE_INPUT,
    _ROPE_INPUT_ROW,
    _ROPE_HEADS,
    _ROPE_KV_HEADS,
    _ROPE_DIM,
    _ROPE_ROTARY,
    _ROPE_COS,
    _ROPE_SIN,
    _ROPE_INDEX,
    _ROPE_KEYS,
    _ROPE_VALUES,
    _ROPE_QUERY_WEIGHT,
    _ROPE_KEY_WEIGHT,
    _ROPE_EPS,
) = range(16, 128, 8)

PRODUCT_ARGUMENT = "=10q"
(
    _PRODUCT_INPUT,
    _PRODUCT_INPUT_ROW,
    _PRODUCT_INPUT_ROWS,
    _PRODUCT_INPUTS,
    _PRODUCT_WEIGHT,
    _PRODUCT_BLOCK,
    _PRODUCT_BIAS,
    _PRODUCT_OUT,
) = range(16, 80, 8)

fma = multiply_add

AHEAD = 1024
"""Bytes between the weights that are read and those that are asked for meanwhile."""


def _compiled(function: _Function) -> _Function:
    return cast(_Function, njit(nogil=True, **_FLAGS)(function))


@_compiled
def _normalize(source: int, out: int, weight: int, dim: int, eps: float) -> None:
    """Root mean square normalization of one vector; ``out`` may be ``source``."""
    total = splat(types.float32(0.0))
    for d in range(0, dim * 4, 32):
        x = load(source + d)
        total = multiply_add(x, x, total)
    mean = sum_of(total) / types.float32(dim)
    scale = splat(types.float32(1.0) / types.float32(math.sqrt(mean + eps)))
    for d in range(0, dim * 4, 32):
        store(out + d, multiply(load(weight + d), multiply(load(source + d), scale)))


def _norm(arguments: int) -> None:
    dim, eps = load_int(arguments + _NORM_DIM), load_float(arguments + _NORM_EPS)
    rows, weight = load_int(arguments + _ROWS), load_int(arguments + _NORM_WEIGHT)
    source, out = load_int(arguments + _NORM_INPUT), load_int(arguments + _NORM_OUT)
    stride = load_int(arguments + _NORM_INPUT_ROW) * 4
    row = take_number(arguments + _NEXT)
    while row < rows:
        _normalize(source + row * stride, out + row * dim * 4, weight, dim, eps)
        row = take_number(arguments + _NEXT)


@_compiled
def _gate_row(gate: int, up: int, out: int, dim: int, slope: float, cubic: float) -> None:
    """``up * g / (1 + exp(-slope * (g + cubic * g^3)))``, g being the gate: SiLU, and GELU by tanh."""
    minus, third, one = splat(-slope), splat(-slope * cubic), splat(types.float32(1.0))
    for d in range(0, dim * 4, 32):
        g = load(gate + d)
        power = multiply(g, multiply_add(third, multiply(g, g), minus))
        store(out + d, divide(multiply(g, load(up + d)), add(one, exp(power))))


def _gate(arguments: int) -> None:
    dim, rows = load_int(arguments + _GATE_DIM), load_int(arguments + _ROWS)
    slope, cubic = load_float(arguments + _GATE_SLOPE), load_float(arguments + _GATE_CUBIC)
    source, out = load_int(arguments + _GATE_INPUT), load_int(arguments + _GATE_OUT)
    stride = load_int(arguments + _GATE_INPUT_ROW) * 4
    row = take_number(arguments + _NEXT)
    while row < rows:
        gate = source + row * stride
        _gate_row(gate, gate + dim * 4, out + row * dim * 4, dim, slope, cubic)
        row = take_number(arguments + _NEXT)


@_compiled
def _rotate(source: int, out: int, cos: int, sin: int, rotary: int, dim: int) -> None:
    """Rotary embedding of one head: halves of the rotary dimensions against each other; the rest is copied."""
    half = rotary * 2
    for d in range(0, half, 32):
        a, b = load(source + d), load(source + half + d)
        store(out + d, subtract(multiply(a, load(cos + d)), multiply(b, load(sin + d))))
        store(out + half + d, multiply_add(b, load(cos + half + d), multiply(a, load(sin + half + d))))
    for d in range(rotary * 4, dim * 4, 32):
        store(out + d, load(source + d))


@_compiled
def _rope_row(arguments: int, row: int) -> None:
    """One token: its queries rotated in place, its keys rotated and its values copied to where they are kept."""
    heads, kv_heads = load_int(arguments + _ROPE_HEADS), load_int(arguments + _ROPE_KV_HEADS)
    dim, rotary = load_int(arguments + _ROPE_DIM), load_int(arguments + _ROPE_ROTARY)
    cos = load_int(arguments + _ROPE_COS) + row * rotary * 4
    sin = load_int(arguments + _ROPE_SIN) + row * rotary * 4
    query_weight, key_weight = load_int(arguments + _ROPE_QUERY_WEIGHT), load_int(arguments + _ROPE_KEY_WEIGHT)
    eps = load_float(arguments + _ROPE_EPS)
    at = load_int(arguments + _ROPE_INPUT) + row * load_int(arguments + _ROPE_INPUT_ROW) * 4
    for _ in range(heads):
        if query_weight:
            _normalize(at, at, query_weight, dim, eps)
        _rotate(at, at, cos, sin, rotary, dim)
        at += dim * 4
    index = load_int(arguments + _ROPE_INDEX) + row * kv_heads * 8
    keys, values = load_int(arguments + _ROPE_KEYS), load_int(arguments + _ROPE_VALUES)
    for head in range(kv_heads):
        place = load_int(index + head * 8) * dim * 4
        if key_weight:
            _normalize(at, at, key_weight, dim, eps)
        _rotate(at, keys + place, cos, sin, rotary, dim)
        value = at + kv_heads * dim * 4
        for d in range(0, dim * 4, 32):
            store(values + place + d, load(value + d))
        at += dim * 4


def _rope(arguments: int) -> None:
    rows = load_int(arguments + _ROWS)
    row = take_number(arguments + _NEXT)
    while row < rows:
        _rope_row(arguments, row)
        row = take_number(arguments + _NEXT)


@_compiled
def _times_one(x: int, weight: int, inputs: int, bias: int, out: int) -> None:
    """64 outputs of one row: ``weight`` is ``[inputs, 64]``, read from front to back once."""
    a0, a1, a2, a3 = load(bias), load(bias + 32), load(bias + 64), load(bias + 96)
    a4, a5, a6, a7 = load(bias + 128), load(bias + 160), load(bias + 192), load(bias + 224)
    for k in range(inputs):
        w, u = weight + k * 256, splat(load_float(x + k * 4))
        for line in range(0, 256, 64):
            prefetch(w + AHEAD + line)
        a0, a1 = fma(load(w), u, a0), fma(load(w + 32), u, a1)
        a2, a3 = fma(load(w + 64), u, a2), fma(load(w + 96), u, a3)
        a4, a5 = fma(load(w + 128), u, a4), fma(load(w + 160), u, a5)
        a6, a7 = fma(load(w + 192), u, a6), fma(load(w + 224), u, a7)
    _store_eight(out, a0, a1, a2, a3, a4, a5, a6, a7)


@_compiled
def _times_two(x: int, y: int, weight: int, inputs: int, bias: int, out: int, out_y: int) -> None:
    """64 outputs of two rows."""
    a0, a1, a2, a3 = load(bias), load(bias + 32), load(bias + 64), load(bias + 96)
    a4, a5, a6, a7 = load(bias + 128), load(bias + 160), load(bias + 192), load(bias + 224)
    b0, b1, b2, b3, b4, b5, b6, b7 = a0, a1, a2, a3, a4, a5, a6, a7
    for k in range(inputs):
        w, u, v = weight + k * 256, splat(load_float(x + k * 4)), splat(load_float(y + k * 4))
        for line in range(0, 256, 64):
            prefetch(w + AHEAD + line)
        w0, w1, w2, w3 = load(w), load(w + 32), load(w + 64), load(w + 96)
        a0, a1, a2, a3 = (
            fma(w0, u, a0),
            fma(w1, u, a1),
            fma(w2, u, a2),
            fma(w3, u, a3),
        )
        b0, b1, b2, b3 = (
            fma(w0, v, b0),
            fma(w1, v, b1),
            fma(w2, v, b2),
            fma(w3, v, b3),
        )
        w0, w1, w2, w3 = load(w + 128), load(w + 160), load(w + 192), load(w + 224)
        a4, a5, a6, a7 = (
            fma(w0, u, a4),
            fma(w1, u, a5),
            fma(w2, u, a6),
            fma(w3, u, a7),
        )
        b4, b5, b6, b7 = (
            fma(w0, v, b4),
            fma(w1, v, b5),
            fma(w2, v, b6),
            fma(w3, v, b7),
        )
    _store_eight(out, a0, a1, a2, a3, a4, a5, a6, a7)
    _store_eight(out_y, b0, b1, b2, b3, b4, b5, b6, b7)


@_compiled
def _store_eight(out: int, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any) -> None:
    store(out, a0)
    store(out + 32, a1)
    store(out + 64, a2)
    store(out + 96, a3)
    store(out + 128, a4)
    store(out + 160, a5)
    store(out + 192, a6)
    store(out + 224, a7)


def _product(arguments: int) -> None:
    """Few rows times a weight in blocks ``[blocks, block inputs, 64]``; an item is a block."""
    source, row = load_int(arguments + _PRODUCT_INPUT), load_int(arguments + _PRODUCT_INPUT_ROW) * 4
    rows, inputs = load_int(arguments + _PRODUCT_INPUT_ROWS), load_int(arguments + _PRODUCT_INPUTS)
    weight, block_bytes = load_int(arguments + _PRODUCT_WEIGHT), load_int(arguments + _PRODUCT_BLOCK) * 256
    bias, out = load_int(arguments + _PRODUCT_BIAS), load_int(arguments + _PRODUCT_OUT)
    blocks = load_int(arguments + _ROWS)
    block = take_number(arguments + _NEXT)
    while block < blocks:
        w, b, o = weight + block * block_bytes, bias + block * 256, out + block * 256
        for r in range(0, rows - 1, 2):
            x, first = source + r * row, o + r * blocks * 256
            _times_two(x, x + row, w, inputs, b, first, first + blocks * 256)
        if rows % 2:
            _times_one(source + (rows - 1) * row, w, inputs, b, o + (rows - 1) * blocks * 256)
        block = take_number(arguments + _NEXT)


def compile_all(*, cache: bool) -> list[Any]:
    """Norm, gate, rope and product, compiled, or from numba's cache if that may be used. Each takes an address."""
    signature = types.void(types.int64)
    return [cfunc(signature, cache=cache, **_FLAGS)(function) for function in (_norm, _gate, _rope, _product)]
