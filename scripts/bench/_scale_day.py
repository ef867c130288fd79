"""Part of ``scale.py``: a day's worth of requests in a row, and what each process holds on the way.

One client process goes through all of it on one connection: batches, streams in threads, some of them dropped halfway.
Beside it come and go clients of a few requests.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from _processes import POOL, Held, own_folders, pool_of

from samplerpool import SyncSampler

WORKERS = 2
MARKS = (0.1, 0.5, 1.0)
BATCH = 2_000
STREAMS, DROPPED = 160, 20
"""Streams a round, and how many of them are dropped after their first piece."""
THREADS = 8
VISITORS, PER_VISIT = 4, 20
"""Connections a round that are made for a few requests."""
ROUND = BATCH + STREAMS + VISITORS * PER_VISIT


def client(pipe: Connection, rounds: int) -> None:
    """Go through the rounds; behind each, say how many and wait for the word."""
    with SyncSampler.connect(POOL) as sampler:
        for number in range(1, rounds + 1):
            _round(sampler)
            pipe.send(number)
            pipe.recv()


def _round(sampler: SyncSampler) -> None:
    rows = [f"[[tokens:{8 + number % 16}]]" for number in range(BATCH)]
    answers = sampler.batch_infer(rows)
    if len(answers) != BATCH or any(answer["generation"]["error"] for answer in answers):
        raise RuntimeError("A row of a batch failed.")
    parts = [range(start, STREAMS, THREADS) for start in range(THREADS)]
    done: list[int] = []
    threads = [threading.Thread(target=lambda p=part: done.append(_streams(sampler, p))) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sum(done) != STREAMS:
        raise RuntimeError("A stream failed.")
    for _ in range(VISITORS):
        with SyncSampler.connect(POOL) as visitor:
            visitor.batch_infer(["[[tokens:8]]"] * PER_VISIT)


def _streams(sampler: SyncSampler, numbers: Sequence[int]) -> int:
    for number in numbers:
        stream = sampler.generate("[[tokens:40]]")
        if number < DROPPED:
            next(stream)
            stream.close()
        elif len("".join(stream)) != 40:
            raise RuntimeError("A stream is not as it should be.")
    return len(numbers)


def measure(requests: int) -> dict[str, Any]:
    """As many rounds as make up the requests; what is held behind a tenth, half and all of them."""
    rounds = -(-requests // ROUND)
    context = multiprocessing.get_context("spawn")
    held: dict[str, dict[str, Any]] = {}
    resource_tracker.ensure_running()  # before the folders are there, or it would count as left behind in them
    with own_folders() as folder, pool_of(WORKERS, folder, max_batch=64) as pool:
        ours, theirs = context.Pipe()
        process = context.Process(target=client, args=(theirs, rounds), daemon=True)
        start = time.perf_counter()
        process.start()
        theirs.close()
        assert process.pid is not None
        pids = {"client": process.pid, "supervisor": pool.supervisor}
        pids |= {f"worker {index}": pid for index, pid in enumerate(pool.workers)}
        marks = {max(1, round(mark * rounds)): f"{mark:.0%}" for mark in MARKS}
        for _ in range(rounds):
            number = ours.recv()
            if number in marks:
                held[marks[number]] = {name: Held.by(pid).as_dict() for name, pid in pids.items()}
            ours.send("go on")
        process.join()
        elapsed_s = time.perf_counter() - start
    return {"requests": rounds * ROUND, "elapsed_s": elapsed_s, "held": held, "left": len(pool.left)}
