"""The attention kernel itself, as numba compiles it. ``kernels`` imports it when the kernel is first wanted.

One call is one layer's attention of a whole step. Work items are (tile, kv head) pairs, the longest first; each thread
takes the next item by an atomic counter until none is left, so no thread needs to know how many there are. A tile is a
decode row's token, or a few successive tokens of a prompt. Within an item all queries, those of the tile's tokens and
of the heads that share the kv head, share its keys and values, which are read once, in blocks, with an online softmax
(Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"). Tokens of a tile see one key more each; what
they do not see gets a score far below any other.

In these functions every argument is an address, a count or a dimension, and offsets count bytes. A head's queries and
sums are padded to whole vectors; the last elements of a dimension that is no multiple of the lanes go one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import cfunc, njit, types

from samplerpool.engine.kernels_simd import (
    LANES,
    add,
    divide,
    exp,
    load,
    load_float,
    load_int,
    max_of,
    maximum,
    multiply,
    multiply_add,
    prefetch,
    splat,
    store,
    store_float,
    store_sums,
    store_two_sums,
    subtract,
    sum_of,
    take_number,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

BLOCK = 256
"""Keys whose scores are held at a time; a multiple of the lanes."""

LOWEST = -1.0e30
"""Below any score, and finite: differences of it stay numbers."""

AHEAD = 4096
"""Bytes between what is read and what is asked for meanwhile: the processor's own guesses stop at each page's end."""

ARGUMENT = "=25q2f"
"""The kernel's argument: 25 int64 (addresses, counts; strides in floats) and two float32. Below, where each begins."""
(
    _NEXT_ITEM,
    _NEXT_THREAD,
    _ITEMS,
    _ORDER,
    _FIRSTS,
    _COUNTS,
    _LENGTHS,
    _KEYS,
    _VALUES,
    _KEY_STRIDES,
    _VALUE_STRIDES,
    _QUERY,
    _QUERY_ROW,
    _QUERY_HEAD,
    _OUT,
    _OUT_ROW,
    _OUT_HEAD,
    _KV_HEADS,
    _GROUP,
    _KEY_DIM,
    _VALUE_DIM,
    _WINDOW,
    _SINKS,
    _SCRATCH,
    _SCRATCH_BYTES,
) = range(0, 25 * 8, 8)
_SCALING = 25 * 8
_SOFTCAP = _SCALING + 4

_FLAGS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}


def _compiled(function: _Function) -> _Function:
    return cast(_Function, njit(nogil=True, **_FLAGS)(function))


def padded(dim: int) -> int:
    """A head's dimension, rounded up to whole vectors."""
    return (dim + LANES - 1) // LANES * LANES


def scratch_floats(queries: int, key_dim: int, value_dim: int) -> int:
    """What one thread needs: an item's queries, their scores, sums of values, maxima and denominators."""
    return queries * (padded(key_dim) + BLOCK + padded(value_dim)) + 2 * padded(queries)


@_compiled
def _scores_of_four(query: int, keys: int, scores: int, group: int, dim: int) -> None:
    """Scores of four successive keys with all queries of the group, two queries at a time, whole vectors only."""
    row, padded_row, whole = dim * 4, (dim + 7) // 8 * 32, dim // 8 * 32
    for g in range(0, group - 1, 2):
        q = query + g * padded_row
        zero = splat(types.float32(0.0))
        a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
        for d in range(0, whole, 32):
            qa, qb = load(q + d), load(q + padded_row + d)
            k = keys + d
            k0, k1, k2, k3 = load(k), load(k + row), load(k + 2 * row), load(k + 3 * row)
            a0, b0 = multiply_add(qa, k0, a0), multiply_add(qb, k0, b0)
            a1, b1 = multiply_add(qa, k1, a1), multiply_add(qb, k1, b1)
            a2, b2 = multiply_add(qa, k2, a2), multiply_add(qb, k2, b2)
            a3, b3 = multiply_add(qa, k3, a3), multiply_add(qb, k3, b3)
        at = scores + g * (BLOCK * 4)
        store_two_sums(at, at + BLOCK * 4, a0, a1, a2, a3, b0, b1, b2, b3)
    if group % 2:
        q = query + (group - 1) * padded_row
        zero = splat(types.float32(0.0))
        a0, a1, a2, a3 = zero, zero, zero, zero
        for d in range(0, whole, 32):
            qa, k = load(q + d), keys + d
            a0, a1 = multiply_add(qa, load(k), a0), multiply_add(qa, load(k + row), a1)
            a2, a3 = multiply_add(qa, load(k + 2 * row), a2), multiply_add(qa, load(k + 3 * row), a3)
        store_sums(scores + (group - 1) * (BLOCK * 4), a0, a1, a2, a3)


