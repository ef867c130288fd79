"""What it costs when workers die under a batch, and that no row is lost by it.

A batch is answered undisturbed; with one worker killed (SIGKILL) midway; with one killed every few seconds; and with
all troubles at once: those kills; a worker that hangs, and is killed by its supervisor for it (scripted: a row makes it
hang, every time it is tried; real: SIGSTOP, once); a row that ends each worker that runs it (scripted only). Such a row
becomes an error row, and no other may; each answer is compared with the undisturbed run's. Restarts are neither limited
in number nor delayed ever longer (--restart-window 0), as these rules are there to end just such a course.

    python scripts/bench/recovery.py [--engines scripted,real] [--workers 2,4] [--rows 300] [--kill-every 3,15]
        [--courses "one killed,many killed,all at once"]
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from _troubles import Troubles
from _workloads import TASKS, TOPICS
from rich.console import Console
from rich.table import Table

from samplerpool import SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import rows_from_dataset

COURSES = ("one killed", "many killed", "all at once")
REAL_WORKERS = 2
SCRIPTED_TOKENS, SCRIPTED_PACE_S, SCRIPTED_BATCH = 30, 0.02, 8
REAL_TOKENS = 32
HANG_TIMEOUT_S = {"scripted": 2.0, "real": 10.0}
CRASHES_AT, HANGS_AT = 1 / 2, 1 / 4
"""Where in the batch the bad rows stand."""

Signals = Mapping[int, signal.Signals]
"""What is sent to a worker when so many rows have come."""


@dataclass(frozen=True)
class Figures:
    """Of one run.

    Args:
        lost: rows that have no answer, though nothing was wrong with them.
        duplicated: rows that came more than once.
        changed: answers that are not those of the undisturbed run.
        errors: error rows that the bad ones have become.
        deaths: of workers that held rows; ``killed`` of all workers, by the script.
    """

    engine: str
    workers: int
    course: str
    rows: int
    lost: int
    duplicated: int
    changed: int
    errors: int
    killed: int
    deaths: int
    seconds: float
    ratio: float


def compare(
    undisturbed: Mapping[int, str], results: Sequence[tuple[int, str | None]], bad: Sequence[int]
) -> tuple[int, int, int, int]:
    """How many rows were lost, duplicated, changed; and how many bad ones became error rows.

    Args:
        undisturbed: row number to text.
        results: row number and text of what came, None for an error row.
        bad: rows that cannot be answered.
    """
    came = Counter(index for index, _ in results)
    texts = dict(results)
    honest = [index for index in undisturbed if index not in bad]
    lost = sum(texts.get(index) is None for index in honest)
    changed = sum(texts.get(index) not in (None, undisturbed[index]) for index in honest)
    errors = sum(came[index] > 0 and texts[index] is None for index in bad)
    return lost, sum(count > 1 for count in came.values()), changed, errors


# ---- troubles -----------------------------------------------------------------------------------------------------


# ---- runs ---------------------------------------------------------------------------------------------------------


def prompts_for(engine: str, count: int) -> list[str]:
    """As many prompts, all different."""
    if engine == "scripted":
        return [f"[[random:{SCRIPTED_TOKENS}]][[pace:{SCRIPTED_PACE_S}]] {number}" for number in range(count)]
    texts = (f"{task.format(topic)} ({number})" for number in range(count) for task, topic in product(TASKS, TOPICS))
    return list(islice(texts, count))


def answer(
    sampler: SyncSampler, prompts: Sequence[str], on_count: Callable[[int], None]
) -> tuple[list[tuple[int, str | None]], int, float]:
    """Row numbers with texts as they came, deaths, seconds; ``on_count`` hears how many there are."""
    results: list[tuple[int, str | None]] = []

    def on_result(result: RowResult) -> None:
        results.append((result.row.index, result.answer.text if result.answer else None))
        on_count(len(results))

    params = {"seed": 1, "max_new_tokens": max(SCRIPTED_TOKENS + 1, REAL_TOKENS), "temperature": 0.0}
    begun = time.monotonic()
    summary = run_batch(sampler.connection, rows_from_dataset(prompts), params=params, on_result=on_result)
    return results, summary.deaths, time.monotonic() - begun


def measure(
    engine: str, workers: int, rows: int, kill_every_s: float, model: str | None, courses: Sequence[str]
) -> Iterator[Figures]:
    """The courses, one after the other in one pool."""
    prompts = prompts_for(engine, rows)
    settings: dict[str, Any] = {"hang_timeout_s": HANG_TIMEOUT_S[engine], "restart_window_s": 0.0}
    if engine == "scripted":
        settings |= {"engine": "scripted", "max_batch": SCRIPTED_BATCH, "devices": "cpu"}
    with SyncSampler.launch(model, workers, **settings) as sampler:
        assert sampler.connection_file is not None
        pool = sampler.connection_file.pool
        came, _, undisturbed_s = answer(sampler, prompts, lambda count: None)
        whole = {index: text for index, text in came if text is not None}
        if len(whole) < rows:
            raise SystemExit(f"Undisturbed, {rows - len(whole)} of {rows} rows were not answered.")
        yield Figures(engine, workers, "undisturbed", rows, 0, 0, 0, 0, 0, 0, undisturbed_s, 1.0)
        for course in courses:
            wait_for_all(sampler)
            bad: list[int] = []
            troubles = Troubles(pool, rows)
            signals = {rows // 2: signal.SIGKILL} if course == "one killed" else {}
            if course == "all at once" and engine == "real":
                signals = {rows // 4: signal.SIGSTOP}
            elif course == "all at once":
                bad = [int(rows * HANGS_AT), int(rows * CRASHES_AT)]
                for place, deed in zip(bad, ("hang", "crash"), strict=True):
                    prompts[place] = f"[[tokens:{SCRIPTED_TOKENS}]][[pace:{SCRIPTED_PACE_S}]][[{deed}:5]]"

            def on_count(count: int, troubles: Troubles = troubles, signals: Signals = signals) -> None:
                if count in signals:
                    troubles.send(signals[count])

            with troubles.kills(kill_every_s) if course != "one killed" else nullcontext():
                came, deaths, seconds = answer(sampler, prompts, on_count)
            found = compare(whole, came, bad)
            yield Figures(
                engine, workers, course, rows, *found, troubles.sent, deaths, seconds, seconds / undisturbed_s
            )


def wait_for_all(sampler: SyncSampler) -> None:
    """Until all workers are there again, so that the next course begins as this one did."""
    if not sampler.connection.wait_until(lambda views: all(view.up for view in views), 300.0):
        raise SystemExit("A worker has not come back within 300 s.")


def show(figures: Sequence[Figures]) -> None:
    """Print the table."""
    table = Table(title="A batch whose workers die")
    for name in ("engine", "workers", "course"):
        table.add_column(name)
    numbers = ("rows", "lost", "duplicated", "changed", "error rows", "killed", "deaths under rows", "seconds", "ratio")
    for name in numbers:
        table.add_column(name, justify="right")
    for f in figures:
        counts = (f.workers, f.course, f.rows, f.lost, f.duplicated, f.changed, f.errors, f.killed, f.deaths)
        table.add_row(f.engine, *map(str, counts), f"{f.seconds:.1f}", f"{f.ratio:.2f}")
    Console(width=max(Console().width, 130)).print(table)


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="scripted,real")
    parser.add_argument(
        "--workers", default="2,4", help=f"numbers of scripted ones; of real ones there are {REAL_WORKERS}"
    )
    parser.add_argument("--courses", default=",".join(COURSES), help="beside the undisturbed one")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--kill-every", default="3,15", metavar="S,S", help="seconds, of scripted and of real ones")
    parser.add_argument("--model", help="as for samplerpool launch, for the real ones")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    every = dict(zip(("scripted", "real"), map(float, options.kill_every.split(",")), strict=True))
    courses = options.courses.split(",")
    if unknown := set(courses) - set(COURSES):
        parser.error(f"There is no course {', '.join(sorted(unknown))}; there are {', '.join(COURSES)}.")
    figures: list[Figures] = []
    for engine in options.engines.split(","):
        for workers in map(int, options.workers.split(",")) if engine == "scripted" else (REAL_WORKERS,):
            for found in measure(engine, workers, options.rows, every[engine], options.model, courses):
                figures.append(found)
                wrong = f"{found.lost} lost, {found.duplicated} duplicated, {found.changed} changed"
                print(f"{engine}, {workers} workers, {found.course}: {found.seconds:.1f} s, {wrong}", flush=True)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n")
    if any(f.lost or f.duplicated or f.changed for f in figures):
        raise SystemExit("Rows were lost, duplicated or changed.")


if __name__ == "__main__":
    main()
