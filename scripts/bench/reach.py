"""How far it reaches: the ways to a pool side by side, and how many workers one client can feed. Parts:

planner  from 1 worker to 10,000: rows a second, what they cost the client, and where the first limit is. The workers
         are simulated, and all that the client does is timed as it runs (``_reach_plan.py``).

ways     the same answers of the real small model, all streams at once: through ``AsyncSampler``, the HTTP gateway, a
         pool on Ray and Ray Data, in turns (``_reach_ways.py``): tokens a second, and time to the first token. The last
         two need the extra ``ray``. Ray Data begins an actor for each data set; its time is without that.

    python scripts/bench/reach.py [--parts ways,planner] [--streams 64] [--tokens 64] [--repeats 3]
                                  [--workers 1,10,100,1000,10000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _reach_plan import PACE_S, PLACES, Reach, first_limits, message_s, reach_of, rows_s
from _reach_ways import Turn, measured
from rich.console import Console
from rich.table import Table

PARTS = ("ways", "planner")


def planner(workers: Sequence[int], console: Console) -> dict[str, Any]:
    """Simulate and time each number of workers; print a line for each."""
    costs = message_s(), rows_s()
    table = Table(title=f"One client, workers of {PLACES} places at {1 / PACE_S:.0f} tokens/s each")
    columns = (
        "workers",
        "rows/s",
        "rows a message",
        "deciding",
        "codec",
        "sockets",
        "files",
        "client a row",
        "cores",
        "file",
    )
    for column in columns:
        table.add_column(column, justify="right")
    reaches = [reach_of(count, *costs) for count in workers]
    for reach in reaches:
        table.add_row(*_row(reach))
    console.print(table)
    limits = first_limits(reaches)
    for count, what in limits:
        console.print(f"{count:>8,.0f} workers: {what}")
    return {"reaches": [asdict(reach) for reach in reaches], "limits": limits, "message_s": costs[0], "row_s": costs[1]}


def ways(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Medians of each way, and its time as a multiple of the first one's, of turns that were neighbours."""
    turns = measured(options.model, options.streams, options.tokens, options.repeats)
    table = Table(title=f"{options.streams} streams of {options.tokens} tokens each, one worker")
    for column in ("way", "seconds", "of AsyncSampler's", "tokens/s", "first token"):
        table.add_column(column, justify="right")
    direct, result = next(iter(turns.values())), {}
    for name, each in turns.items():
        ratio = statistics.median(turn.seconds / other.seconds for turn, other in zip(each, direct, strict=True))
        median = Turn(
            statistics.median(turn.seconds for turn in each),
            each[0].tokens,
            statistics.median(turn.first_token_s or 0.0 for turn in each) or None,
        )
        first = "with the rest" if median.first_token_s is None else f"{median.first_token_s * 1e3:,.0f} ms"
        speed = f"{median.tokens / median.seconds:,.0f}"
        table.add_row(name, f"{median.seconds:.2f}", f"{ratio:.3f}", speed, first)
        result[name] = {**asdict(median), "ratio": ratio, "turns": [asdict(turn) for turn in each]}
    console.print(table)
    return result


def _row(reach: Reach) -> tuple[str, ...]:
    parts = (reach.decide_s, reach.codec_s, reach.socket_s, reach.rows_s, reach.row_s)
    return (
        f"{reach.workers:,}",
        f"{reach.rows_per_s:,.0f}",
        f"{reach.rows_per_message:.1f}",
        *(f"{seconds * 1e6:.1f} µs" for seconds in parts),
        f"{reach.cores:.3f}",
        f"{reach.file_bytes / 1e6:.2f} MB, {reach.file_s * 1e3:.0f} ms",
    )


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--workers", default="1,10,100,1000,10000", help="of the planner, separated by commas")
    parser.add_argument("--model", help="of the ways: hub id or path; the package's small one if left out")
    parser.add_argument("--streams", type=int, default=64, help="of the ways, and so are the next two")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := sorted({*parts} - {*PARTS}):
        parser.error(f"there is no part {unknown[0]!r}, only {', '.join(PARTS)}")
    console = Console(width=140)
    result: dict[str, Any] = {}
    if "ways" in parts:
        result["ways"] = ways(options, console)
    if "planner" in parts:
        result["planner"] = planner([int(count) for count in options.workers.split(",")], console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
