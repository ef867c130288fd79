"""LoRA adapters beside the weights, each token with its own: one forward pass serves requests of all of them.

A layer's output gets ``up(down(input))`` added, for the tokens of each adapter with that adapter's matrices, whichever
way the layer computes the rest (packed, quantized, by the model's own code). This is what PEFT computes for an adapter
that is not merged; it is added in one place a layer, so that the large product is shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.engine.packed_group import GroupedLinear
from samplerpool.errors import EngineError
from samplerpool.model.adapters import LowRank

Span = tuple[str | None, int]
"""An adapter's name, and how many successive tokens it has."""

Where = slice | Tensor
"""Tokens of a pass: all of them, successive ones, or by their numbers."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Whose the tokens of a pass are: each adapter that has any, and which."""

    count: int
    parts: tuple[tuple[str, Where], ...]


class Adapters:
    """What the adapters add to a model's layers, while they are attached.

    Args:
        names: of all adapters.
        active: the one of requests that choose none, or ``base``.
        layers: a layer's path in the model to what each adapter adds there.
    """

    def __init__(
        self,
        names: tuple[str, ...] = (),
        layers: Mapping[str, Mapping[str, LowRank]] | None = None,
        active: str = BASE_ADAPTER,
    ) -> None:
        self.names, self.active = names, active
        self._layers = layers or {}
        self._undo: list[Callable[[], None]] = []
        self._everyone: str | None = BASE_ADAPTER
        self._layouts: tuple[_Layout, ...] = ()

    def attach(self, model: Any) -> None:
        """Add to the model's layers from now on. To be called when they have their final form."""
        for path, weights in self._layers.items():
            layer, add = model.get_submodule(path), partial(self._add, weights)
            if isinstance(layer, GroupedLinear):
                self._undo.append(layer.add_to_output(add))
            else:
                self._undo.append(layer.register_forward_hook(partial(_after_layer, add)).remove)

    def detach(self) -> None:
        """Leave the layers alone. Idempotent."""
        while self._undo:
            self._undo.pop()()

    def route(self, spans: Sequence[Span], last: Sequence[str | None] = ()) -> None:
        """Say whose the tokens of the next pass are.

        Args:
            spans: in the order of the tokens, those of all rows one behind the other.
            last: of the tokens whose logits are asked for, where those are fewer: the output head gets them alone.
        """
        if not self._layers:
            return
        names = {name or BASE_ADAPTER for name, _ in spans}
        self._everyone = names.pop() if len(names) == 1 else None
        self._layouts = ()
        if self._everyone is None:
            # Where both are as many they are the same tokens: of each row one.
            self._layouts = (_layout(spans), _layout([(name, 1) for name in last]))

    def _add(self, weights: Mapping[str, LowRank], input: Tensor, output: Tensor) -> None:
        """Add to a layer's output, in place; shapes [..., inputs] and [..., outputs]."""
        if self._everyone == BASE_ADAPTER or not weights.keys() & self._present():
            return
        rows, sums = input.reshape(-1, input.shape[-1]), output.view(-1, output.shape[-1])
        for name, where in self._parts(len(rows)):
            low_rank = weights.get(name)
            if low_rank is None:
                continue
            if isinstance(where, slice):
                sums[where] += _product(low_rank, rows[where]).to(sums.dtype)
            else:
                where = where.to(rows.device)
                sums.index_add_(0, where, _product(low_rank, rows[where]).to(sums.dtype))

    def _present(self) -> set[str]:
        if self._everyone is not None:
            return {self._everyone}
        return {name for name, _ in self._layouts[0].parts}

    def _parts(self, count: int) -> tuple[tuple[str, Where], ...]:
        if self._everyone is not None:
            return ((self._everyone, slice(None)),)
        for layout in self._layouts:
            if layout.count == count:
                return layout.parts
        raise EngineError(
            "A layer with an adapter is given other tokens than those of the step, so it cannot be told whose they "
            "are; merge the adapter instead."
        )


def _after_layer(
    add: Callable[[Tensor, Tensor], None], _layer: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> None:
    add(inputs[0], output)


def _product(weights: LowRank, rows: Tensor) -> Tensor:
    return F.linear(F.linear(rows.to(weights.down.dtype), weights.down), weights.up)


def _layout(spans: Sequence[Span]) -> _Layout:
    tokens: dict[str, list[int]] = {}
    count = 0
    for name, length in spans:
        if name not in (None, BASE_ADAPTER):
            tokens.setdefault(str(name), []).extend(range(count, count + length))
        count += length
    return _Layout(count, tuple((name, _where(numbers)) for name, numbers in tokens.items()))


def _where(numbers: list[int]) -> Where:
    first, end = numbers[0], numbers[-1] + 1
    return slice(first, end) if end - first == len(numbers) else torch.tensor(numbers)
