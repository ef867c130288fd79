"""Whether one can walk away from a batch: it is killed over and over, and goes on, and what that and its journal cost.

chaos      ``samplerpool batch`` runs undisturbed; then it is begun again, and at random moments the client or one of
           the workers is killed (SIGKILL) and the client started again with ``--resume``, until it is through. The
           files are compared byte by byte and row by row.
overhead   of a batch's whole time on the real model, the part that goes by in the journal and in putting the output
           together; beside it the same for scripted rows that take a worker next to nothing.

    python scripts/bench/walkaway.py [--parts chaos,overhead] [--engines scripted,real] [--rows 2000,60] [--kills 30,6]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _processes import own_folders
from _troubles import Troubles
from recovery import prompts_for
from rich.console import Console
from rich.table import Table

from samplerpool import SyncSampler
from samplerpool.batch.durable import run_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.data.collection import DataCollection
from samplerpool.wire.endpoint import find_pool

WORKERS = 2
PATIENCE_S = {"scripted": (0.7, 2.5), "real": (2.0, 9.0)}
"""How long the client is left alone between two kills: drawn between these."""
CLIENT_IS_KILLED = 2 / 3
"""So often it is the client, else a worker."""
EASY_ROWS = 20_000


@dataclass(frozen=True)
class Chaos:
    """One course. ``different`` counts output rows that are not those of the undisturbed run, missing ones included."""

    engine: str
    rows: int
    undisturbed_s: float
    chaos_s: float
    clients_killed: int
    workers_killed: int
    different: int
    same_bytes: bool


def write_rows(path: Path, prompts: Sequence[str]) -> None:
    """One prompt a row."""
    path.write_text("".join(json.dumps({"id": number, "prompt": p}) + "\n" for number, p in enumerate(prompts)))


def start_client(source: Path, output: Path, pool: str, *more: str) -> subprocess.Popen[bytes]:
    """``samplerpool batch`` as a user types it, greedy and short."""
    command = (sys.executable, "-m", "samplerpool", "batch", str(source), "--output", str(output), "--pool", pool)
    settings = ("--seed", "1", "--temperature", "0", "--max-new-tokens", "32", *more)
    return subprocess.Popen((*command, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(client: subprocess.Popen[bytes]) -> None:
    """Wait for its end, which must be a good one."""
    _, said = client.communicate()
    if client.returncode:
        raise SystemExit(f"samplerpool batch ended with {client.returncode}: {said.decode()[-2000:]}")


def chaos(engine: str, rows: int, kills: int, folder: Path, pool: str, seed: int) -> Chaos:
    """Undisturbed, then with at least so many kills."""
    source, whole, output = (folder / f"{engine}-{name}.jsonl" for name in ("in", "whole", "out"))
    write_rows(source, prompts_for(engine, rows))
    begun = time.monotonic()
    finish(start_client(source, whole, pool))
    undisturbed_s = time.monotonic() - begun
    draw, troubles = random.Random(seed), Troubles(pool, seed)
    killed, begun = 0, time.monotonic()
    while killed + troubles.sent < kills or not output.exists():
        if output.exists():  # through too early: once more
            output.unlink()
        client = start_client(source, output, pool, "--resume")
        while True:
            try:
                client.wait(draw.uniform(*PATIENCE_S[engine]))
            except subprocess.TimeoutExpired:
                if draw.random() < CLIENT_IS_KILLED:
                    client.kill()
                    client.communicate()
                    killed += 1
                    break
                troubles.send(signal.SIGKILL)
                continue
            finish(client)
            break
    chaos_s = time.monotonic() - begun
    ours, theirs = whole.read_bytes().splitlines(), output.read_bytes().splitlines()
    different = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return Chaos(
        engine,
        rows,
        undisturbed_s,
        chaos_s,
        killed,
        troubles.sent,
        different,
        whole.read_bytes() == output.read_bytes(),
    )


def overhead(sampler: SyncSampler, engine: str, prompts: Sequence[str], folder: Path) -> dict[str, Any]:
    """Seconds of a whole run, and of it those in the journal and at the output's putting together."""
    source = folder / f"{engine}-overhead.jsonl"
    write_rows(source, prompts)
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent += time.perf_counter() - start

        return run

    start = time.perf_counter()
    with DataCollection.open(str(source)) as data, BatchOutput(folder / f"{engine}-overhead.out") as output:
        for name in ("write", "keep_safe", "assemble"):
            setattr(output, name, timed(getattr(output, name)))
        params = {"seed": 1, "temperature": 0.0, "max_new_tokens": 32}
        run_durably(sampler.connection, data.rows(), output, source=str(source), params=params)
    elapsed_s = time.perf_counter() - start
    return {"engine": engine, "rows": len(prompts), "elapsed_s": elapsed_s, "journal_s": spent}


