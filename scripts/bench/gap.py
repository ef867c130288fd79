"""How long running streams wait while a long prompt arrives: gaps between their tokens, before and meanwhile.

The dense engine streams some answers; then a prompt of ``--tokens`` tokens comes, computed in chunks between the
streams' steps. Every step gives each stream a token, so a step is a gap. The usual gap is the median before; the
longest one and the 99th percentile are those while the prompt is computed. Medians of the repeats.

    python scripts/bench/gap.py [--streams 1,8] [--tokens 4000] [--chunk TOKENS] [--repeats 3]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import INTERACTIVE, EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.model.model_engine import ModelEngine

STREAM_PROMPT = 64
USUAL_STEPS = 30
LONG_PROMPT = 1_000_000
"""Number of the long prompt's request."""


@dataclass(frozen=True)
class Gaps:
    """Of one repeat; times in milliseconds."""

    usual: float
    longest: float
    p99: float
    first_token: float


def request(number: int, length: int, draw: random.Random, vocabulary: int) -> EngineRequest:
    """One that somebody watches, and that does not end by itself."""
    params = resolve(sampling_params(temperature=0.0, max_new_tokens=100_000, ignore_eos=True))
    return EngineRequest((0, number), tuple(draw.randrange(vocabulary) for _ in range(length)), params, INTERACTIVE)


def timed_step(engine: DenseEngine) -> tuple[float, set[int]]:
    """Milliseconds, and the numbers of the requests that gained a token."""
    start = time.perf_counter()
    gained = {output.request_id[1] for output in engine.step()}
    return 1e3 * (time.perf_counter() - start), gained


def measure(engine: DenseEngine, streams: int, tokens: int, draw: random.Random, vocabulary: int) -> Gaps:
    """Streams, then the prompt among them."""
    for number in range(streams):
        engine.add(request(number, STREAM_PROMPT, draw, vocabulary))
    while len(timed_step(engine)[1]) < streams:
        pass
    usual = [timed_step(engine)[0] for _ in range(USUAL_STEPS)]
    engine.add(request(LONG_PROMPT, tokens, draw, vocabulary))
    gaps: list[float] = []
    gained: set[int] = set()
    while LONG_PROMPT not in gained:
        gap, gained = timed_step(engine)
        if len(gained) < streams:
            raise RuntimeError(f"A step gave {len(gained)} of {streams} streams a token.")
        gaps.append(gap)
    for number in (*range(streams), LONG_PROMPT):
        engine.abort((0, number))
    p99 = sorted(gaps)[int(0.99 * (len(gaps) - 1))]
    return Gaps(statistics.median(usual), max(gaps), p99, sum(gaps))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as for samplerpool launch")
    parser.add_argument("--streams", default="1,8", help="numbers of running streams, with commas between")
    parser.add_argument("--tokens", type=int, default=4_000, help="of the prompt that arrives")
    parser.add_argument("--chunk", type=int, help="the engine's option prefill_chunk; without it the engine decides")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Load, measure, print."""
    options = parse()
    loaded = ModelEngine(ModelArguments(model_name_or_path=options.model))
    settings: dict[str, Any] = {} if options.chunk is None else {"prefill_chunk": options.chunk}
    config = EngineConfig(engine="dense", options={**settings, "prefix_cache": False})
    eos = loaded.renderer.codec.eos_token_ids
    engine = DenseEngine(loaded.model, config, eos_token_ids=eos, max_model_len=loaded.max_model_len)
    vocabulary, draw = loaded.model.config.get_text_config().vocab_size, random.Random(0)
    table = Table(title=f"Gaps between the tokens of a stream while a prompt of {options.tokens:,} tokens arrives, ms")
    for name in ("streams", "usual", "longest", "ratio", "99th percentile", "ratio", "prompt's first token after"):
        table.add_column(name, justify="right")
    for streams in (int(text) for text in options.streams.split(",")):
        found = [measure(engine, streams, options.tokens, draw, vocabulary) for _ in range(options.repeats)]
        usual, longest, p99, first = (
            statistics.median(getattr(gaps, name) for gaps in found)
            for name in ("usual", "longest", "p99", "first_token")
        )
        ratios = [statistics.median(getattr(g, name) / g.usual for g in found) for name in ("longest", "p99")]
        table.add_row(
            str(streams), f"{usual:.0f}", f"{longest:.0f}", f"{ratios[0]:.1f}", f"{p99:.0f}", f"{ratios[1]:.1f}",
            f"{first / 1e3:.1f} s",
        )  # fmt: skip
    engine.close()
    Console(width=max(Console().width, 110)).print(table)


if __name__ == "__main__":
    main()
