"""A process's connection to the workers of a pool: one I/O thread owns all its sockets.

Any thread may submit and abort; the I/O thread sends, receives, watches the workers, and tells each call's
``on_update``. Every submitted call ends, whatever becomes of its worker.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import zmq

from samplerpool.client.peer import Peer
from samplerpool.client.response import Call
from samplerpool.client.routing import WorkerView
from samplerpool.errors import Aborted, SamplerPoolError, TransportError, UsageError, WorkerDied
from samplerpool.wire.endpoint import ConnectionFile, ProcessId
from samplerpool.wire.messages import Describe

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
CLOSE_TIMEOUT_S = 5.0

__all__ = ["Call", "PoolConnection", "WorkerAddress", "WorkerView"]


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is. ``process`` is known for workers of this machine, whose end is then noticed at once."""

    index: int
    endpoint: str
    incarnation: str
    process: ProcessId | None = None


class PoolConnection:
    """See the module's docstring. Use it as a context manager, or ``close`` it.

    Args:
        workers: at least one.
        pool: the pool's name, for hints in errors.
    """

    def __init__(self, workers: Sequence[WorkerAddress], pool: str = "") -> None:
        if not workers:
            raise TransportError("The pool has no worker to connect to.")
        self._pool = pool
        self._context = zmq.Context()
        self._peers = {w.index: Peer(self._context, w.index, w.endpoint, w.incarnation) for w in workers}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = _wake_pair()
        self._owner_pid = os.getpid()
        self._closing = False
        self._ended = False
        self._watched = {
            descriptor: self._peers[worker.index]
            for worker in workers
            if worker.process is not None and (descriptor := self._watch(worker)) is not None
        }
        self._thread = threading.Thread(target=self._run, name="samplerpool-io", daemon=True)
        self._thread.start()
        self._at_exit = functools.partial(_call, weakref.WeakMethod(self.close))
        atexit.register(self._at_exit)

    @classmethod
    def attach(cls, connection: ConnectionFile, *, worker: int | None = None) -> PoolConnection:
        """Connect to the workers of a running pool that are ready.

        Args:
            worker: only this one.

        Raises:
            UsageError: there is no such worker.
            TransportError: none is ready.
        """
        chosen = [w for w in connection.workers if worker is None or w.index == worker]
        if not chosen:
            indexes = ", ".join(str(w.index) for w in connection.workers) or "none"
            raise UsageError(f"The pool {connection.pool!r} has no worker {worker}; it has: {indexes}.")
        ready = [w for w in chosen if w.state == "ready"]
        if not ready:
            states = ", ".join(f"worker {w.index} is {w.state}" for w in chosen)
            raise TransportError(f"No worker of the pool {connection.pool!r} can be used: {states}.")
        local = connection.local
        addresses = [WorkerAddress(w.index, w.endpoint, w.incarnation, w.process if local else None) for w in ready]
        return cls(addresses, connection.pool)

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
        return [peer.view() for peer in self._peers.values()]

    def messages_received(self) -> int:
        """ZeroMQ messages that have come from all workers."""
        return sum(peer.messages_received for peer in self._peers.values())

    def submit(self, worker_index: int, calls: Sequence[Call]) -> None:
        """Send calls to a worker, in one message. Each ends, if need be with an error: nothing is raised for a dead
        worker.

        Raises:
            UsageError: the connection is closed, or was made before a fork.
        """
        peer = self._peer(worker_index)
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
            TransportError: no answer within the time, or the worker is gone.
        """
        peer = self._peer(worker_index)
        answer: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()

        def ask() -> None:
            request_id = peer.next_id()
            peer.descriptions[request_id] = answer
            peer.send([Describe(request_id)])

        self._command(ask)
        try:
            return answer.result(timeout_s)
        except TimeoutError as error:
            raise TransportError(
                f"Worker {worker_index} did not answer within {timeout_s:g} s.", worker=worker_index
            ) from error

    def close(self) -> None:
        """Abort what runs, end the I/O thread, close the sockets. Idempotent."""
        if os.getpid() != self._owner_pid:
            return
        self._closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)
        atexit.unregister(self._at_exit)

    def _peer(self, worker_index: int) -> Peer:
        self._check_usable()
        if worker_index not in self._peers:
            raise UsageError(f"There is no worker {worker_index}; connected: {sorted(self._peers)}.")
        return self._peers[worker_index]

    def _check_usable(self) -> None:
        if os.getpid() != self._owner_pid:
            raise UsageError("This connection was made before a fork; connect again in the child.")
        if self._closing:
            raise UsageError("This connection is closed; connect again.")

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._wake()
        if self._ended:  # closed meanwhile, and the I/O thread has looked for commands for the last time
            self._carry_out_commands()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: a wake-up is on its way already; closed: nobody to wake
            self._wake_writer.send(b"\0")

    # ---- the I/O thread -------------------------------------------------------------------------------------------

    def _watch(self, worker: WorkerAddress) -> int | None:
        """A pidfd of the worker's process; a process that is gone already is noticed by the first poll."""
        assert worker.process is not None
        if not worker.process.alive():
            self._commands.append(lambda: self._died(self._peers[worker.index]))
            return None
        try:
            return os.pidfd_open(worker.process.pid)
        except (OSError, AttributeError):
            return None

    def _run(self) -> None:
        error_for: Callable[[Call], SamplerPoolError] = _closed
        try:
            self._serve()
        except Exception as error:  # a fault of our own: nobody may wait for ever because of it
            log.exception("the connection's I/O thread failed")
            self._closing = True
            error_for = functools.partial(_failed, f"The connection failed ({type(error).__name__}: {error}).")
        self._shut_down(error_for)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_reader, zmq.POLLIN)
        for descriptor in self._watched:
            poller.register(descriptor, zmq.POLLIN)
        check_at = 0.0
        while not self._closing:
            for peer in self._peers.values():
                self._register(poller, peer)
            ready = dict(poller.poll(int(POLL_INTERVAL_S * 1000)))
            if self._wake_reader.fileno() in ready:
                self._take_commands()
            for peer in self._peers.values():
                if peer.socket in ready and peer.up:
                    peer.receive()
                    peer.flush()
            for descriptor in [d for d in self._watched if d in ready]:
                poller.unregister(descriptor)
                self._died(self._watched.pop(descriptor))
                os.close(descriptor)
            if time.monotonic() >= check_at:
                self._check_liveness()
                check_at = time.monotonic() + POLL_INTERVAL_S

    @staticmethod
    def _register(poller: zmq.Poller, peer: Peer) -> None:
        """Wait for what a worker sends, and for room where something waits to be sent to it."""
        events = zmq.POLLIN | zmq.POLLOUT if peer.backlog else zmq.POLLIN
        if peer.up and peer.polled_for != events:
            poller.register(peer.socket, events)
            peer.polled_for = events
        elif not peer.up and peer.polled_for:
            poller.unregister(peer.socket)
            peer.polled_for = 0

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
            if index in self._peers:
                self._peers[index].abort(list(group))

    def _died(self, peer: Peer) -> None:
        if not peer.up:
            return
        peer.receive()  # what it sent before its end counts
        hint = f"samplerpool logs {self._pool} --worker {peer.index}" if self._pool else "its log"
        reason = f"Worker {peer.index} is gone; {hint} says why."
        peer.down(reason, functools.partial(_worker_died, peer.index, hint))

    def _check_liveness(self) -> None:
        now = time.monotonic()
        for peer in self._peers.values():
            if peer.up and not peer.check(now):
                reason = f"Worker {peer.index} has not answered for a long time."
                peer.down(reason, functools.partial(_failed, reason))

    def _shut_down(self, error_for: Callable[[Call], SamplerPoolError]) -> None:
        self._take_commands()
        for peer in self._peers.values():
            peer.close(error_for)
        self._ended = True
        self._carry_out_commands()  # those that came meanwhile: their calls end at once
        for descriptor in self._watched:
            os.close(descriptor)
        self._wake_reader.close()
        self._wake_writer.close()
        self._context.term()


def _closed(call: Call) -> SamplerPoolError:
    return Aborted("The connection was closed by its owner.", text=call.text)


def _worker_died(index: int, hint: str, call: Call) -> SamplerPoolError:
    text = call.text
    received = f" after {len(call.token_ids)} tokens" if call.token_ids else ""
    return WorkerDied(
        f"Worker {index} died while it worked on the request{received} ({hint} says why).",
        worker=index,
        text=text,
    )


def _failed(reason: str, call: Call) -> SamplerPoolError:
    return TransportError(reason, text=call.text)


def _wake_pair() -> tuple[socket.socket, socket.socket]:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    return reader, writer


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (bound := method()) is not None:
        bound()
