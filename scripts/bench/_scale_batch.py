"""Part of ``scale.py``: one client's ``samplerpool batch`` over pools of many workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _processes import POOL, Held, PeakWatch, Pool, cpu_seconds, own_folders, pool_of

ANSWER_TOKENS = 16
QUESTIONS = ("Name a colour.", "What is 17 times 23?", "Say hello in Danish.", "Which river runs through Vienna?")


@dataclass(frozen=True)
class Client:
    """What a client process used. ``cpu_s`` is of all its threads, user and system."""

    elapsed_s: float
    cpu_s: float
    peak_pss_mib: float
    peak_rss_mib: float


def write_rows(path: Path, rows: int) -> None:
    """Short rows with a column of their own."""
    with path.open("w") as file:
        for number in range(rows):
            row = {"id": f"row-{number}", "prompt": QUESTIONS[number % len(QUESTIONS)]}
            file.write(json.dumps(row) + "\n")


def run_client(source: Path, output: Path) -> Client:
    """``samplerpool batch`` as a user types it, in a process of its own."""
    command = (sys.executable, "-m", "samplerpool", "batch", str(source), "--output", str(output), "--pool", POOL)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen((*command, "--overwrite", "--seed", "0"), stdout=said, stderr=said)
        with PeakWatch(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            elapsed_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"samplerpool batch ended with {process.returncode}: {said.read().decode()}")
    return Client(elapsed_s, usage.ru_utime + usage.ru_stime, peak.pss_mib, peak.rss_mib)


def check_output(path: Path, rows: int, tokens: int) -> int:
    """How many rows are not as they should be: missing, twice, out of order, without an answer."""
    found = wrong = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            found += 1
            wrong += row["id"] != f"row-{number}" or row["generation"]["completion_tokens"] != tokens + 1
    return wrong + abs(rows - found)


def measure(workers: int, rows: int, tokens: int = ANSWER_TOKENS, max_batch: int = 64) -> dict[str, Any]:
    """Launch, answer the rows, stop. What a client of a single row uses is taken off, and shown as the start's."""
    with own_folders() as folder:
        source, one, output = folder / "rows.jsonl", folder / "one.jsonl", folder / "answers.jsonl"
        write_rows(source, rows)
        write_rows(one, 1)
        with pool_of(workers, folder, engine_options={"tokens": tokens}, max_batch=max_batch) as pool:
            figures = _measure_on(pool, source, one, output, rows)
            figures["wrong_rows"] = check_output(output, rows, tokens)
        figures |= {"launch_s": pool.launch_s, "stop_s": pool.stop_s, "left": len(pool.left)}
    return {"workers": workers, "rows": rows, **figures}


def _measure_on(pool: Pool, source: Path, one: Path, output: Path, rows: int) -> dict[str, Any]:
    start = run_client(one, output)
    before = sum(map(cpu_seconds, pool.workers))
    whole = run_client(source, output)
    used = sum(map(cpu_seconds, pool.workers)) - before
    held = [Held.by(pid) for pid in (*pool.workers, pool.supervisor)]
    return {
        "rows_per_s": rows / (whole.elapsed_s - start.elapsed_s),
        "client_us_per_row": (whole.cpu_s - start.cpu_s) / rows * 1e6,
        "client_start_s": start.cpu_s,
        "client_peak_pss_mib": whole.peak_pss_mib,
        "client_peak_rss_mib": whole.peak_rss_mib,
        "client_start_rss_mib": start.peak_rss_mib,
        "worker_us_per_row": used / rows * 1e6,
        "pool_pss_mib": sum(one.pss_mib for one in held),
    }
