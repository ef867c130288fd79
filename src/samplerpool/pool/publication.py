"""What others see of a pool: its connection file, and the supervisor's description of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from samplerpool.pool.addresses import Addresses
from samplerpool.pool.cluster_worker import ClusterWorker
from samplerpool.pool.policy import PoolPolicy
from samplerpool.pool.process import WorkerProcess
from samplerpool.pool.settings import PoolSettings
from samplerpool.pool.worker import Worker
from samplerpool.wire.endpoint import ConnectionFile, Ending, ProcessId, WorkerEntry, connection_path, remove_leftovers
from samplerpool.wire.keys import ClientKeys

MAX_ENDINGS = 64
"""The latest that are kept: clients look at the file far more often than so many workers end."""


class Publication:
    """The connection file of one pool, from its first writing to its removal.

    Args:
        addresses: what clients are told of the pool's sockets.
        endpoint: where the control socket was bound.
        keys: what it takes to be let in as the owner, where it takes keys.
    """

    def __init__(
        self, settings: PoolSettings, addresses: Addresses, endpoint: str, keys: ClientKeys | None = None
    ) -> None:
        self._settings = settings
        self._addresses = addresses
        self._path: Path = connection_path(settings.folder, settings.pool)
        self._started = time.time()
        self.written = False
        self.metrics: str | None = None
        """Where figures are served to Prometheus."""
        self.connection = ConnectionFile(
            pool=settings.pool,
            model=settings.model_args.model_name_or_path or "",
            engine=settings.pool_args.engine,
            state="starting",
            supervisor=ProcessId.of(os.getpid()),
            endpoint=addresses.told(endpoint),
            keys=keys,
            log_folder=str(settings.log_folder),
            created=self._started,
        )

    def publish(self, policy: PoolPolicy, processes: Mapping[int, WorkerProcess | ClusterWorker]) -> None:
        """Write the present state.

        Raises:
            OSError: and the file is as it was before.
        """
        known = {entry.index: entry for entry in self.connection.workers}
        entries = (self._entry(w, processes.get(w.index), known.get(w.index)) for w in policy.workers.values())
        facts = next((worker.description for worker in policy.workers.values() if worker.description), {})
        self.connection = replace(
            self.connection.with_workers(tuple(entry for entry in entries if entry), policy.state),
            model=str(facts.get("model") or self.connection.model),
            engine=str(facts.get("engine") or self.connection.engine),
        )
        self.connection.write(self._path)
        self.written = True

    def ended(self, index: int, requested: bool, reason: str) -> None:
        """Note how a worker's process has ended, for the next writing."""
        for entry in self.connection.workers:
            if entry.index == index:
                ending = Ending(index, entry.incarnation, requested, reason)
                self.connection = replace(self.connection, endings=(*self.connection.endings, ending)[-MAX_ENDINGS:])

    def _entry(
        self, worker: Worker, process: WorkerProcess | ClusterWorker | None, before: WorkerEntry | None
    ) -> WorkerEntry | None:
        entry = before
        if process is not None and (entry is None or entry.incarnation != process.config.incarnation):
            entry = WorkerEntry(
                index=worker.index,
                endpoint="",
                incarnation=process.config.incarnation,
                device=process.device,
                state=worker.state,
                process=process.identity,
                log=str(process.log),
            )
        if entry is None:
            return None
        if process is not None:
            entry = replace(
                entry,
                endpoint=self._addresses.told_of_worker(process.endpoint),
                device=process.device,
                process=process.identity,
                node=process.node,
            )
        return replace(entry, state=worker.state, detail=worker.detail)

    def describe(self, policy: PoolPolicy) -> dict[str, Any]:
        """Facts and figures for a ``Description``."""
        connection = self.connection
        return {
            "pool": connection.pool,
            "pid": connection.supervisor.pid,
            "state": policy.state,
            "model": connection.model,
            "engine": connection.engine,
            "detached": self._settings.detached,
            "private": self._settings.private,
            "uptime_s": time.time() - self._started,
            "replacing": policy.replacing,
            "metrics": self.metrics,
            "workers": [
                {**asdict(entry), "pid": entry.process.pid, **_supervision(policy.workers[entry.index])}
                for entry in connection.workers
                if entry.index in policy.workers
            ],
            "endings": [asdict(ending) for ending in connection.endings],
        }

    def remove(self) -> None:
        """Remove the file, and whatever sockets are left. Idempotent."""
        remove_leftovers(self._path, self.connection)


def _supervision(worker: Worker) -> dict[str, Any]:
    moved_at = worker.health.moved_at if worker.state == "ready" else None
    stalled_s = None if moved_at is None else round(time.monotonic() - moved_at, 1)
    return {"restarts": worker.restarts, "hangs": worker.hangs, "stalled_s": stalled_s}
