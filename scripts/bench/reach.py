"""How far it reaches: the ways to a pool side by side, and how many workers one client can feed. Parts:

planner  from 1 worker to 10,000: rows a second, what they cost the client, and where the first limit is. The workers
         are simulated, and all that the client does is timed as it runs (``_reach_plan.py``).

    python scripts/bench/reach.py [--parts planner] [--workers 1,10,100,1000,10000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _reach_plan import PACE_S, PLACES, Reach, first_limits, message_s, reach_of, rows_s
from rich.console import Console
from rich.table import Table

PARTS = ("planner",)


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
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := sorted({*parts} - {*PARTS}):
        parser.error(f"there is no part {unknown[0]!r}, only {', '.join(PARTS)}")
    console = Console(width=140)
    result: dict[str, Any] = {}
    if "planner" in parts:
        result["planner"] = planner([int(count) for count in options.workers.split(",")], console)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
