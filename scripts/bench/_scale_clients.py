"""Part of ``scale.py``: hundreds of client processes on one worker, beside an honest stream in a process of its own.

The machine's own part in the stream's gaps is measured meanwhile by a process that does nothing but sleep.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _processes import POOL, Held, Pool, cpu_seconds, own_folders, pool_of

from samplerpool import SyncSampler
from samplerpool.client.connection import Call, PoolConnection
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.messages import ChatPrompt

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["_scale_clients"])
PACE_S = 0.01
UNDISTURBED_S = 3.0
ANSWER = "[[tokens:16]]"
PER_MESSAGE = 60_000
"""Requests of a flooding client in one message; below the protocol's limit of entries."""


def _prompt(text: str) -> ChatPrompt:
    return ChatPrompt([{"role": "user", "content": [{"type": "text", "value": text}]}])


# ---- in processes of their own ------------------------------------------------------------------------------------


def client(pipe: Connection, file: Path, requests: int, at_once: int) -> None:
    """Connect, say so, wait for the word, have all requests answered, and say when that was.

    Args:
        at_once: requests in a message; the next message goes when all of them have ended.
    """
    with PoolConnection.attach(ConnectionFile.read(file)) as connection:
        pipe.send(connection.workers()[0].up)
        pipe.recv()
        errors: dict[str, int] = {}
        for start in range(0, requests, at_once):
            for call in _ended(connection, min(at_once, requests - start)):
                if call.error is not None:
                    name = type(call.error).__name__
                    errors[name] = errors.get(name, 0) + 1
        pipe.send((time.monotonic(), errors))
        pipe.recv()


def _ended(connection: PoolConnection, count: int) -> Iterable[Call]:
    left, last = count, threading.Event()

    def on_update(_: Call) -> None:
        nonlocal left
        left -= 1
        if not left:
            last.set()

    prompt = _prompt(ANSWER)
    calls = [Call(prompt, stream=False, on_update=on_update) for _ in range(count)]
    connection.submit(0, calls)
    last.wait()
    return calls


def honest(pipe: Connection, file: Path) -> None:
    """One endless stream; at each word from outside, say the largest gap since the last one, in seconds."""
    with SyncSampler.connect(file) as sampler:
        stream = sampler.generate(f"[[tokens:1000000]][[pace:{PACE_S}]]", max_new_tokens=30_000)
        next(stream)
        _report_gaps(pipe, lambda: next(stream))


def sleeper(pipe: Connection, _: Path) -> None:
    """The same for sleeping: what the machine does to a process that wants nothing but to wake up."""
    _report_gaps(pipe, lambda: time.sleep(PACE_S))


def _report_gaps(pipe: Connection, wait: Any) -> None:
    pipe.send(True)
    gap, at = 0.0, time.monotonic()
    while True:
        wait()
        now = time.monotonic()
        gap, at = max(gap, now - at), now
        if pipe.poll():
            if pipe.recv() is None:
                return
            pipe.send(gap)
            gap = 0.0


# ---- the run ------------------------------------------------------------------------------------------------------


class _Child:
    """A process and the pipe to it."""

    def __init__(self, target: Any, *args: Any) -> None:
        self.pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=target, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, word: Any = "go") -> Any:
        """Send a word and wait for the answer."""
        self.pipe.send(word)
        return self.pipe.recv()

    def end(self) -> None:
        """Let it end."""
        self.pipe.send(None)
        self.process.join()


def measure(clients: int, requests: int, at_once: int) -> dict[str, Any]:
    """All clients start at the same moment. With ``at_once`` of thousands they are floods."""
    forkserver.ensure_running()  # before the folders are there, or it would count as left behind in them
    with own_folders() as folder, pool_of(1, folder, max_batch=64) as pool:
        file = folder / "run" / f"{POOL}.json"  # the environment of the processes' parent was fixed when it started
        watchers = [_Child(honest, file), _Child(sleeper, file)]
        children = [_Child(client, file, requests, at_once) for _ in range(clients)]
        for child in (*watchers, *children):
            child.pipe.recv()
        for child in watchers:
            child.ask()
        time.sleep(UNDISTURBED_S)
        before = [child.ask() for child in watchers]
        figures = _measure_load(pool, children)
        during = [child.ask() for child in watchers]
        for child in (*watchers, *children):
            child.end()
    return {
        "clients": clients,
        "requests": requests,
        "at_once": at_once,
        **figures,
        "stream_gap_ms": {"before": before[0] * 1e3, "during": during[0] * 1e3},
        "sleep_gap_ms": {"before": before[1] * 1e3, "during": during[1] * 1e3},
        "left": len(pool.left),
    }


def _measure_load(pool: Pool, children: list[_Child]) -> dict[str, Any]:
    worker = pool.workers[0]
    cpu, start = cpu_seconds(worker), time.monotonic()
    for child in children:
        child.pipe.send("go")
    results = [child.pipe.recv() for child in children]
    ends = sorted(end - start for end, _ in results)
    requests = sum(sum(errors.values()) for _, errors in results)
    kinds = {name: sum(errors.get(name, 0) for _, errors in results) for _, e in results for name in e}
    return {
        "first_s": ends[0],
        "median_s": ends[len(ends) // 2],
        "last_s": ends[-1],
        "errors": requests,
        "error_kinds": kinds,
        "worker_cpu_s": cpu_seconds(worker) - cpu,
        "worker_pss_mib": Held.by(worker).pss_mib,
    }
