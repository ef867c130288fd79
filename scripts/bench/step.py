"""Where the time of a decode step goes: linear layers, attention, cache, sampling, the rest of the model, Python.

Fills the dense engine with requests whose prompts have the same length, and takes the steps in which all of them
decode. Half of the steps run untouched: their median is the step's time. In the other half, interleaved with them,
timers around the parts tell the shares; what the timers themselves cost is shown too. The ceiling is what float32
matrix products of the model's shapes reach in the same run; a step's share of it counts everything in the step.

    python scripts/bench/step.py [--batch 1,8,32,64,128] [--length 128] [--engine-option kernel=false] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _gemm import ceiling, flops_per_token, model_shapes
from rich.console import Console
from rich.table import Table
from transformers import AttentionInterface

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine import fused_layers, small_ops
from samplerpool.engine.base import BATCH, EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.dense_attention import IMPLEMENTATION, ArenaCache, packed_attention
from samplerpool.engine.packed_weight import PackedWeight
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.model.model_engine import ModelEngine

PARTS: dict[str, str] = {
    "linear": "linear layers",
    "attention": "attention",
    "cache": "rotation, cache writes",
    "leaves": "norms, activations",
    "model": "rest of the model",
    "sampling": "sampling",
    "engine": "scheduling, Python",
}
WARM_UP_STEPS = 3
MEASURED_STEPS = 12


class Stopwatch:
    """Time by part. A part inside another one counts as itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return wrapper

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def timers(model: Any, engine: Any) -> Iterator[Stopwatch]:
    """Timers around all parts, taken away again at the end."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for module in model.modules():
            if next(module.children(), None) is None:
                part = "linear" if "Linear" in type(module).__name__ else "leaves"
                stack.enter_context(_replaced(module, "forward", watch, part))
        for owner, name, part in (
            (model, "forward", "model"),
            (engine, "step", "engine"),
            (RowSampler, "sample", "sampling"),
            (ArenaCache, "update", "cache"),
            (PackedWeight, "multiply", "linear"),
            (small_ops, "rotate_and_keep", "cache"),
            (small_ops, "rms_norm", "leaves"),
            (small_ops, "gated", "leaves"),
            (fused_layers, "attend", "attention"),
        ):
            stack.enter_context(_replaced(owner, name, watch, part))
        AttentionInterface.register(IMPLEMENTATION, watch.timed("attention", packed_attention))
        stack.callback(AttentionInterface.register, IMPLEMENTATION, packed_attention)
        yield watch


@contextmanager
def _replaced(owner: Any, name: str, watch: Stopwatch, part: str) -> Iterator[None]:
    was_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, watch.timed(part, before))
    try:
        yield
    finally:
        if was_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@dataclass(frozen=True)
class StepFigures:
    """Medians over steps of one batch size; times in milliseconds."""

    batch: int
    step_ms: float
    tokens_per_s: float
    timers_ms: float
    parts_ms: dict[str, float]


def fill(engine: DenseEngine, batch: int, length: int, vocabulary: int, draw: random.Random) -> None:
    """Give the engine requests, and step until all of them decode."""
    params = resolve(sampling_params(temperature=0.0, max_new_tokens=length + 10_000, ignore_eos=True))
    for number in range(batch):
        prompt = tuple(draw.randrange(vocabulary) for _ in range(length))
        engine.add(EngineRequest((batch, number), prompt, params, BATCH))
    decoding: set[object] = set()
    while len(decoding) < batch:
        decoding |= {output.request_id for output in engine.step()}
    for _ in range(WARM_UP_STEPS):
        engine.step()


def measure(engine: DenseEngine, model: Any, batch: int) -> StepFigures:
    """Steps with and without timers, in turns."""
    plain: list[float] = []
    timed: list[dict[str, float]] = []
    for _ in range(MEASURED_STEPS):
        start = time.perf_counter()
        engine.step()
        plain.append(time.perf_counter() - start)
        with timers(model, engine) as watch:
            engine.step()
        timed.append(watch.seconds)
    step = statistics.median(plain)
    parts = {part: 1e3 * statistics.median(seconds[part] for seconds in timed) for part in PARTS}
    total = 1e3 * statistics.median(sum(seconds.values()) for seconds in timed)
    return StepFigures(batch, 1e3 * step, batch / step, total - 1e3 * step, parts)


def show(rows: list[StepFigures], length: int, token_flops: int, flops_per_s: float) -> None:
    """The table: one column a batch size."""
    table = Table(title=f"A decode step at length {length}, ms (share of the parts)")
    table.add_column("")
    for row in rows:
        table.add_column(f"batch {row.batch}", justify="right")
    for part, title in PARTS.items():
        sums = [sum(row.parts_ms.values()) for row in rows]
        cells = [f"{r.parts_ms[part]:.1f} ({r.parts_ms[part] / s:.0%})" for r, s in zip(rows, sums, strict=True)]
        table.add_row(title, *cells)
    table.add_section()
    table.add_row("cost of the timers", *(f"{row.timers_ms:.1f}" for row in rows))
    table.add_row("whole step, untimed", *(f"{row.step_ms:.1f}" for row in rows))
    table.add_row("tokens/s", *(f"{row.tokens_per_s:.0f}" for row in rows))
    table.add_row("of the ceiling", *(f"{row.tokens_per_s * token_flops / flops_per_s:.0%}" for row in rows))
    console = Console(width=max(Console().width, 110))
    console.print(table)
    console.print(f"Ceiling: {flops_per_s / 1e9:.0f} GFLOP/s in float32 matrix products.")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for samplerpool launch")
    parser.add_argument("--batch", default="1,8,32,64,128", help="batch sizes, with commas between")
    parser.add_argument("--length", type=int, default=128, help="tokens in each row before the first step")
    parser.add_argument("--engine-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Load, measure, print."""
    options = parse()
    batches = [int(text) for text in options.batch.split(",")]
    loaded = ModelEngine(ModelArguments(model_name_or_path=options.model))
    model, shapes = loaded.model, model_shapes(loaded.model)
    settings = {name: json.loads(value) for name, value in (text.split("=", 1) for text in options.engine_option)}
    config = EngineConfig(engine="dense", max_batch=max(batches), options=settings)
    engine = DenseEngine(
        model, config, eos_token_ids=loaded.renderer.codec.eos_token_ids, max_model_len=loaded.max_model_len
    )
    speeds, rows = [ceiling(shapes)], []
    draw, vocabulary = random.Random(0), model.config.get_text_config().vocab_size
    for batch in batches:
        fill(engine, batch, options.length, vocabulary, draw)
        rows.append(measure(engine, model, batch))
        speeds.append(ceiling(shapes))
        for number in range(batch):
            engine.abort((batch, number))
    engine.close()
    show(rows, options.length, sum(flops_per_token(shapes)), max(speeds))
    if options.json:
        document = {"length": options.length, "ceiling_flops_per_s": max(speeds), "threads": torch.get_num_threads()}
        options.json.write_text(json.dumps({**document, "steps": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