@_compiled
def _scores_of_one(query: int, key: int, scores: int, group: int, dim: int) -> None:
    padded_row, whole = (dim + 7) // 8 * 32, dim // 8 * 32
    for g in range(group):
        q = query + g * padded_row
        total = splat(types.float32(0.0))
        for d in range(0, whole, 32):
            total = multiply_add(load(q + d), load(key + d), total)
        store_float(scores + g * (BLOCK * 4), sum_of(total))


@_compiled
def _score_block(query: int, keys: int, scores: int, group: int, count: int, dim: int) -> None:
    """Scores of a block of keys, ``[group, BLOCK]``."""
    fours = count // 4 * 4
    for t in range(0, fours, 4):
        for ahead in range(0, dim * 16, 64):
            prefetch(keys + t * dim * 4 + AHEAD + ahead)
        _scores_of_four(query, keys + t * dim * 4, scores + t * 4, group, dim)
    for t in range(fours, count):
        _scores_of_one(query, keys + t * dim * 4, scores + t * 4, group, dim)
    padded_row, whole = (dim + 7) // 8 * 32, dim // 8 * 32
    if whole < dim * 4:
        for g in range(group):
            for t in range(count):
                at = scores + (g * BLOCK + t) * 4
                total = load_float(at)
                for d in range(whole, dim * 4, 4):
                    total += load_float(query + g * padded_row + d) * load_float(keys + t * dim * 4 + d)
                store_float(at, total)


@_compiled
def _cap(scores: int, count: int, softcap: float) -> None:
    """``cap * tanh(score / cap)``, tanh written with exp."""
    cap, one, two = splat(softcap), splat(types.float32(1.0)), splat(types.float32(2.0))
    double_inverse = splat(types.float32(2.0) / softcap)
    for t in range(0, count * 4, 32):
        power = exp(multiply(load(scores + t), double_inverse))
        store(scores + t, multiply(cap, subtract(one, divide(two, add(power, one)))))


