"""Linear layers that multiply the same input, packed as one: queries, keys and values, or gate and up.

One product of 960 outputs takes less time than one of 576 and two of 192, most of all for the few rows of a decode
step, and layers too small to be packed alone come along. The layers stay where they were, so any model's code works on:
the first that is called with an input computes all, and the others hand out their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from samplerpool.engine import packed_linear
from samplerpool.engine.packed_linear import PackedLinear
from samplerpool.engine.packed_weight import PackedWeight, why_not

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that multiply the same input, in models that name them so."""


class PackedGroup:
    """The weights of several layers, one below the other.

    Args:
        layers: with the same inputs, all with a bias or none.
        compiled: whether the compiled product of few rows may be used.
    """

    def __init__(self, layers: list[nn.Linear], *, compiled: bool = True) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.packed = PackedWeight(weight, torch.cat(biases) if biases else None, compiled=compiled)
        self.right = self.packed.is_right(weight)
        self._additions: dict[int, Callable[[Tensor, Tensor], None]] = {}
        self._input: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def multiply(self, input: Tensor) -> Tensor:
        """All outputs, one layer's behind the other's, shape [..., sum of the sizes]."""
        outputs = self.packed.multiply(input)
        for index, add in self._additions.items():
            add(input, outputs.narrow(-1, sum(self.sizes[:index]), self.sizes[index]))
        return outputs

    def add_to_output(self, index: int, add: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        """Have a function called with each input and one layer's outputs, to which it adds in place.

        Returns:
            Ends it.
        """
        self._additions[index] = add

        def end() -> None:
            self._additions.pop(index, None)

        return end

    def part(self, input: Tensor, index: int) -> Tensor:
        """One layer's outputs. What the other layers of the group will ask for is kept until they do."""
        if input is not self._input or self._parts[index] is None:
            self._input, self._parts = input, list(torch.split(self.multiply(input), self.sizes, -1))
        part = cast(Tensor, self._parts[index])
        self._parts[index] = None
        if not any(kept is not None for kept in self._parts):
            self._input = None
        return part


class GroupedLinear(nn.Linear):
    """One layer of a group. For inference, like ``PackedLinear``; its weight is unpacked at each reading."""

    def __init__(self, group: PackedGroup, index: int, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_parameter("bias", layer.bias)
        self.group, self._index = group, index

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            return torch.split(self.group.packed.dense(), self.group.sizes)[self._index]
        return super().__getattr__(name)

    def add_to_output(self, add: Callable[[Tensor, Tensor], None]) -> Callable[[], None]:
        """As the group does, for this layer, also where the group is multiplied as a whole."""
        return self.group.add_to_output(self._index, add)

    def forward(self, input: Tensor) -> Tensor:
        if input.requires_grad or input.dim() < 2 or not input.numel():
            return nn.functional.linear(input, self.weight, self.bias)
        return self.group.part(input, self._index)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def _load_from_state_dict(self, *_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("This model's linear layers are packed, so it takes no new weights: load them, then pack.")


def pack_groups(model: nn.Module, *, compiled: bool = True) -> int:
    """Pack, in place, the layers of a model that multiply the same input. To be called before ``pack_linears``.

    Args:
        compiled: whether the compiled product of few rows may be used.

    Returns:
        How many groups there are now.
    """
    if why_not() is not None:
        return 0
    shared = packed_linear.shared_weights(model)
    count = 0
    for parent, names in _candidates(model):
        layers = [getattr(parent, name) for name in names]
        if not _fit_together(layers) or any(layer.weight.data_ptr() in shared for layer in layers):
            continue
        group = PackedGroup(layers, compiled=compiled)
        if not group.right:
            continue
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            parent.register_module(name, GroupedLinear(group, index, layer).train(layer.training))
        count += 1
    return count


def weight_count(model: nn.Module) -> int:
    """Numbers in a model's parameters, and in its packed weights, which are none."""
    packed = (module for module in model.modules() if isinstance(module, PackedLinear | GroupedLinear))
    hidden = (layer.in_features * layer.out_features for layer in packed if "weight" not in layer._parameters)
    return sum(parameter.numel() for parameter in model.parameters()) + sum(hidden)


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    for parent in list(model.modules()):
        for names in GROUPS:
            if all(type(getattr(parent, name, None)) is nn.Linear for name in names):
                yield parent, names


def _fit_together(layers: list[nn.Linear]) -> bool:
    alike = len({(layer.in_features, layer.bias is None) for layer in layers}) == 1
    elements = sum(layer.weight.numel() for layer in layers)
    return alike and all(packed_linear.is_plain(layer, layer.weight) for layer in layers) and (
        elements >= packed_linear.SMALLEST
    )  # fmt: skip
