"""How a running pool is: its supervisor's and its workers' answers, in one shape that programs may rely on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from samplerpool.client.connection import PoolConnection
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.errors import AccessDenied, SamplerPoolError
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.messages import Describe

POOL_FIELDS: tuple[str, ...] = (
    "pool",
    "pid",
    "state",
    "model",
    "engine",
    "host",
    "detached",
    "private",
    "uptime_s",
    "metrics",
    "replacing",
    "problem",
    "workers",
    "endings",
)
_OF_THE_SUPERVISOR = ("index", "pid", "node", "device", "state", "detail", "restarts", "hangs", "stalled_s", "log")
_OF_THE_WORKER = (
    "engine",
    "adapters",
    "picked",
    "running",
    "queued",
    "clients",
    "tokens",
    "tokens_per_s",
    "steps",
    "max_batch",
    "max_model_len",
    "memory_bytes",
    "uptime_s",
)
WORKER_FIELDS: tuple[str, ...] = (*_OF_THE_SUPERVISOR, *_OF_THE_WORKER, "problem", "details")
"""What is always there; README.md tells what each means. What is not known is None."""


def describe_pool(connection: ConnectionFile, timeout_s: float = 2.0) -> dict[str, Any]:
    """A pool's state, as ``status --json`` prints it. What does not answer is told from its file.

    Args:
        timeout_s: for the supervisor's answer, and again for the workers' together.

    Returns:
        ``POOL_FIELDS``, with ``WORKER_FIELDS`` for each worker; figures that are not known are None, and ``problem``
        says why.

    Raises:
        AccessDenied: the pool does not know the connection file's key.
    """
    try:
        told = ask_supervisor(connection, Describe(1), timeout_s)
    except AccessDenied:
        raise
    except SamplerPoolError as error:
        told = {**_from_file(connection), "problem": error.message}
        if not connection.local:  # its workers would be asked in vain, after another wait
            return pool_report({**told, "host": connection.host}, {w.index: error.message for w in connection.workers})
    return pool_report({**told, "host": connection.host}, _ask_workers(connection, timeout_s))


def pool_report(told: Mapping[str, Any], live: Mapping[int, Mapping[str, Any] | str]) -> dict[str, Any]:
    """The report in its shape. Pure.

    Args:
        told: by the supervisor.
        live: by each worker itself, or why it said nothing.
    """
    workers = [_worker_report(entry, live.get(entry["index"])) for entry in told["workers"]]
    return {**_picked(told, POOL_FIELDS), "workers": workers, "endings": told.get("endings") or []}


def _worker_report(entry: Mapping[str, Any], live: Mapping[str, Any] | str | None) -> dict[str, Any]:
    own = live if isinstance(live, Mapping) else {}
    known = {*_OF_THE_SUPERVISOR, *_OF_THE_WORKER, "model", "incarnation", "live"}
    return {
        **_picked(entry, _OF_THE_SUPERVISOR),
        **_picked(own, _OF_THE_WORKER),
        "problem": live if isinstance(live, str) else None,
        "details": {name: value for name, value in own.items() if name not in known},
    }


def _picked(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def _from_file(connection: ConnectionFile) -> dict[str, Any]:
    return {
        "pool": connection.pool,
        "pid": connection.supervisor.pid,
        "state": connection.state,
        "model": connection.model,
        "engine": connection.engine,
        "uptime_s": time.time() - connection.created,
        "workers": [{**asdict(entry), "pid": entry.process.pid} for entry in connection.workers],
        "endings": [asdict(ending) for ending in connection.endings],
    }


def _ask_workers(connection: ConnectionFile, timeout_s: float) -> dict[int, dict[str, Any] | str]:
    """Each ready worker's own description, or why there is none."""
    ready = [entry.index for entry in connection.workers if entry.state == "ready"]
    if not ready:
        return {}
    with PoolConnection.attach(connection) as workers, ThreadPoolExecutor(min(32, len(ready))) as threads:

        def ask(index: int) -> dict[str, Any] | str:
            try:
                return workers.describe(index, timeout_s)
            except SamplerPoolError as error:
                return error.message

        return dict(zip(ready, threads.map(ask, ready), strict=True))
