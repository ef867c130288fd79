"""How often a token differs when the same request is sampled in another way: flips per million tokens.

The noise behind a token depends on seed and position alone, but logits round differently with the batch's shape, with
how a prompt is cut into chunks, and with reuse of prefixes. Where two candidates are nearly level, that can decide.
This samples the same seeded requests in one batch, and again alone, in another order and batch size, in small chunks,
and without reuse; each answer is compared with the first one up to the first token that differs. What follows that
token is another text, and is not counted.

    python scripts/bench/repro.py [--requests 64] [--tokens 128] [--dtype float32,bfloat16] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _workloads import built_in, spread
from rich.console import Console
from rich.table import Table

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import BATCH, Engine, EngineRequest, RequestId
from samplerpool.engine.factory import build_engine
from samplerpool.model.model_engine import ModelEngine
from samplerpool.types import Message

Answers = dict[RequestId, list[int]]


@dataclass(frozen=True)
class Way:
    """One way to sample the same requests.

    Args:
        at_once: how many are in the engine at a time.
        shuffled: in another order.
        options: of the engine; an engine without them (paged) leaves this way out.
        share: of the requests; what is slow takes fewer.
    """

    title: str
    at_once: int
    shuffled: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0


WAYS = (
    Way("in one batch", 64),
    Way("alone", 1, share=0.125),
    Way("in batches of 8, another order", 8, shuffled=True),
    Way("prompts in chunks of 16", 64, options={"step_tokens": 80}),
    Way("without reuse of prefixes", 64, options={"prefix_cache": False}),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
}


@dataclass(frozen=True)
class Flips:
    """How one way differed from the first one.

    Args:
        tokens: compared, differing ones included.
        flips: answers that differ.
    """

    dtype: str
    setting: str
    way: str
    tokens: int
    flips: int

    @property
    def per_million(self) -> float:
        """The estimate."""
        return self.flips / self.tokens * 1e6 if self.tokens else math.nan

    @property
    def at_most(self) -> float:
        """Upper end of the 95 % interval: 3 events where none was seen, else by the normal approximation."""
        events = self.flips + 1.645 * math.sqrt(self.flips) + 1.35 if self.flips else 3.0
        return events / self.tokens * 1e6 if self.tokens else math.nan


def compare(first: Answers, second: Answers) -> tuple[int, int]:
    """Tokens compared, and answers that differ, over the requests that both have."""
    tokens = flips = 0
    for request_id in first.keys() & second.keys():
        a, b = first[request_id], second[request_id]
        same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        differ = same < max(len(a), len(b))
        tokens += same + differ
        flips += differ
    return tokens, flips


def requests(loaded: ModelEngine, count: int, tokens: int) -> list[EngineRequest]:
    """Seeded requests: built-in prompts, in turn with each of the settings."""
    texts = built_in()
    made = []
    for number, at in enumerate(spread(len(texts), count)):
        message: Message = {"role": "user", "content": [{"type": "text", "value": texts[at]}]}
        prompt = loaded.renderer.prompt_ids([message])
        for client, setting in enumerate(SETTINGS.values()):
            params = resolve(sampling_params(setting, max_new_tokens=tokens, seed=number))
            made.append(EngineRequest((client, number), prompt, params, BATCH))
    return made


def answers(engine: Engine, todo: Sequence[EngineRequest], at_once: int) -> Answers:
    """Sample the requests, at most so many at a time."""
    waiting, running = list(reversed(todo)), set[RequestId]()
    given: Answers = {request.request_id: [] for request in todo}
    while waiting or running:
        while waiting and len(running) < at_once:
            request = waiting.pop()
            running.add(request.request_id)
            engine.add(request)
        for output in engine.step():
            given[output.request_id] += output.token_ids
            if output.error is not None:
                raise output.error
            if output.finish_reason is not None:
                running.discard(output.request_id)
    return given


def sample(way: Way, dtype: str, options: argparse.Namespace) -> Answers:
    """All requests in one way, by an engine of its own."""
    loaded = ModelEngine(ModelArguments(model_name_or_path=options.model, dtype=dtype))
    config = EngineConfig(engine=options.engine, max_batch=max(way.at_once, 1), options=dict(way.options))
    engine = build_engine(config, loaded.model, loaded.renderer)
    try:
        todo = requests(loaded, options.requests, options.tokens)
        todo = [todo[at] for at in spread(len(todo), max(len(SETTINGS), round(len(todo) * way.share)))]
        if way.shuffled:
            random.Random(1).shuffle(todo)
        return answers(engine, todo, way.at_once)
    finally:
        engine.close()


def measure(dtype: str, options: argparse.Namespace, console: Console) -> list[Flips]:
    """All ways in one dtype."""
    found: list[Flips] = []
    first: Answers = {}
    for way in WAYS:
        if way.options and options.engine != "dense":
            continue
        console.print(f"{dtype}: {way.title}", style="dim")
        given = sample(way, dtype, options)
        if not first:
            first = given
            continue
        for client, setting in enumerate(SETTINGS):
            tokens, flips = compare(
                {key: value for key, value in first.items() if key[0] == client},
                {key: value for key, value in given.items() if key[0] == client},
            )
            found.append(Flips(dtype, setting, way.title, tokens, flips))
    return found


def show(console: Console, found: list[Flips]) -> None:
    """The table: a line for each way, and for each dtype as a whole."""
    table = Table(title=f"Answers that differ from those {WAYS[0].title}, of so many tokens compared")
    for name in ("dtype", "way"):
        table.add_column(name)
    for name in (*SETTINGS, "flips per million", "95 %: at most"):
        table.add_column(name, justify="right")
    for dtype in dict.fromkeys(row.dtype for row in found):
        of_dtype = [row for row in found if row.dtype == dtype]
        for way in dict.fromkeys(row.way for row in of_dtype):
            _add_line(table, dtype, way, [row for row in of_dtype if row.way == way])
        _add_line(table, dtype, "all", of_dtype)
        table.add_section()
    console.print(table)


def _add_line(table: Table, dtype: str, way: str, rows: list[Flips]) -> None:
    sums = [_sum([row for row in rows if row.setting == setting]) for setting in SETTINGS]
    total = _sum(rows)
    cells = [f"{each.flips:,} of {each.tokens:,}" for each in sums]
    table.add_row(dtype, way, *cells, f"{total.per_million:,.0f}", f"{total.at_most:,.0f}")


def _sum(rows: list[Flips]) -> Flips:
    return Flips("", "", "", sum(row.tokens for row in rows), sum(row.flips for row in rows))


def main() -> None:
    """Parse the options, sample, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for samplerpool launch")
    parser.add_argument("--engine", default="dense")
    parser.add_argument("--requests", type=int, default=64, help="prompts; each is sampled with every setting")
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--dtype", default="float32,bfloat16", help="with commas between")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    console = Console(width=max(Console().width, 110))
    found = [row for dtype in options.dtype.split(",") for row in measure(dtype, options, console)]
    show(console, found)
    if options.json:
        rows = [{**asdict(row), "per_million": row.per_million} for row in found]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
