"""What others see of a pool: its connection file, and the supervisor's description of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from samplerpool.pool.policy import PoolPolicy
from samplerpool.pool.process import WorkerProcess
from samplerpool.pool.settings import PoolSettings
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry, connection_path, remove_leftovers


class Publication:
    """The connection file of one pool, from its first writing to its removal.

    Args:
        endpoint: of the control socket.
    """

    def __init__(self, settings: PoolSettings, endpoint: str) -> None:
        self._settings = settings
        self._path: Path = connection_path(settings.folder, settings.pool)
        self._started = time.time()
        self.written = False
        self.connection = ConnectionFile(
            pool=settings.pool,
            model=settings.model_args.model_name_or_path or "",
            engine=settings.pool_args.engine,
            state="starting",
            supervisor=ProcessId.of(os.getpid()),
            endpoint=endpoint,
            log_folder=str(settings.log_folder),
            created=self._started,
        )

    def publish(self, policy: PoolPolicy, processes: Mapping[int, WorkerProcess]) -> None:
        """Write the present state.

        Raises:
            OSError: and the file is as it was before.
        """
        known = {entry.index: entry for entry in self.connection.workers}
        entries = (self._entry(policy, processes.get(w.index), w.index, known.get(w.index)) for w in policy.workers)
        facts = policy.workers[0].description
        self.connection = replace(
            self.connection.with_workers(tuple(entry for entry in entries if entry), policy.state),
            model=str(facts.get("model") or self.connection.model),
            engine=str(facts.get("engine") or self.connection.engine),
        )
        self.connection.write(self._path)
        self.written = True

    def _entry(
        self, policy: PoolPolicy, process: WorkerProcess | None, index: int, before: WorkerEntry | None
    ) -> WorkerEntry | None:
        worker, entry = policy.workers[index], before
        if process is not None and (entry is None or entry.incarnation != process.config.incarnation):
            entry = WorkerEntry(
                index=index,
                endpoint=process.config.endpoint,
                incarnation=process.config.incarnation,
                device=self._settings.plan[index].device,
                state=worker.state,
                process=ProcessId.of(process.pid),
                log=str(process.log),
            )
        return entry and replace(entry, state=worker.state, detail=worker.detail)

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
            "workers": [
                {**asdict(entry), "pid": entry.process.pid, "restarts": policy.workers[entry.index].restarts}
                for entry in connection.workers
            ],
        }

    def remove(self) -> None:
        """Remove the file, and whatever sockets are left. Idempotent."""
        remove_leftovers(self._path, self.connection)