def launch(engine: str) -> SyncSampler:
    """A pool whose workers are started again however often they die."""
    scripted: dict[str, Any] = {"engine": "scripted", "devices": "cpu"} if engine == "scripted" else {}
    return SyncSampler.launch(None, WORKERS, restart_window_s=0.0, **scripted)


def chaos_table(results: Sequence[Chaos]) -> Table:
    """Of the part ``chaos``."""
    table = Table(title=f"A batch that is killed over and over, {WORKERS} workers")
    for column in ("engine", "rows", "clients killed", "workers killed", "rows that differ", "same bytes",
                   "undisturbed s", "with the kills s"):  # fmt: skip
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(r.engine, f"{r.rows:,}", str(r.clients_killed), str(r.workers_killed), str(r.different),
                      "yes" if r.same_bytes else "no", f"{r.undisturbed_s:.1f}", f"{r.chaos_s:.1f}")  # fmt: skip
    return table


def overhead_table(results: Sequence[dict[str, Any]]) -> Table:
    """Of the part ``overhead``."""
    table = Table(title="What the journal takes")
    for column in ("engine", "rows", "s", "of it in the journal s", "%", "us a row"):
        table.add_column(column, justify="right")
    for r in results:
        share, each = 100 * r["journal_s"] / r["elapsed_s"], 1e6 * r["journal_s"] / r["rows"]
        table.add_row(r["engine"], f"{r['rows']:,}", f"{r['elapsed_s']:.1f}", f"{r['journal_s']:.3f}", f"{share:.2f}",
                      f"{each:.0f}")  # fmt: skip
    return table


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="chaos,overhead")
    parser.add_argument("--engines", default="scripted,real")
    parser.add_argument("--rows", default="2000,60", metavar="N,N", help="chaos: of scripted and of real ones")
    parser.add_argument("--kills", default="30,6", metavar="N,N", help="chaos: at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    numbers = {
        engine: (int(rows), int(kills))
        for engine, rows, kills in zip(
            ("scripted", "real"), options.rows.split(","), options.kills.split(","), strict=True
        )
    }
    courses: list[Chaos] = []
    costs: list[dict[str, Any]] = []
    with own_folders() as folder:
        for engine in options.engines.split(","):
            with launch(engine) as sampler:
                assert sampler.connection_file is not None
                pool = find_pool(sampler.connection_file.pool).pool
                rows, kills = numbers[engine]
                if "overhead" in options.parts:
                    easy = [f"[[say:{number}]]" for number in range(EASY_ROWS)]
                    prompts = easy if engine == "scripted" else prompts_for(engine, rows)
                    costs.append(overhead(sampler, engine, prompts, folder))
                if "chaos" in options.parts:
                    courses.append(chaos(engine, rows, kills, folder, pool, options.seed))
    console = Console(width=max(Console().width, 140))
    for table in (chaos_table(courses) if courses else None, overhead_table(costs) if costs else None):
        if table is not None:
            console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"chaos": [asdict(c) for c in courses], "overhead": costs}, indent=1) + "\n")
    if any(course.different and course.engine == "scripted" for course in courses):
        sys.exit("The scripted engine's rows differ.")


if __name__ == "__main__":
    main()
