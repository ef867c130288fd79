"""The memory of keys and values: one flat tensor a layer, and regions of it for rows.

A row's region holds ``capacity`` tokens, a power of two. Inside it, each kv head's vectors lie one after the other, so
that attention reads them in one sweep. A row that outgrows its region moves to one twice as large; regions of one size
are often neighbours, so that pure torch can attend to several rows in one strided view.
"""

from __future__ import annotations

import contextlib
import heapq
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_CAPACITY = 64
"""Tokens in the smallest region."""


@dataclass(frozen=True, slots=True)
class Region:
    """A row's place, in tokens.

    Args:
        offset: first token, a multiple of ``capacity``.
        capacity: a power of two.
    """

    offset: int
    capacity: int


class Buddies:
    """Hands out regions of a line of ``tokens`` by the buddy system (Knowlton 1965), the lowest free one first. Pure.

    Args:
        tokens: length of the line; what exceeds a multiple of ``MIN_CAPACITY`` is not used.
    """

    def __init__(self, tokens: int) -> None:
        self._free: dict[int, set[int]] = {}
        self._heaps: dict[int, list[int]] = {}
        self.free_tokens = 0
        self.largest = 0
        offset, tokens = 0, tokens - tokens % MIN_CAPACITY
        while tokens:  # the largest aligned pieces, as the binary digits of the length
            capacity = 1 << (tokens.bit_length() - 1)
            self._put(offset, capacity)
            self.free_tokens += capacity
            self.largest = max(self.largest, capacity)
            offset, tokens = offset + capacity, tokens - capacity

    def take(self, tokens: int) -> Region | None:
        """A region for at least so many tokens, or None if there is none free."""
        capacity = capacity_for(tokens)
        found = min((size for size, offsets in self._free.items() if offsets and size >= capacity), default=None)
        if found is None:
            return None
        offset = self._pop(found)
        while found > capacity:
            found //= 2
            self._put(offset + found, found)
        self.free_tokens -= capacity
        return Region(offset, capacity)

    def give(self, region: Region) -> None:
        """Take a region back, and join it with its buddy as far as that is free."""
        offset, capacity = region.offset, region.capacity
        self.free_tokens += capacity
        while (offset ^ capacity) in self._free.get(capacity, ()):
            self._free[capacity].discard(offset ^ capacity)
            offset, capacity = min(offset, offset ^ capacity), capacity * 2
        self._put(offset, capacity)

    def claim(self, region: Region) -> None:
        """Take back just this region, which was given a moment ago."""
        offset, capacity = region.offset, region.capacity
        while offset not in self._free.get(capacity, ()):
            offset, capacity = offset - offset % (2 * capacity), 2 * capacity
        self._free[capacity].discard(offset)
        while capacity > region.capacity:
            capacity //= 2
            inside = offset + capacity * (region.offset >= offset + capacity)
            self._put(2 * offset + capacity - inside, capacity)
            offset = inside
        self.free_tokens -= region.capacity

    def _put(self, offset: int, capacity: int) -> None:
        self._free.setdefault(capacity, set()).add(offset)
        heapq.heappush(self._heaps.setdefault(capacity, []), offset)

    def _pop(self, capacity: int) -> int:
        free, heap = self._free[capacity], self._heaps[capacity]
        while (offset := heapq.heappop(heap)) not in free:
            pass  # joined with its buddy since it was put here
        free.discard(offset)
        return offset


def capacity_for(tokens: int) -> int:
    """The capacity of the smallest region that holds so many tokens."""
    return max(MIN_CAPACITY, 1 << max(tokens - 1, 0).bit_length())


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Geometry of one layer's cache.

    Args:
        device: where that layer is, if the model's layers are on several devices.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device | None = None

    @property
    def numbers_per_token(self) -> int:
        """Elements of keys and values together."""
        return self.kv_heads * (self.key_dim + self.value_dim)


class _Side:
    """Addresses of keys, or of values, in all layers, for the compiled kernel."""

    def __init__(self, tensors: Sequence[Tensor], heads: Sequence[int]) -> None:
        size = tensors[0].element_size()
        self._bases = torch.tensor([[tensor.data_ptr()] for tensor in tensors])
        self._dims = torch.tensor([[tensor.shape[-1]] for tensor in tensors])
        self._vector_bytes = self._dims * size
        self._heads = torch.tensor(heads)[:, None]

    def table(self, offsets: Tensor, capacities: Tensor, firsts: Tensor) -> tuple[Tensor, Tensor]:
        """Where rows begin, and how far a row's kv heads lie apart, int64 of shape [layers, rows].

        Args:
            offsets, capacities: of the rows' regions.
            firsts: the first token that is wanted.
        """
        vectors = offsets * self._heads + firsts
        return self._bases + vectors * self._vector_bytes, capacities * self._dims


class Arena:
    """Keys and values of all layers.

    Args:
        shapes: one per layer, by layer index.
        tokens: how many tokens fit, over all regions.
        dtype, device: of the tensors, but for layers that are elsewhere.
    """

    def __init__(self, shapes: Sequence[LayerShape], tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = tuple(shapes)
        self.tokens = tokens - tokens % MIN_CAPACITY
        self.keys = [_zeros(self.tokens * s.kv_heads, s.key_dim, dtype, s.device or device) for s in shapes]
        self.values = [_zeros(self.tokens * s.kv_heads, s.value_dim, dtype, s.device or device) for s in shapes]
        heads = [shape.kv_heads for shape in shapes]
        self.key_side = _Side(self.keys, heads)
        self.value_side = _Side(self.values, heads)

    def views(self, layer: int, region: Region, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a region's first tokens, shapes [kv_heads, length, dim]."""
        heads = self.shapes[layer].kv_heads
        start, stop = region.offset * heads, (region.offset + region.capacity) * heads
        keys = self.keys[layer][start:stop].view(heads, region.capacity, -1)
        values = self.values[layer][start:stop].view(heads, region.capacity, -1)
        return keys[:, :length], values[:, :length]

    def run_views(self, layer: int, first: Region, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """The same of neighbouring regions of one capacity, shapes [rows, kv_heads, length, dim]."""
        heads = self.shapes[layer].kv_heads
        start, stop = first.offset * heads, (first.offset + rows * first.capacity) * heads
        keys = self.keys[layer][start:stop].view(rows, heads, first.capacity, -1)
        values = self.values[layer][start:stop].view(rows, heads, first.capacity, -1)
        return keys[:, :, :length], values[:, :, :length]

    def copy(self, source: Region, target: Region, length: int) -> None:
        """Copy the first tokens of one region to another, which may overlap it, in all layers."""
        overlap = source.offset < target.offset + target.capacity and target.offset < source.offset + source.capacity
        for layer in range(len(self.shapes)):
            for old, new in zip(self.views(layer, source, length), self.views(layer, target, length), strict=True):
                new.copy_(old.clone() if overlap else old)


def _zeros(vectors: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, on the CPU as pages that the system gives out only when they are written.

    Masked keys have the weight 0 in pure torch, and 0 times whatever is in fresh memory may be no number. Small pages:
    with huge ones, each of the many vectors that a new row begins to fill would cost two megabytes of zeros at once.
    Private ones: shared ones cost twice the time, are given out at a mere look too, and a fork would write to them.
    """
    if device.type != "cpu":
        return torch.zeros(vectors, dim, dtype=dtype, device=device)
    size = max(1, vectors * dim * dtype.itemsize)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=vectors * dim).view(vectors, dim)
