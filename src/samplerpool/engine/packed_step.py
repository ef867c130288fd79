"""One packed forward pass: whose tokens are in it, where their keys go, what each sees, and how layers ask for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplerpool.engine.arena import Arena, Region
from samplerpool.engine.kernels import AttentionPlan

TILE_QUERIES = 24
"""Queries, of a prompt's successive tokens and of the heads that share a kv head, that the kernel computes together."""

_current = threading.local()


@dataclass(slots=True)
class Span:
    """Tokens of one row in this step.

    Args:
        region: where the row's keys and values are.
        start: position of the span's first token.
        count: tokens in this step; 1 for a decode row.
    """

    region: Region
    start: int
    count: int

    @property
    def end(self) -> int:
        """Keys of the row once this step's are written."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class Sight:
    """How far back a layer's tokens see: all, a sliding window, or their chunk of positions."""

    window: int = 0
    chunk: int = 0

    def first(self, position: int) -> int:
        """The first position that the token at ``position`` sees."""
        if self.chunk:
            return position - position % self.chunk
        return max(0, position + 1 - self.window) if self.window else 0


@dataclass(frozen=True, slots=True)
class Call:
    """How a layer attends.

    Args:
        scaling: of the scores.
        sight: how far back.
        softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
        sinks: shape [heads], one more score a head, which takes weight and has no value (GPT-OSS).
    """

    scaling: float
    sight: Sight
    softcap: float | None = None
    sinks: Tensor | None = None


class Step:
    """One packed forward pass: which tokens are whose. Decode rows come first, ordered by region.

    Args:
        arena: keys and values.
        decodes: spans of one token.
        chunks: spans of prefill.
        compiled: use the compiled kernel (CPU and float32 only).

    ``calls`` lists how the layers attended in it, in their order.
    """

    def __init__(
        self, arena: Arena, decodes: Sequence[Span], chunks: Sequence[Span], *, compiled: bool = False
    ) -> None:
        self.arena = arena
        self.decodes = decodes
        self.chunks = chunks
        self.compiled = compiled
        self.tokens = len(decodes) + sum(chunk.count for chunk in chunks)
        self._write_index: dict[tuple[int, torch.device], Tensor] = {}
        self._runs: list[tuple[int, Region, list[Span]]] | None = None
        self._biases: dict[tuple[int, Sight, torch.dtype, torch.device], Tensor | None] = {}
        self._kernel_plans: dict[tuple[int, int], AttentionPlan] = {}
        self.calls: list[Call] = []

    def positions(self) -> list[int]:
        """The position of each token."""
        return [
            *(span.start for span in self.decodes),
            *(position for span in self.chunks for position in range(span.start, span.end)),
        ]

    def write_index(self, kv_heads: int, device: torch.device) -> Tensor:
        """Vectors of a layer's arena that this step's keys go to, int64, ordered by (token, head)."""
        index = self._write_index.get((kv_heads, device))
        if index is None:
            bases: list[int] = []
            strides: list[int] = []
            for span in (*self.decodes, *self.chunks):
                base = span.region.offset * kv_heads + span.start
                bases += range(base, base + span.count)
                strides += [span.region.capacity] * span.count
            heads = torch.arange(kv_heads)
            index = (torch.tensor(bases)[:, None] + heads * torch.tensor(strides)[:, None]).flatten()
            self._write_index[kv_heads, device] = index = index.to(device)
        return index

    def runs(self) -> list[tuple[int, Region, list[Span]]]:
        """Decode rows in neighbouring regions of one capacity: (index of the first, its region, rows)."""
        if self._runs is None:
            self._runs = []
            for index, span in enumerate(self.decodes):
                if self._runs:
                    _, first, spans = self._runs[-1]
                    due = first.offset + len(spans) * first.capacity
                    if span.region.capacity == first.capacity and span.region.offset == due:
                        spans.append(span)
                        continue
                self._runs.append((index, span.region, [span]))
        return self._runs

    def bias(self, spans: Sequence[Span], sight: Sight, like: Tensor) -> Tensor | None:
        """Additive mask of decode rows, shape [rows, 1, 1, keys], or None if all see all keys."""
        key = (id(spans), sight, like.dtype, like.device)
        if key not in self._biases:
            length = max(span.end for span in spans)
            ends = torch.tensor([span.end for span in spans])[:, None]
            firsts = torch.tensor([sight.first(span.start) for span in spans])[:, None]
            at = torch.arange(length)
            hidden = (at >= ends) | (at < firsts)
            bias = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self._biases[key] = bias[:, None, None].to(like.device) if bool(hidden.any()) else None
        return self._biases[key]

    def chunk_bias(self, chunk: Span, sight: Sight, like: Tensor) -> Tensor:
        """Additive mask of a chunk, shape [tokens, keys]."""
        key = (id(chunk), sight, like.dtype, like.device)
        bias = self._biases.get(key)
        if bias is None:
            positions = torch.arange(chunk.start, chunk.end)[:, None]
            firsts = torch.tensor([sight.first(position) for position in range(chunk.start, chunk.end)])[:, None]
            at = torch.arange(chunk.end)
            hidden = (at > positions) | (at < firsts)
            bias = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, float("-inf")).to(like.device)
            self._biases[key] = bias
        return bias

    def kernel_plan(self, sight: Sight, group: int) -> AttentionPlan:
        """The kernel's view of this step's tokens, in tiles.

        Args:
            sight: where it is chunks of positions, a tile lies in one of them, and its keys begin there.
            group: query heads to a kv head.
        """
        plan = self._kernel_plans.get((sight.chunk, group))
        if plan is None:
            tiles = self._tiles(max(1, TILE_QUERIES // group), sight.chunk)
            offsets, capacities, firsts, ends, counts = torch.tensor(tiles).T.contiguous()
            tables = [side.table(offsets, capacities, firsts) for side in (self.arena.key_side, self.arena.value_side)]
            (keys, key_strides), (values, value_strides) = tables
            plan = AttentionPlan(ends - firsts, keys, values, key_strides, value_strides, counts=counts)
            self._kernel_plans[sight.chunk, group] = plan
        return plan

    def _tiles(self, tokens: int, chunk: int) -> list[tuple[int, int, int, int, int]]:
        """Successive tokens of one row: (offset, capacity, first key that they see, end, count)."""
        tiles: list[tuple[int, int, int, int, int]] = []
        for span in (*self.decodes, *self.chunks):
            start = span.start
            while start < span.end:
                first = start - start % chunk if chunk else 0
                end = min(start + tokens, span.end, first + chunk if chunk else span.end)
                tiles.append((span.region.offset, span.region.capacity, first, end, end - start))
                start = end
        return tiles

    def __enter__(self) -> Step:
        _current.step = self
        return self

    def __exit__(self, *_: object) -> None:
        _current.step = None


def current_step() -> Step:
    """The step that this thread is in."""
    step: Step = _current.step
    return step
