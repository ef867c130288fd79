"""How far a pool and a client go: many workers, many clients, many requests, and what each costs. Scripted engine.

The parts, each of which can be run alone:

batch    ``samplerpool batch`` as a process of its own, over pools of 1, 8 and 64 workers: rows a second, the client's
         CPU time a row (reading, submitting, receiving, writing; all threads), its memory, launch and stop of the pool.
million  the same with 1,000,000 rows whose answers are short, at two workers that take many at a time; once.
streams  the client's CPU time a streamed token frame, one stream and 64, as fast as they go and at a model's pace.
clients  200 client processes on one worker: who is served when, and the largest gap of an honest stream beside them.
flood    the same with few clients that send tens of thousands of requests a message.
day      200,000 requests in a row: what client, supervisor and workers hold behind a tenth, half and all of them.

Medians of the repeats where there are several; the parts take turns.

    python scripts/bench/scale.py [--parts batch,streams] [--repeats 3] [--never-idle] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _scale_batch
import _scale_clients
import _scale_day
import _scale_streams
from _processes import cores_never_idle
from rich.console import Console
from rich.table import Table

Results = list[dict[str, Any]]
REPEATED = ("batch", "streams")
"""The others take long and show what a repeat would not change."""


def measure(part: str, options: argparse.Namespace) -> Results:
    """One round of a part."""
    if part == "batch":
        return [_scale_batch.measure(workers, options.rows) for workers in options.workers]
    if part == "million":
        return [_scale_batch.measure(2, options.million, tokens=1, max_batch=1024)]
    if part == "streams":
        return [{"case": name, **figures} for name, figures in _scale_streams.measure().items()]
    if part == "clients":
        return [_scale_clients.measure(options.clients, options.requests, options.requests)]
    if part == "flood":
        return [_scale_clients.measure(options.flooding, _scale_clients.PER_MESSAGE, _scale_clients.PER_MESSAGE)]
    return [_scale_day.measure(options.day)]


def median_of(rounds: Sequence[Any]) -> Any:
    """Of figures that are alike in shape: the median of each number; what is no number is the first's."""
    first = rounds[0]
    if isinstance(first, dict):
        return {key: median_of([figures[key] for figures in rounds]) for key in first}
    if isinstance(first, list):
        return [median_of(items) for items in zip(*rounds, strict=True)]
    return statistics.median(rounds) if isinstance(first, int | float) else first


# ---- tables -------------------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def batch_table(results: Results) -> Table:
    """Of the part ``batch``."""
    columns = ("workers", "rows/s", "client CPU µs/row", "+ to start, s", "client PSS, RSS (one row: RSS) MiB",
               "worker CPU µs/row", "pool PSS MiB", "launch s", "stop s", "wrong rows", "left")  # fmt: skip
    rows = [
        (
            f"{r['workers']:.0f}", f"{r['rows_per_s']:,.0f}", f"{r['client_us_per_row']:.0f}",
            f"{r['client_start_s']:.2f}",
            f"{r['client_peak_pss_mib']:.0f}, {r['client_peak_rss_mib']:.0f} ({r['client_start_rss_mib']:.0f})",
            f"{r['worker_us_per_row']:.0f}", f"{r['pool_pss_mib']:,.0f}", f"{r['launch_s']:.1f}", f"{r['stop_s']:.1f}",
            f"{r['wrong_rows']:.0f}", f"{r['left']:.0f}",
        )
        for r in results
    ]  # fmt: skip
    return _table(f"One client, a batch of {results[0]['rows']:,.0f} short rows", columns, rows)


def streams_table(results: Results) -> Table:
    """Of the part ``streams``."""
    columns = ("", "frames/s", "pieces/frame", "messages/frame", "client CPU µs/frame")
    rows = [
        (
            r["case"], f"{r['frames_per_s']:,.0f}", f"{r['pieces_per_frame']:.2f}", f"{r['messages_per_frame']:.3f}",
            f"{r['client_us_per_frame']:.1f}",
        )
        for r in results
    ]  # fmt: skip
    return _table("One client, streams", columns, rows)


def clients_table(results: Results) -> Table:
    """Of the parts ``clients`` and ``flood``."""
    columns = ("clients", "requests of each", "first, median, last ready s", "errors", "worker CPU s, PSS MiB",
               "stream's largest gap before, during ms", "of a process that sleeps", "left")  # fmt: skip
    rows = [
        (
            f"{r['clients']:.0f}", f"{r['requests']:,.0f}",
            f"{r['first_s']:.1f}, {r['median_s']:.1f}, {r['last_s']:.1f}",
            ", ".join(f"{name} {count:,}" for name, count in r["error_kinds"].items()) or "0",
            f"{r['worker_cpu_s']:.1f}, {r['worker_pss_mib']:.0f}",
            *(f"{r[gap]['before']:.0f}, {r[gap]['during']:.0f}" for gap in ("stream_gap_ms", "sleep_gap_ms")),
            f"{r['left']:.0f}",
        )
        for r in results
    ]  # fmt: skip
    return _table("Many clients on one worker", columns, rows)


def day_table(results: Results) -> Table:
    """Of the part ``day``."""
    (result,) = results
    names = list(next(iter(result["held"].values())))
    rows = [
        (mark, *(f"{h['pss_mib']:.1f}, {h['rss_mib']:.1f}; {h['threads']}, {h['descriptors']}" for h in held.values()))
        for mark, held in result["held"].items()
    ]
    title = f"{result['requests']:,} requests in {result['elapsed_s']:.0f} s, {result['left']:.0f} left"
    return _table(title, ("behind: PSS, RSS MiB; threads, descriptors", *names), rows)


PARTS: dict[str, Callable[[Results], Table]] = {
    "batch": batch_table,
    "million": batch_table,
    "streams": streams_table,
    "clients": clients_table,
    "flood": clients_table,
    "day": day_table,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between")
    parser.add_argument("--repeats", type=int, default=3, help=f"of {' and '.join(REPEATED)}")
    parser.add_argument("--rows", type=int, default=50_000, help="batch: rows")
    parser.add_argument("--workers", default="1,8,64", help="batch: sizes of the pools, with commas between")
    parser.add_argument("--million", type=int, default=1_000_000, help="million: rows")
    parser.add_argument("--clients", type=int, default=200, help="clients: processes")
    parser.add_argument("--requests", type=int, default=100, help="clients: of each, sent at once")
    parser.add_argument("--flooding", type=int, default=4, help="flood: processes")
    parser.add_argument("--day", type=int, default=200_000, help="day: requests")
    parser.add_argument("--never-idle", action="store_true", help="keep the cores busy with processes that give way")
    parser.add_argument("--json", type=Path, help="write the figures, those of each repeat too, to this file")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    options.workers = [int(number) for number in options.workers.split(",")]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return options


def main() -> None:
    """Measure, print."""
    options = parse()
    rounds: dict[str, list[Results]] = {part: [] for part in options.parts}
    with cores_never_idle() if options.never_idle else contextlib.nullcontext():
        for number in range(options.repeats):
            for part in options.parts:
                if number == 0 or part in REPEATED:
                    rounds[part].append(measure(part, options))
    results = {part: median_of(found) for part, found in rounds.items()}
    console = Console(width=max(Console().width, 160))
    for part in options.parts:
        console.print(PARTS[part](results[part]))
    if options.json:
        document = {"cores": len(os.sched_getaffinity(0)), "medians": results, "rounds": rounds}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
