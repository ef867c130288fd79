"""How long a batch takes whose rows and workers are unlike, against the lower bound: nobody ever idle.

Answers have lengths of which few are long (Zipf), and workers are of different speed. Beside the project's plan stands
a static split, where each worker gets an equal share of the rows at the start.

simulated  the planner itself, on simulated time, for pools of several kinds.
measured   scripted workers of two pools, one twice as slow as the other, over their sockets. What a token takes is
           measured there first, with full batches; the lower bound is of that.

"known" is with ``--length-column``: the planner is told beforehand how long the answers will be.

    python scripts/bench/makespan.py [--parts simulated,measured] [--rows 2000] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _processes import own_folders, pool_of
from _simulated import Machine, Simulation, lower_bound_s, static_split_s, zipf_lengths
from rich.console import Console
from rich.table import Table

from samplerpool.batch.runner import run_batch
from samplerpool.client.connection import PoolConnection, WorkerAddress
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row, row_from, with_expected_tokens

LONGEST = 512
BATCH = 16
WORKERS = 2
STEPS_S = (0.01, 0.02)
"""What a step takes at the workers of the two pools, and a little more."""
POOLS = {
    "4 equal workers": [Machine(16, 0.02)] * 4,
    "4 workers, up to 4 times as slow": [Machine(16, 0.01), Machine(16, 0.02), Machine(16, 0.03), Machine(16, 0.04)],
    "8 workers, one 10 times as slow": [Machine(32, 0.02)] * 7 + [Machine(32, 0.2)],
    "2 workers with batches of 64, one 3 times as slow": [Machine(64, 0.02), Machine(64, 0.06)],
}
SIMULATED_ROWS = 4000

Figures = dict[str, float]


def simulate(machines: Sequence[Machine], seed: int) -> Figures:
    """Times as multiples of the lower bound."""
    lengths = zipf_lengths(SIMULATED_ROWS, seed, longest=LONGEST)
    bound_s = lower_bound_s(lengths, machines)
    known = Simulation(lengths, machines, known=True).run()
    unknown = Simulation(lengths, machines, known=False).run()
    return {
        "bound_s": bound_s,
        "static": static_split_s(lengths, machines) / bound_s,
        "unknown": unknown.seconds / bound_s,
        "known": known.seconds / bound_s,
        "wasted": unknown.wasted / sum(lengths),
    }


def rows_of(lengths: Sequence[int]) -> list[Row]:
    """Rows whose scripted answers have so many tokens."""
    return [
        row_from({"prompt": f"[[tokens:{tokens - 1}]]", "tokens": tokens}, index, f"row {index}")
        for index, tokens in enumerate(lengths)
    ]


@contextlib.contextmanager
def workers_of_two_speeds(folder: Path) -> Iterator[list[WorkerAddress]]:
    """The workers of two pools, the faster ones first."""
    with contextlib.ExitStack() as stack:
        addresses: list[WorkerAddress] = []
        for number, step_s in enumerate(STEPS_S):
            options = {"pool": f"speed-{number}", "engine_options": {"step_s": step_s}, "max_batch": BATCH}
            pool = stack.enter_context(pool_of(WORKERS, folder, **options))
            for worker in pool.launched.connection.workers:
                addresses.append(WorkerAddress(len(addresses), worker.endpoint, worker.incarnation))
        yield addresses


def run_s(addresses: Sequence[WorkerAddress], lengths: Sequence[int], *, known: bool = False) -> float:
    """Seconds until the last row has its answer."""
    results: list[RowResult] = []
    with PoolConnection(addresses) as connection:
        start = time.perf_counter()
        run_batch(
            connection,
            with_expected_tokens(rows_of(lengths), "tokens") if known else rows_of(lengths),
            params={"max_new_tokens": LONGEST + 1},
            run_seed=0,
            on_result=results.append,
        )
        elapsed_s = time.perf_counter() - start
    answered = {r.row.index: r.answer.completion_tokens for r in results if r.answer is not None}
    if answered != dict(enumerate(lengths)):
        raise RuntimeError("Not every row has its answer.")
    return elapsed_s


def static_s(addresses: Sequence[WorkerAddress], lengths: Sequence[int]) -> float:
    """The same with an equal share for each worker, all at the same time: until the last of them is done."""
    share = -(-len(lengths) // len(addresses))
    parts = [lengths[n * share : (n + 1) * share] for n in range(len(addresses))]
    alone = [[WorkerAddress(0, *bare)] for bare in _bare(addresses)]
    start = time.perf_counter()
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(run_s, alone, parts))
    return time.perf_counter() - start


def _bare(addresses: Sequence[WorkerAddress]) -> list[tuple[str, str]]:
    return [(address.endpoint, address.incarnation) for address in addresses]


def measure(addresses: Sequence[WorkerAddress], rows: int, seed: int) -> Figures:
    """All forms in turn; times as multiples of the lower bound."""
    machines = []
    for endpoint, incarnation in _bare(addresses):
        full_batch_s = run_s([WorkerAddress(0, endpoint, incarnation)], [200] * BATCH)
        machines.append(Machine(BATCH, full_batch_s / 200))
    lengths = zipf_lengths(rows, seed, longest=LONGEST)
    bound_s = lower_bound_s(lengths, machines)
    return {
        "bound_s": bound_s,
        "static": static_s(addresses, lengths) / bound_s,
        "unknown": run_s(addresses, lengths) / bound_s,
        "known": run_s(addresses, lengths, known=True) / bound_s,
    }


def median_of(rounds: Sequence[Figures]) -> Figures:
    """Of each figure."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def show(results: dict[str, dict[str, Figures]]) -> None:
    """A table."""
    table = Table(title="A skewed batch: its time as a multiple of the lower bound")
    for column in ("", "pool", "lower bound, s", "static split", "lengths unknown", "lengths known", "computed twice"):
        table.add_column(column, justify="left" if column in ("", "pool") else "right")
    for part, pools in results.items():
        for name, f in pools.items():
            wasted = f"{f['wasted']:.1%}" if "wasted" in f else "-"
            ratios = (f"{f[key]:.3f}" for key in ("static", "unknown", "known"))
            table.add_row(part, name, f"{f['bound_s']:.1f}", *ratios, wasted)
    Console(width=140).print(table)


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="simulated,measured")
    parser.add_argument("--rows", type=int, default=2000, help="of the measured part")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts, seeds = options.parts.split(","), range(options.repeats)
    results: dict[str, dict[str, Figures]] = {}
    if "simulated" in parts:
        results["simulated"] = {
            name: median_of([simulate(machines, seed) for seed in seeds]) for name, machines in POOLS.items()
        }
    if "measured" in parts:
        with own_folders() as folder, workers_of_two_speeds(folder) as addresses:
            figures = median_of([measure(addresses, options.rows, seed) for seed in seeds])
        results["measured"] = {f"{2 * WORKERS} workers, 2 of them half as fast": figures}
    show(results)
    if options.json:
        data: dict[str, Any] = {"rows": options.rows, "repeats": options.repeats, "medians": results}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
