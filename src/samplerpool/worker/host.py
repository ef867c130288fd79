"""A worker inside this process: a sampler served on a socket from a thread, for a model that is loaded here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading

from samplerpool.config.folders import runtime_folder
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.wire.addresses import ipc_endpoint, new_incarnation, remove_socket
from samplerpool.wire.files import private_folder
from samplerpool.worker.server import WorkerServer


class HostedWorker:
    """Serves a sampler on an ``ipc://`` socket of its own until ``close``. The sampler stays open.

    Raises:
        UsageError: the runtime folder cannot be used.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.incarnation = new_incarnation()
        folder = private_folder(runtime_folder(detached=False))
        self.endpoint = ipc_endpoint(folder, f"host-{os.getpid()}-{self.incarnation}")
        self._sampler = sampler
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="samplerpool-host", daemon=True
        )
        self._thread.start()
        ready.result()

    async def _serve(self, ready: concurrent.futures.Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = WorkerServer(
                self._sampler, self.endpoint, self.incarnation, lambda: {"model": "in-process", "pid": os.getpid()}
            )
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        await self._stop.wait()
        server.stop("The process that hosts the model has closed its sampler.")
        server.close()

    def close(self) -> None:
        """Fail what runs, close the socket and remove its file. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        remove_socket(self.endpoint)
