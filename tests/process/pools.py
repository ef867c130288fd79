"""Pools of real processes for the tests: started, looked at, asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samplerpool.client.connection import PoolConnection
from samplerpool.client.response import Call
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import LaunchedPool, launch_pool
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry, find_pool
from samplerpool.wire.messages import ChatPrompt

DEADLINE_S = 30.0


def launch(*, private: bool = True, on_progress: Callable[[str], None] | None = None, **pool: Any) -> LaunchedPool:
    """A pool of scripted workers."""
    args = PoolArguments(**{"engine": "scripted", "workers": 1, "start_timeout_s": 30.0, **pool})
    return launch_pool(
        ModelArguments(), SampleArguments(), args, detached=not private, private=private, on_progress=on_progress
    )


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait until something holds, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def processes(connection: ConnectionFile) -> list[ProcessId]:
    """The supervisor and its workers."""
    return [connection.supervisor, *(worker.process for worker in connection.workers)]


def alive(connection: ConnectionFile) -> list[int]:
    """Those of them that run."""
    return [process.pid for process in processes(connection) if process.alive()]


def stopped(pid: int) -> bool:
    """Whether SIGSTOP has taken effect: it may come later than what is sent to other processes afterwards."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def entry(pool: str, index: int = 0) -> WorkerEntry:
    """What the connection file says of a worker now."""
    return next(worker for worker in find_pool(pool).workers if worker.index == index)


def states(pool: str) -> list[str]:
    """What it says of all."""
    return [worker.state for worker in find_pool(pool).workers]


def wait_for_successor(before: WorkerEntry, pool: str) -> WorkerEntry:
    """Until another process of this worker is ready."""

    def there() -> bool:
        now = entry(pool, before.index)
        return now.state == "ready" and now.incarnation != before.incarnation

    wait_until(there, f"worker {before.index} is ready again")
    return entry(pool, before.index)


def begin(connection: PoolConnection, text: str, worker: int = 0, **params: Any) -> tuple[Call, threading.Event]:
    """Send a request; the event is set when it has ended."""
    done = threading.Event()
    call = Call(
        ChatPrompt([{"role": "user", "content": [{"type": "text", "value": text}]}]),
        params,
        on_update=lambda call: done.set() if call.done else None,
    )
    connection.submit(worker, [call])
    return call, done


def ask(connection: PoolConnection, text: str, worker: int = 0, **params: Any) -> Call:
    """Send a request and wait for its end."""
    call, done = begin(connection, text, worker, **params)
    assert done.wait(DEADLINE_S)
    return call


def answers(pool: str, worker: int = 0) -> bool:
    """Whether a worker answers over a new connection."""
    with PoolConnection.attach(find_pool(pool)) as client:
        return ask(client, "[[say:here]]", worker).text == "here"
