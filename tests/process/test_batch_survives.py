"""Batches whose workers are killed, hang, are restarted, or run into rows that end every worker: each row is answered
once, as it would have been; only a row that kills its worker by itself is an error row."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from samplerpool import SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.batch.tally import BatchSummary
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import rows_from_dataset
from samplerpool.pool.remote import ask_supervisor
from samplerpool.wire.endpoint import find_pool
from samplerpool.wire.messages import Restart
from tests.process.conftest import DEADLINE_S


def pool(workers: int = 2, **arguments: Any) -> SyncSampler:
    """One that starts workers again without much delay."""
    settings = {"restart_window_s": 0.0, "max_batch": 4, **arguments}
    return SyncSampler.launch(engine="scripted", devices="cpu", workers=workers, **settings)


def pid(sampler: SyncSampler, worker: int) -> int:
    assert sampler.connection_file is not None
    return next(w.process.pid for w in find_pool(sampler.connection_file.pool).workers if w.index == worker)


def run(
    sampler: SyncSampler, prompts: Sequence[str], on_count: Callable[[int], None] = lambda count: None, **params: Any
) -> tuple[list[RowResult], BatchSummary]:
    """All results; ``on_count`` hears how many there are at each."""
    results: list[RowResult] = []

    def on_result(result: RowResult) -> None:
        results.append(result)
        on_count(len(results))

    summary = run_batch(
        sampler.connection, rows_from_dataset(prompts), params={"seed": 5, **params}, on_result=on_result
    )
    results.sort(key=lambda result: (result.row.index, result.sample))
    return results, summary


def texts(results: Sequence[RowResult]) -> list[str | None]:
    return [result.answer.text if result.answer else None for result in results]


def convictions(results: Sequence[RowResult]) -> dict[tuple[int, int], str]:
    """Row and sample of the error rows, and what their errors begin with."""
    return {
        (r.row.index, r.sample): f"{type(r.error).__name__}: {r.error.message.partition(',')[0]}"
        for r in results
        if r.error is not None
    }


ALONE = "The row took its worker along 3 times when it ran alone"


# ---- workers that are killed ----------------------------------------------------------------------------------------


def killed_midway(workers: int, chance: random.Random) -> None:
    prompts = [f"[[random:12]][[pace:0.004]] {i}" for i in range(90)]
    kill_at = {chance.randrange(5, 60) for _ in range(workers)}
    with pool(workers) as sampler:
        whole, _ = run(sampler, prompts)

        def kill(count: int) -> None:
            if count in kill_at:
                with contextlib.suppress(ProcessLookupError):  # killed already, and not yet back
                    os.kill(pid(sampler, chance.randrange(workers)), signal.SIGKILL)

        survived, summary = run(sampler, prompts, kill)
    assert [(r.row.index, r.sample, r.error) for r in survived] == [(i, 0, None) for i in range(90)]
    assert texts(survived) == texts(whole)
    assert len(set(texts(whole))) == 90
    assert 1 <= summary.deaths <= len(kill_at)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_workers_lose_no_row_and_change_no_answer(workers: int) -> None:
    killed_midway(workers, random.Random(0))


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("time", range(20))
def test_killed_twenty_times_over(workers: int, time: int) -> None:
    killed_midway(workers, random.Random(time))


def test_a_rolling_restart_that_drops_what_runs_is_no_death() -> None:
    prompts = [f"[[random:12]][[pace:0.02]] {i}" for i in range(60)]
    with pool() as sampler:
        whole, _ = run(sampler, [prompt.replace("0.02", "0") for prompt in prompts])
        file = sampler.connection_file
        assert file is not None
        restart = threading.Thread(target=ask_supervisor, args=(file, Restart(1, None, 0.0), DEADLINE_S))
        survived, summary = run(sampler, prompts, lambda count: restart.start() if count == 10 else None)
        restart.join()
    assert texts(survived) == texts(whole)
    assert summary.deaths == 0


# ---- rows that kill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "deed"), [(1, "crash:2"), (2, "crash:2"), (2, "raise:1")])
def test_a_row_that_ends_every_worker_is_the_only_error_row(workers: int, deed: str) -> None:
    prompts = [f"[[say:answer {i}]][[pace:0.002]]" for i in range(100)]
    prompts[37] = f"[[say:poison]][[{deed}]]"
    with pool(workers) as sampler:
        results, summary = run(sampler, prompts)
    crashes = deed.startswith("crash")
    times = "3" if crashes else r"\d+"  # an engine that raises again may be at fault itself, so there may be more
    [(place, reason)] = convictions(results).items()
    assert place == (37, 0)
    assert re.fullmatch(ALONE.replace("3", times), reason.partition(": ")[2])
    assert reason.startswith("WorkerDied: " if crashes else "EngineBroken: ")
    assert texts(results) == [None if i == 37 else f"answer {i}" for i in range(100)]
    assert 3 <= summary.deaths <= (8 if crashes else 20)  # 6 rows in flight at most


def test_samples_of_a_poisoned_row_share_its_fate() -> None:
    prompts = [f"[[random:8]] {i}" for i in range(30)]
    prompts[11] = "[[crash:1]]"
    with pool() as sampler:
        results, _ = run(sampler, prompts, num_return_sequences=3)
        clean, _ = run(sampler, [p if "crash" not in p else "fine" for p in prompts], num_return_sequences=3)
    found = convictions(results)
    assert found.keys() == {(11, sample) for sample in range(3)}
    # one of them may still be out when another is convicted, and die once more
    assert all(
        re.fullmatch(r"WorkerDied: The row took its worker along [345] times when .* alone", f) for f in found.values()
    )
    assert [(r.row.index, r.sample) for r in results] == [(i, s) for i in range(30) for s in range(3)]
    assert [t for t in texts(results) if t is not None] == [t for t in texts(clean) if t != "fine"]


@pytest.mark.parametrize("place", [19, pytest.param(15, marks=pytest.mark.full)])
def test_a_row_that_hangs_the_engine_is_the_only_error_row(place: int) -> None:
    """At the end it hangs alone; before, with others behind it."""
    prompts = [f"[[say:answer {i}]]" for i in range(20)]
    prompts[place] = "[[hang]]"
    with pool(max_batch=1, hang_timeout_s=0.4) as sampler:
        results, _ = run(sampler, prompts)
    assert convictions(results) == {(place, 0): f"WorkerDied: {ALONE}"}
    assert texts(results) == [None if i == place else f"answer {i}" for i in range(20)]


@pytest.mark.full
def test_the_command_tells_of_deaths_and_the_pool_outlives_a_poisoned_row_in_a_full_batch(tmp_path: Path) -> None:
    """With the limits for restarts as they are by default, and one worker to take all the deaths."""
    prompts = [f"[[say:answer {i}]][[pace:0.01]]" for i in range(300)]
    prompts[150] = "[[tokens:5]][[crash:5]]"
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    with pool(1, restart_window_s=300.0, max_batch=64) as sampler:
        assert sampler.connection_file is not None
        name = sampler.connection_file.pool
        command = ["-m", "samplerpool", "batch", str(source), "--output", str(output), "--pool", name]
        batch = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
        assert "".join(sampler.generate("still here")) == "still here"
    assert batch.returncode == 3, batch.stderr
    assert "299 answered, 1 with errors\n  WorkerDied: 1 row (150): The row took its worker along" in batch.stdout
    assert re.search(r"^\d+ worker deaths; what was being answered there was run again$", batch.stdout, re.MULTILINE)
    generations = [json.loads(line)["generation"] for line in output.read_text().splitlines()]
    assert [g["text"] for g in generations] == ["" if i == 150 else f"answer {i}" for i in range(300)]
    assert generations[150]["error"].startswith(f"WorkerDied: {ALONE}, so it is not tried again. The last time: ")