@_compiled
def _soften(scores: int, maximum_at: int, denominator_at: int, sums: int, count: int, dim: int) -> None:
    """Turn one query's scores of a block into weights, and scale what earlier blocks summed up to the new maximum."""
    padded_count = (count + 7) // 8 * 8
    for t in range(count, padded_count):
        store_float(scores + t * 4, types.float32(LOWEST))
    largest = splat(load_float(maximum_at))
    for t in range(0, padded_count * 4, 32):
        largest = maximum(load(scores + t), largest)
    before, now = load_float(maximum_at), max_of(largest)
    total, shift = splat(types.float32(0.0)), splat(now)
    for t in range(0, padded_count * 4, 32):
        weight = exp(subtract(load(scores + t), shift))
        store(scores + t, weight)
        total = add(total, weight)
    denominator = load_float(denominator_at)
    if now > before:
        shrink = exp(splat(before - now))
        denominator *= sum_of(shrink) / types.float32(LANES)
        for d in range(0, (dim + 7) // 8 * 32, 32):
            store(sums + d, multiply(load(sums + d), shrink))
    store_float(maximum_at, now)
    store_float(denominator_at, denominator + sum_of(total))


@_compiled
def _add_four(weights: int, values: int, sums: int, group: int, dim: int) -> None:
    """Add four successive values, weighted, to the sums of all queries of the group, two queries at a time."""
    row, padded_row, whole = dim * 4, (dim + 7) // 8 * 32, dim // 8 * 32
    for g in range(0, group - 1, 2):
        w, u, s = weights + g * (BLOCK * 4), weights + (g + 1) * (BLOCK * 4), sums + g * padded_row
        w0, w1, w2, w3 = load_float(w), load_float(w + 4), load_float(w + 8), load_float(w + 12)
        u0, u1, u2, u3 = load_float(u), load_float(u + 4), load_float(u + 8), load_float(u + 12)
        x0, x1, x2, x3 = splat(w0), splat(w1), splat(w2), splat(w3)
        y0, y1, y2, y3 = splat(u0), splat(u1), splat(u2), splat(u3)
        for d in range(0, whole, 32):
            v = values + d
            v0, v1, v2, v3 = load(v), load(v + row), load(v + 2 * row), load(v + 3 * row)
            a, b = load(s + d), load(s + padded_row + d)
            a, b = multiply_add(x0, v0, a), multiply_add(y0, v0, b)
            a, b = multiply_add(x1, v1, a), multiply_add(y1, v1, b)
            a, b = multiply_add(x2, v2, a), multiply_add(y2, v2, b)
            a, b = multiply_add(x3, v3, a), multiply_add(y3, v3, b)
            store(s + d, a)
            store(s + padded_row + d, b)
    if group % 2:
        w, s = weights + (group - 1) * (BLOCK * 4), sums + (group - 1) * padded_row
        x0, x1 = splat(load_float(w)), splat(load_float(w + 4))
        x2, x3 = splat(load_float(w + 8)), splat(load_float(w + 12))
        for d in range(0, whole, 32):
            v = values + d
            a = multiply_add(x0, load(v), load(s + d))
            a = multiply_add(x1, load(v + row), a)
            a = multiply_add(x2, load(v + 2 * row), a)
            store(s + d, multiply_add(x3, load(v + 3 * row), a))


@_compiled
def _add_one(weights: int, value: int, sums: int, group: int, dim: int) -> None:
    padded_row, whole = (dim + 7) // 8 * 32, dim // 8 * 32
    for g in range(group):
        weight, s = splat(load_float(weights + g * (BLOCK * 4))), sums + g * padded_row
        for d in range(0, whole, 32):
            store(s + d, multiply_add(weight, load(value + d), load(s + d)))


@_compiled
def _add_block(weights: int, values: int, sums: int, group: int, count: int, dim: int) -> None:
    """Add a block of weighted values to the sums ``[group, dim]``."""
    fours = count // 4 * 4
    for t in range(0, fours, 4):
        for ahead in range(0, dim * 16, 64):
            prefetch(values + t * dim * 4 + AHEAD + ahead)
        _add_four(weights + t * 4, values + t * dim * 4, sums, group, dim)
    for t in range(fours, count):
        _add_one(weights + t * 4, values + t * dim * 4, sums, group, dim)
    padded_row, whole = (dim + 7) // 8 * 32, dim // 8 * 32
    if whole < dim * 4:
        for g in range(group):
            for d in range(whole, dim * 4, 4):
                at = sums + g * padded_row + d
                total = load_float(at)
                for t in range(count):
                    total += load_float(weights + (g * BLOCK + t) * 4) * load_float(values + t * dim * 4 + d)
                store_float(at, total)


@_compiled
def _hide(scores: int, first: int, last: int, count: int) -> None:
    """Leave one query's scores from ``first`` to before ``last`` of a block, and put the others out of sight."""
    for t in range(min(first, count)):
        store_float(scores + t * 4, types.float32(LOWEST))
    for t in range(max(last, 0), count):
        store_float(scores + t * 4, types.float32(LOWEST))


@_compiled
def _begin(arguments: int, tile: int, head: int, scratch: int, sums: int, maxima: int, denominators: int) -> None:
    """Scale an item's queries into the scratch; empty sums."""
    group, key_dim = load_int(arguments + _GROUP), load_int(arguments + _KEY_DIM)
    key_row, value_row = (key_dim + 7) // 8 * 32, (load_int(arguments + _VALUE_DIM) + 7) // 8 * 32
    scaling, sinks = load_float(arguments + _SCALING), load_int(arguments + _SINKS)
    row = load_int(load_int(arguments + _FIRSTS) + tile * 8)
    for g in range(group * load_int(load_int(arguments + _COUNTS) + tile * 8)):
        token, h = row + g // group, head * group + g % group
        q = load_int(arguments + _QUERY) + token * load_int(arguments + _QUERY_ROW) * 4
        q += h * load_int(arguments + _QUERY_HEAD) * 4
        for d in range(0, key_dim * 4, 4):
            store_float(scratch + g * key_row + d, load_float(q + d) * scaling)
        for d in range(0, value_row, 32):
            store(sums + g * value_row + d, splat(types.float32(0.0)))
        # A sink is a score whose value is zero.
        store_float(maxima + g * 4, load_float(sinks + h * 4) if sinks != 0 else types.float32(LOWEST))
        store_float(denominators + g * 4, types.float32(1.0) if sinks != 0 else types.float32(0.0))


@_compiled
def _end(arguments: int, tile: int, head: int, sums: int, denominators: int) -> None:
    """Write an item's outputs."""
    group, value_dim = load_int(arguments + _GROUP), load_int(arguments + _VALUE_DIM)
    value_row = (value_dim + 7) // 8 * 32
    row = load_int(load_int(arguments + _FIRSTS) + tile * 8)
    for g in range(group * load_int(load_int(arguments + _COUNTS) + tile * 8)):
        out = load_int(arguments + _OUT) + (row + g // group) * load_int(arguments + _OUT_ROW) * 4
        out += (head * group + g % group) * load_int(arguments + _OUT_HEAD) * 4
        denominator = load_float(denominators + g * 4)
        share = types.float32(1.0) / denominator if denominator > types.float32(0.0) else types.float32(0.0)
        for d in range(0, value_dim * 4, 4):
            store_float(out + d, load_float(sums + g * value_row + d) * share)


@_compiled
def _attend(arguments: int, tile: int, head: int, scratch: int) -> None:
    """Attention of one tile's queries that share the kv head ``head``."""
    group, key_dim = load_int(arguments + _GROUP), load_int(arguments + _KEY_DIM)
    value_dim, softcap = load_int(arguments + _VALUE_DIM), load_float(arguments + _SOFTCAP)
    tokens, window = load_int(load_int(arguments + _COUNTS) + tile * 8), load_int(arguments + _WINDOW)
    queries, value_row = group * tokens, (value_dim + 7) // 8 * 32
    scores = scratch + queries * ((key_dim + 7) // 8 * 32)
    sums = scores + queries * (BLOCK * 4)
    maxima = sums + queries * value_row
    denominators = maxima + (queries + 7) // 8 * 32
    _begin(arguments, tile, head, scratch, sums, maxima, denominators)

    length = load_int(load_int(arguments + _LENGTHS) + tile * 8)
    keys = load_int(load_int(arguments + _KEYS) + tile * 8)
    values = load_int(load_int(arguments + _VALUES) + tile * 8)
    keys += head * load_int(load_int(arguments + _KEY_STRIDES) + tile * 8) * 4
    values += head * load_int(load_int(arguments + _VALUE_STRIDES) + tile * 8) * 4
    shortest = length - tokens + 1  # what the tile's first token sees
    for start in range(max(0, shortest - window), length, BLOCK):
        count = min(BLOCK, length - start)
        _score_block(scratch, keys + start * key_dim * 4, scores, queries, count, key_dim)
        hides = start + count > shortest or start < length - window
        for g in range(queries):
            at = scores + g * (BLOCK * 4)
            if softcap > types.float32(0.0):
                _cap(at, count, softcap)
            if hides:
                own = shortest + g // group
                _hide(at, own - window - start, own - start, count)
            _soften(at, maxima + g * 4, denominators + g * 4, sums + g * value_row, count, value_dim)
        _add_block(scores, values + start * value_dim * 4, sums, queries, count, value_dim)
    _end(arguments, tile, head, sums, denominators)


def _work(arguments: int) -> None:
    """What each thread does: take items until none is left."""
    thread = take_number(arguments + _NEXT_THREAD)
    scratch = load_int(arguments + _SCRATCH) + thread * load_int(arguments + _SCRATCH_BYTES)
    items, kv_heads = load_int(arguments + _ITEMS), load_int(arguments + _KV_HEADS)
    order = load_int(arguments + _ORDER)
    item = take_number(arguments + _NEXT_ITEM)
    while item < items:
        _attend(arguments, load_int(order + item // kv_heads * 8), item % kv_heads, scratch)
        item = take_number(arguments + _NEXT_ITEM)


def compile_kernel(*, cache: bool) -> Any:
    """The compiled kernel, from numba's cache if that may be used. It takes one word, the argument's address."""
    return cfunc(types.void(types.int64), cache=cache, **_FLAGS)(_work)
