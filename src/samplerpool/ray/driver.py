"""``python -m samplerpool.ray.driver``: speaks to Ray for one pool's supervisor. Its settings come on standard input.

Through a socket (``control_fd``) the supervisor hands over a channel and a document for each worker that is to run.
Down the channel come lines like those of a worker's status pipe; up go requests, and its end means: kill. Each worker
has a place, an actor that Ray puts where there is room and begins again elsewhere when its machine is gone. In a place
processes follow one another, as the supervisor decides. All of it ends with this process, and this one with its
supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from samplerpool.config.logs import open_log
from samplerpool.errors import SamplerPoolError, StartFailed, WorkerDied
from samplerpool.pool.cluster import ClusterPlan
from samplerpool.ray.joining import join
from samplerpool.ray.places import Places
from samplerpool.worker.watch import watch_parent

KILL_TIMEOUT_S = 5.0
"""How long a place may take to end its process before the place itself is ended."""
PATIENCE_S = 3.0
"""From here on, the supervisor is told what is waited for."""


class Driver:
    """Serves one supervisor.

    Args:
        places: where workers run.
        control: on which they are handed over.
    """

    def __init__(self, places: Places, control: socket.socket) -> None:
        self._places = places
        self._control = control
        self._locks: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the supervisor closes its end."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        self._control.setblocking(False)
        loop.add_reader(self._control, ready.set)
        while await ready.wait():
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                message, descriptors, _, _ = socket.recv_fds(self._control, 64, 2)
                if not message:
                    break
                ready.set()
                self._begin(*descriptors)
        loop.remove_reader(self._control)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._places.close()

    def _begin(self, channel_fd: int, document_fd: int) -> None:
        with open(document_fd, encoding="utf-8") as file:
            document = json.load(file)
        task = asyncio.create_task(self._serve_worker(socket.socket(fileno=channel_fd), document))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_worker(self, channel: socket.socket, document: dict[str, Any]) -> None:
        index = int(document["config"]["index"])
        reader, writer = await asyncio.open_connection(sock=channel)
        with contextlib.closing(writer):
            async with self._locks.setdefault(index, asyncio.Lock()):  # its predecessor in the place is gone
                await Service(self._places, index, document, reader, writer).run()


class Service:
    """One worker, from the request for it to its end.

    Args:
        document: see ``pool.cluster_worker``.
        reader, writer: this end of its channel.
    """

    def __init__(
        self,
        places: Places,
        index: int,
        document: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._places = places
        self._index = index
        self._document = document
        self._reader = reader
        self._writer = writer
        self._incarnation = document["config"]["incarnation"]
        self._log = LogCopy(Path(document["log"]), document["config"]["max_log_bytes"], restarted=document["restarted"])
        self._running = False
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it has ended, or is to be killed."""
        life = asyncio.create_task(self._live())
        obeying = asyncio.create_task(self._obey())
        try:
            await asyncio.wait((life, obeying), return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                await self._kill(life)
        finally:
            ending = (life, obeying, *self._requests)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self._log.close()

    # ---- down -----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        returncode = 1
        try:
            await self._wait_for_place()
            self._running = True
            async for reports in self._places.run(self._index, self._document):
                for report in reports:
                    if report["event"] == "exited":
                        returncode = int(report["returncode"])
                    else:
                        self._pass_down(report)
        except SamplerPoolError as error:
            returncode = 1 if isinstance(error, StartFailed) else -9
            self._tell("failed", error=error.to_wire())
        except Exception as error:
            traceback.print_exc()
            failure = WorkerDied(f"The process that speaks to Ray failed: {type(error).__name__}: {error}")
            self._tell("failed", error=failure.to_wire())
        self._tell("exited", returncode=returncode)

    async def _wait_for_place(self) -> None:
        waiting = asyncio.create_task(self._places.ready(self._index))
        try:
            done, _ = await asyncio.wait((waiting,), timeout=PATIENCE_S)
            if not done:
                self._tell("loading", detail="waiting for a place on the cluster")
            await waiting
        finally:
            waiting.cancel()

    def _pass_down(self, report: dict[str, Any]) -> None:
        if report["event"] == "log":
            self._log.write(str(report["text"]))
        else:
            self._tell(**report)

    def _tell(self, event: str, **values: Any) -> None:
        self._writer.write(json.dumps({"event": event, **values}).encode() + b"\n")

    # ---- up -------------------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        """Carry out requests, to the end of the channel. None is waited for: its place may not answer any more."""
        while line := await self._reader.readline():
            request = json.loads(line)
            if request["do"] == "let_in":
                self._document["keys"] = request["keys"]
                if self._running:
                    self._begin(self._places.let_in(self._index, request["keys"]))
            elif self._running:
                self._begin(self._places.ask(self._index, self._incarnation, request["do"]))
            elif request["do"] == "terminate":
                self._tell("exited", returncode=0)
                return

    def _begin(self, request: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _kill(self, life: asyncio.Task[None]) -> None:
        """End its process, and be sure of it: what comes next in this place has the same devices."""
        if not self._running:
            return
        self._begin(self._places.ask(self._index, self._incarnation, "kill"))
        done, _ = await asyncio.wait((life,), timeout=KILL_TIMEOUT_S)
        if not done:
            self._places.give_up(self._index)


class LogCopy:
    """The copy of a worker's log on the launching machine, within the size that its settings allow."""

    def __init__(self, path: Path, max_bytes: int, *, restarted: bool) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor = open_log(path, go_on=restarted)
        if restarted:
            self.write("---- the worker is started again ----\n")

    def write(self, text: str) -> None:
        """Add to it; on a full disk that is lost."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode())
            if os.fstat(self._descriptor).st_size > self._max_bytes:
                descriptor = open_log(self._path)
                os.close(self._descriptor)
                self._descriptor = descriptor

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def main() -> int:
    """Join the cluster and serve. Returns the process's exit code."""
    settings = json.load(sys.stdin)
    watch_parent(settings["supervisor_pid"], settings["death_fd"])
    plan = ClusterPlan(**settings["plan"])
    join(plan.address)
    with socket.socket(fileno=settings["control_fd"]) as control:
        asyncio.run(Driver(Places(plan, settings["pool"]), control).serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
