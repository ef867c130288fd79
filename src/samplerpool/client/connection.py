"""A process's connection to the workers of a pool: one I/O thread owns all its sockets.

Any thread may submit and abort; the I/O thread sends, receives, watches the workers and follows their pool, and tells
each call's ``on_update``. Every submitted call ends, whatever becomes of its worker.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import zmq

from samplerpool.client import ends
from samplerpool.client.following import FixedWorkers, Source, source_for
from samplerpool.client.members import Members
from samplerpool.client.peer import refuse
from samplerpool.client.response import Call
from samplerpool.client.roster import Roster
from samplerpool.client.routing import WorkerView
from samplerpool.client.supervisor import from_afar
from samplerpool.errors import AccessDenied, SamplerPoolError, TransportError, UsageError
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry
from samplerpool.wire.sockets import client_context

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 5.0

__all__ = ["Call", "PoolConnection", "WorkerAddress", "WorkerView"]


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is."""

    index: int
    endpoint: str
    incarnation: str


class PoolConnection:
    """See the module's docstring. Use it as a context manager, or ``close`` it.

    Made from addresses, it knows those workers and no others; ``attach`` makes one that follows its pool.

    Args:
        workers: at least one.
    """

    def __init__(self, workers: Sequence[WorkerAddress]) -> None:
        if not workers:
            raise TransportError("The pool has no worker to connect to.")
        nobody = ProcessId(0, 0)
        entries = tuple(WorkerEntry(w.index, w.endpoint, w.incarnation, "", "ready", nobody) for w in workers)
        pool = ConnectionFile("", "", "", "running", nobody, "", entries)
        self._start(client_context(), FixedWorkers(pool), Roster(followed=False))

    @classmethod
    def attach(cls, connection: ConnectionFile, *, worker: int | None = None) -> PoolConnection:
        """Connect to the workers of a running pool, and follow what becomes of them.

        Args:
            worker: only this one.

        Raises:
            UsageError: there is no such worker.
            AccessDenied: the pool does not know the connection file's key.
            TransportError: none can be used, now or soon, or the pool cannot be reached.
        """
        if not connection.local:
            connection = from_afar(connection)
        chosen = [w for w in connection.workers if worker is None or w.index == worker]
        if not chosen:
            indexes = ", ".join(str(w.index) for w in connection.workers) or "none"
            raise UsageError(f"The pool {connection.pool!r} has no worker {worker}; it has: {indexes}.")
        if connection.local and not connection.supervisor.alive():
            raise TransportError(f"The pool {connection.pool!r} has ended; its supervisor is gone.")
        context = client_context()
        self = cls.__new__(cls)
        self._start(context, source_for(context, connection), Roster(connection.pool, worker), connection.local)
        views = self.workers()
        if not any(view.up or view.coming for view in views):
            self.close()
            states = ", ".join(f"worker {w.index} is {w.state}" for w in chosen) if views else "it has ended"
            raise TransportError(f"No worker of the pool {connection.pool!r} can be used: {states}.")
        return self

    def _start(
        self, context: zmq.Context[zmq.Socket[bytes]], source: Source, roster: Roster, own_numbers: bool = False
    ) -> None:
        self._context = context
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._members = Members(context, source, roster, own_numbers=own_numbers, on_change=self._tell_waiting)
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = _wake_pair()
        self._owner_pid = os.getpid()
        self._closing = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="samplerpool-io", daemon=True)
        self._thread.start()
        self._at_exit = functools.partial(_call, weakref.WeakMethod(self.close))
        atexit.register(self._at_exit)

    def __enter__(self) -> PoolConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- from any thread ------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerView]:
        """The workers as this connection sees them now.

        Raises:
            UsageError: the connection is closed, or was made before a fork.
        """
        self._check_usable()
        return self._members.views()

    def wait_until(self, satisfied: Callable[[list[WorkerView]], bool], timeout_s: float) -> bool:
        """Wait until the workers are as somebody wants them to be; whether they are.

        Raises:
            UsageError: the connection is closed, also meanwhile.
        """
        with self._changed:
            return self._changed.wait_for(lambda: satisfied(self.workers()), timeout_s)

    @contextlib.contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Inside the block, call this whenever anything has changed of the workers, or the connection is closed.

        Args:
            listener: called on the I/O thread, so it must be quick.
        """
        with self._changed:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.remove(listener)

    def messages_received(self) -> int:
        """ZeroMQ messages that have come from all workers."""
        return self._members.messages_received

    def submit(self, worker_index: int, calls: Sequence[Call]) -> None:
        """Send calls to a worker, in one message. Each ends, if need be with an error: nothing is raised for a worker
        that is gone.

        Raises:
            UsageError: the connection is closed, or was made before a fork.
        """
        self._check_usable()
        peer = self._members.peers.get(worker_index)
        if peer is None:
            self._command(lambda: refuse(calls, worker_index, self._members.why_not(worker_index)))
            return
        peer.reserve(calls)
        self._command(lambda: peer.send_calls(calls, time.monotonic()))

    def abort(self, calls: Sequence[Call]) -> None:
        """Ask the workers to stop these calls; those that have ended are left alone."""
        if self._closing or os.getpid() != self._owner_pid:
            return
        self._command(lambda: self._abort(calls))

    def describe(self, worker_index: int, timeout_s: float = 5.0) -> dict[str, Any]:
        """A worker's own description.

        Raises:
            TransportError: no answer within the time, or the worker is not there.
        """
        self._check_usable()
        if worker_index not in self._members.peers:
            raise TransportError(self._members.why_not(worker_index), worker=worker_index)
        answer = self._ask_for_description(worker_index)
        try:
            return answer.result(timeout_s)
        except TimeoutError as error:
            answer.cancel()
            raise TransportError(
                f"Worker {worker_index} did not answer within {timeout_s:g} s.", worker=worker_index
            ) from error

    def descriptions(self, worker_indexes: Sequence[int], timeout_s: float) -> dict[int, dict[str, Any]]:
        """The descriptions of several workers, who are asked at the same time; of those that answer within it."""
        self._check_usable()
        asked = {index: self._ask_for_description(index) for index in worker_indexes}
        done, late = concurrent.futures.wait(asked.values(), timeout_s)
        for answer in late:
            answer.cancel()
        return {index: answer.result() for index, answer in asked.items() if answer in done and not answer.exception()}

    def _ask_for_description(self, worker_index: int) -> concurrent.futures.Future[dict[str, Any]]:
        """What is cancelled before its answer comes is forgotten."""
        answer: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
        peer = self._members.peers.get(worker_index)
        if peer is None:
            answer.set_exception(TransportError(self._members.why_not(worker_index), worker=worker_index))
        else:
            self._command(functools.partial(peer.describe, answer))
        return answer

    def close(self) -> None:
        """Abort what runs, end the I/O thread, close the sockets. Idempotent."""
        if os.getpid() != self._owner_pid:
            return
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)
        atexit.unregister(self._at_exit)

    def _check_usable(self) -> None:
        if os.getpid() != self._owner_pid:
            raise UsageError("This connection was made before a fork; connect again in the child.")
        if self._closing:
            raise UsageError("This connection is closed; connect again.")
        if self._members.denied is not None:
            raise AccessDenied(self._members.denied.message)

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()
        if self._ended:  # closed meanwhile, and the I/O thread has looked for commands for the last time
            self._carry_out_commands()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: a wake-up is on its way already; closed: nobody to wake
            self._wake_writer.send(b"\0")

    # ---- the I/O thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error_for: Callable[[Call], SamplerPoolError] = ends.closed
        try:
            self._serve()
        except Exception as error:  # a fault of our own: nobody may wait for ever because of it
            log.exception("the connection's I/O thread failed")
            self._closing = True
            reason = f"The connection failed ({type(error).__name__}: {error})."
            error_for = functools.partial(ends.broken, reason)
        self._shut_down(error_for)

    def _serve(self) -> None:
        self._members.watch(self._wake_reader.fileno())
        check_at = 0.0
        while not self._closing:
            ready = self._members.wait(POLL_INTERVAL_S)
            if self._wake_reader.fileno() in ready:
                self._take_commands()
            self._members.take(ready)
            if time.monotonic() >= check_at:
                self._members.check_liveness()
                check_at = time.monotonic() + POLL_INTERVAL_S

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        self._carry_out_commands()

    def _carry_out_commands(self) -> None:
        while True:
            try:
                command = self._commands.popleft()
            except IndexError:
                return
            command()

    def _abort(self, calls: Sequence[Call]) -> None:
        by_worker = itertools.groupby(sorted(calls, key=lambda c: c.worker), key=lambda c: c.worker)
        for index, group in by_worker:
            if peer := self._members.peers.get(index):
                peer.abort(list(group))

    def _tell_waiting(self) -> None:
        with self._changed:
            self._changed.notify_all()
            for listener in self._listeners:
                listener()

    def _shut_down(self, error_for: Callable[[Call], SamplerPoolError]) -> None:
        self._take_commands()
        self._members.close(error_for)
        self._ended = True
        self._carry_out_commands()  # those that came meanwhile: their calls end at once
        self._wake_reader.close()
        self._wake_writer.close()
        self._context.term()


def _wake_pair() -> tuple[socket.socket, socket.socket]:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    return reader, writer


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (bound := method()) is not None:
        bound()
