"""The supervisor: carries out what the policy decides, and tells it what happens. Never imports torch.

Signal handlers only enqueue; one loop waits for signals, the control socket, the workers' reports and ends, and the
owner's end, and acts.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import zmq

from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.pool.addresses import Addresses
from samplerpool.pool.cluster import worker_plans
from samplerpool.pool.control import Command, ControlSocket
from samplerpool.pool.devices import WorkerPlan, plan_workers
from samplerpool.pool.events import (
    Action,
    Announce,
    DumpStacks,
    End,
    Ended,
    Event,
    HurryRequested,
    Kill,
    Open,
    Publish,
    RestartRequested,
    ScaleRequested,
    Spawn,
    StopRequested,
    Terminate,
    Tick,
)
from samplerpool.pool.keybook import KeyBook
from samplerpool.pool.logfiles import tail, worker_log
from samplerpool.pool.metrics import MetricsBook, WorkerState
from samplerpool.pool.policy import PoolPolicy
from samplerpool.pool.publication import Publication
from samplerpool.pool.rules import PoolRules
from samplerpool.pool.settings import PoolSettings
from samplerpool.pool.workerset import Readers, WorkerSet
from samplerpool.wire.addresses import new_incarnation
from samplerpool.wire.endpoint import ConnectionFile, keys_path, running_pools
from samplerpool.wire.files import private_folder
from samplerpool.wire.messages import Restart, Scale

STOP_TIMEOUT_S = 10.0
"""How long workers may take to finish what they run after a signal."""

OWNER_GONE_TIMEOUT_S = 0.5
"""The same when the process is gone that the pool belongs to: hardly anybody waits for the answers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a pool ended.

    Args:
        exit_code: for the process.
        error: why, unless it was asked to end.
        opened: whether all workers had been ready.
        deaths: how many workers died without being asked to.
    """

    exit_code: int
    error: SamplerPoolError | None = None
    opened: bool = False
    deaths: int = 0


class Supervisor:
    """Runs one pool in the main thread of this process. The caller holds the pool's name (``name_lock``).

    Args:
        settings: the pool.
        on_progress: called with a line for each step that people may want to see.
        on_open: called once, when all workers are ready.

    Raises:
        UsageError: its folder or socket paths cannot be.
        StartFailed: its address cannot be listened on, or its keys cannot be written down.
    """

    def __init__(
        self,
        settings: PoolSettings,
        on_progress: Callable[[str], None],
        on_open: Callable[[ConnectionFile], None],
    ) -> None:
        incarnation = new_incarnation()
        folder = private_folder(settings.folder)
        addresses = Addresses(settings.pool, folder, settings.network, on_nodes=settings.cluster is not None)
        self._keys = KeyBook(keys_path(folder, settings.pool)) if settings.network is not None else None
        self._settings = settings
        self._on_progress = on_progress
        self._on_open = on_open
        self._policy = PoolPolicy(len(settings.plan), PoolRules.of(settings.pool_args))
        try:
            where = addresses.supervisor(incarnation)
            self._control = ControlSocket(where, incarnation, self._describe, self._refusal, self._keys)
        except StartFailed:
            if self._keys is not None:
                self._keys.remove()
            raise
        owner = self._keys.owner if self._keys is not None else None
        self._publication = Publication(settings, addresses, self._control.endpoint, owner)
        self._readers: Readers = {}
        self._book = MetricsBook()
        self._workers = WorkerSet(settings, addresses, self._keys, self._readers, self._feed, self._book)
        if self._keys is not None:
            self._keys.on_change = self._workers.let_in
        self._signals: deque[int] = deque()
        self._events: deque[Event] = deque()
        self._feeding = False
        self._outcome: Outcome | None = None
        self._opened = False

    def run(self) -> Outcome:
        """Run the pool to its end, once. Whatever happens, no worker, socket or connection file is left.

        Raises:
            StartFailed: its connection file cannot be written.
            UsageError: its figures cannot be served where they should be.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._publication.remove)
            stack.callback(self._control.close)
            stack.callback(self._workers.close)
            self._serve_metrics(stack)
            stack.enter_context(self._signal_handlers())
            stack.enter_context(self._owner_watch())
            running_pools(holding=self._settings.pool)  # removes what killed pools left behind
            self._carry_out(self._policy.start(time.monotonic()))
            return self._loop()

    def _serve_metrics(self, stack: contextlib.ExitStack) -> None:
        address = self._settings.pool_args.metrics
        if address is None:
            return
        from samplerpool.pool.exporter import Exporter

        exporter = Exporter(address, self._settings.pool, self._book)
        stack.callback(exporter.close)
        self._publication.metrics = exporter.url
        self._carry_out([Announce(f"figures for Prometheus: {exporter.url}")])

    # ---- the loop ----

    def _loop(self) -> Outcome:
        poller = zmq.Poller()
        for each in self._control.readable:
            poller.register(each, zmq.POLLIN)
        watched: set[int] = set()
        while self._outcome is None:
            watched = self._watch(poller, watched)
            for source, _ in poller.poll(self._poll_timeout_ms()):
                if not isinstance(source, int):
                    self._serve_control()
                elif source in self._readers:  # it may have gone in this very turn
                    self._readers[source]()
            self._feed(Tick())
            if os.getpid() == 1:
                self._workers.reap_strangers()
        return self._outcome

    def _watch(self, poller: zmq.Poller, watched: set[int]) -> set[int]:
        wanted = set(self._readers)
        for descriptor in watched - wanted:
            poller.unregister(descriptor)
        for descriptor in wanted - watched:
            poller.register(descriptor, zmq.POLLIN)
        return wanted

    def _poll_timeout_ms(self) -> int | None:
        if self._policy.deadline is None:
            return None
        return max(0, int((self._policy.deadline - time.monotonic()) * 1000) + 1)

    def _feed(self, event: Event) -> None:
        """Let the policy handle an event; what that brings about comes behind it, not inside of it."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events and self._outcome is None:
                self._carry_out(self._policy.handle(self._events.popleft(), time.monotonic()))
        finally:
            self._feeding = False

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(index):
                    self._workers.spawn(index)
                case Terminate(index):
                    self._workers.terminate(index)
                case DumpStacks(index):
                    self._workers.dump_stacks(index)
                case Kill(index):
                    self._workers.kill(index)
                case Ended(index, requested, reason):
                    self._publication.ended(index, requested, reason)
                case Publish():
                    self._publish()
                case Announce(text, trouble):
                    _log.log(logging.WARNING if trouble else logging.INFO, text)
                    self._on_progress(text)
                case Open():
                    self._opened = True
                    self._on_open(self._publication.connection)
                case End(exit_code, error):
                    self._outcome = Outcome(exit_code, self._with_log_tail(error), self._opened, self._policy.deaths)

    def _publish(self) -> None:
        self._book.workers(
            tuple(WorkerState(w.index, w.state, w.restarts, w.hangs) for w in self._policy.workers.values())
        )
        try:
            self._publication.publish(self._policy, self._workers.processes)
        except OSError as error:
            if not self._publication.written:
                raise StartFailed(f"The connection file cannot be written: {error}.") from error
            _log.error("the connection file cannot be written: %s", error)  # no reason to end a pool that works

    def _with_log_tail(self, error: SamplerPoolError | None) -> SamplerPoolError | None:
        if not isinstance(error, StartFailed) or "worker" not in error.data:
            return error
        log = worker_log(self._settings.log_folder, error.data["worker"])
        last = tail(log)
        ending = f"Its log {log} ends with:\n{last}" if last else f"Its log {log} is empty."
        return StartFailed(f"{error.message.rstrip('.')}. {ending}", **{**error.data, "log_tail": last})

    # ---- what ends it ----

    def _serve_control(self) -> None:
        for command in self._control.serve():
            if isinstance(command, Scale):
                self._workers.plan = self._plan(command.workers)
            self._feed(_event(command))

    def _describe(self) -> dict[str, Any]:
        return self._publication.describe(self._policy)

    def _refusal(self, command: Command) -> SamplerPoolError | None:
        """Why a command cannot be carried out, if it cannot."""
        event = _event(command)
        if isinstance(event, StopRequested):
            return None
        try:
            if isinstance(command, Scale):
                self._plan(command.workers)
        except SamplerPoolError as error:
            return error
        return self._policy.refusal(event)

    def _plan(self, workers: int) -> tuple[WorkerPlan, ...]:
        if self._settings.cluster is not None:
            return tuple(worker_plans(self._settings.cluster, workers))
        return tuple(plan_workers(replace(self._settings.pool_args, workers=workers), self._settings.devices))

    @contextlib.contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Enqueue signals and wake the loop up; what was set before comes back at the end."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._enqueue_signal)
        if self._settings.detached:
            handlers[signal.SIGHUP] = signal.SIG_IGN
        before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        wakeup_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._readers[read_end] = functools.partial(self._take_signals, read_end)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(read_end)
            os.close(write_end)

    def _enqueue_signal(self, signum: int, _frame: object) -> None:
        self._signals.append(signum)

    def _take_signals(self, read_end: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(read_end, 4096):
                pass
        while self._signals:
            signum = self._signals.popleft()
            name = signal.Signals(signum).name
            if self._policy.state != "stopping":
                self._feed(StopRequested(STOP_TIMEOUT_S, name))
            elif signum != signal.SIGHUP:  # a closing terminal may send it several times, and means no haste
                self._feed(HurryRequested(f"{name} while stopping"))

    @contextlib.contextmanager
    def _owner_watch(self) -> Iterator[None]:
        """Notice the end of the launching process by the pipe that it holds, and by its process where it owns us."""
        settings = self._settings
        descriptors: list[int] = []
        if settings.owner_fd >= 0:
            os.set_inheritable(settings.owner_fd, False)
            descriptors.append(settings.owner_fd)
        if settings.owner is not None and settings.owner.alive():
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(settings.owner.pid))
        for descriptor in descriptors:
            self._readers[descriptor] = functools.partial(self._owner_gone, descriptor)
        try:
            yield
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _owner_gone(self, descriptor: int) -> None:
        self._readers.pop(descriptor)
        if self._settings.private or self._policy.state == "starting":
            self._feed(StopRequested(OWNER_GONE_TIMEOUT_S, "the process that launched this pool is gone"))


def _event(command: Command) -> StopRequested | RestartRequested | ScaleRequested:
    if isinstance(command, Restart):
        return RestartRequested(command.worker, command.timeout_s)
    if isinstance(command, Scale):
        return ScaleRequested(command.workers, command.timeout_s)
    return StopRequested(command.timeout_s, "asked to")
