"""How long idle OpenMP threads should spin: a decode step's time by GOMP_SPINCOUNT, alone and beside busy neighbours.

Runs ``step.py`` in children of its own, as libgomp reads the variable once, at the start of a process. Values and
conditions take turns, so that a change of the machine meets them all. Prints the medians over the repeats.

    python scripts/bench/spin.py [--values default,20000,2000] [--busy 0,1] [--batch 1,8,64] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

DEFAULT = "default"


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that do nothing but compute, one core each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def steps(value: str, busy: int, batches: str) -> dict[int, float]:
    """Milliseconds a step by batch size, in one fresh process."""
    environ = {name: text for name, text in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as a worker has it
    if value != DEFAULT:
        environ["GOMP_SPINCOUNT"] = value
    with tempfile.TemporaryDirectory() as folder, neighbours(busy):
        report = Path(folder) / "step.json"
        script = Path(__file__).with_name("step.py")
        command = [sys.executable, str(script), "--batch", batches, "--json", str(report)]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
        return {row["batch"]: row["step_ms"] for row in json.loads(report.read_text())["steps"]}


def main() -> None:
    """Measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", default=f"{DEFAULT},20000,2000", help="of GOMP_SPINCOUNT; default: not set")
    parser.add_argument("--busy", default="0,1", help="numbers of busy neighbours")
    parser.add_argument("--batch", default="1,8,64", help="batch sizes")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    values, busy = options.values.split(","), [int(text) for text in options.busy.split(",")]
    times: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for _ in range(options.repeat):
        for count in busy:
            for value in values:
                for batch, milliseconds in steps(value, count, options.batch).items():
                    times[value, count, batch].append(milliseconds)
    table = Table(title=f"Milliseconds a decode step, median of {options.repeat} (lowest to highest)")
    for title in ("GOMP_SPINCOUNT", "busy neighbours", *(f"batch {batch}" for batch in options.batch.split(","))):
        table.add_column(title, justify="right")
    for count in busy:
        for value in values:
            runs = [times[value, count, int(batch)] for batch in options.batch.split(",")]
            cells = (f"{statistics.median(run):.0f} ({min(run):.0f} to {max(run):.0f})" for run in runs)
            table.add_row(value, str(count), *cells)
        table.add_section()
    Console(width=max(Console().width, 100)).print(table)


if __name__ == "__main__":
    main()
