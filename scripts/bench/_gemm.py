"""This machine's ceiling: how fast float32 matrix products of a model's shapes go at best, and what a model needs."""

from __future__ import annotations

import time
from typing import Any

import torch

ROWS = 512
"""Enough rows for the weights to be read once for many products."""

Shape = tuple[int, int]


def linear_shapes(config: Any) -> list[tuple[Shape, int]]:
    """(out, in) of a model's linear layers with how often each occurs, the output head last.

    Args:
        config: of transformers; the model is built without memory for its weights.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model_shapes(model)


def model_shapes(model: torch.nn.Module) -> list[tuple[Shape, int]]:
    """The same of a model that is there."""
    counts: dict[Shape, int] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            shape = (module.out_features, module.in_features)
            counts[shape] = counts.get(shape, 0) + 1
    vocabulary = max(counts)  # the output head has by far the most rows
    return [*((s, n) for s, n in counts.items() if s != vocabulary), (vocabulary, counts[vocabulary])]


def flops_per_token(shapes: list[tuple[Shape, int]]) -> tuple[int, int]:
    """Floating point operations in linear layers per token: of the layers, and of the output head."""
    flops = [2 * out * width * count for (out, width), count in shapes]
    return sum(flops[:-1]), flops[-1]


def ceiling(shapes: list[tuple[Shape, int]], seconds: float = 0.25) -> float:
    """The FLOP/s of one pass over all shapes, each taken with the faster of the two libraries that torch has for it.

    Args:
        seconds: spent on each shape and library.
    """
    operations = spent = 0.0
    for (out, width), count in shapes:
        flops = 2.0 * ROWS * out * width * count
        operations += flops
        spent += flops / max(_rate(out, width, packed, seconds) for packed in (False, True))
    return operations / spent


def _rate(out: int, width: int, packed: bool, seconds: float) -> float:
    data, weight = torch.randn(ROWS, width), torch.randn(out, width)
    if packed:
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    best, end = float("inf"), time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            start = time.perf_counter()
            if packed:
                torch.ops.mkldnn._linear_pointwise(data, ready, None, "none", [], "")
            else:
                torch.nn.functional.linear(data, weight)
            best = min(best, time.perf_counter() - start)
    return 2.0 * ROWS * out * width / best
