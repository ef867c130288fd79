"""What a pool does, and when: events in, actions out.

No sockets, clocks or processes: time is an argument, and every decision is a list of actions that the supervisor
carries out in order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from samplerpool.errors import RestartLimitReached, SamplerPoolError, StartFailed, UsageError
from samplerpool.pool.events import (
    Action,
    Announce,
    End,
    Ended,
    Event,
    HurryRequested,
    Open,
    PoolState,
    Publish,
    RestartRequested,
    ScaleRequested,
    StopRequested,
    Tick,
    WorkerExited,
    WorkerFailed,
    WorkerLoading,
    WorkerProgress,
    WorkerReady,
    WorkerSpawned,
    describe_exit,
)
from samplerpool.pool.rules import START_FAILURE_GRACE_S, PoolRules
from samplerpool.pool.worker import Worker


class PoolPolicy:
    """One pool's life: starting, running, stopping.

    A worker that fails before all are ready fails the launch. One that dies later is started again, ever later with
    each death, until it has died too often without a stable time between; then it has failed, and the pool goes on
    with the others while there are any. A worker with work whose engine does not move is killed, which is a death.

    Args:
        workers: how many.
        jitter: numbers from 0 to 1.
    """

    def __init__(self, workers: int, rules: PoolRules, jitter: Callable[[], float] = random.random) -> None:
        self.state: PoolState = "starting"
        self.workers: dict[int, Worker] = {index: Worker(index) for index in range(workers)}
        self.deaths = 0
        self._rules = rules
        self._jitter = jitter
        self._start_by: float | None = None
        self._next_probe: float | None = None
        self._error: SamplerPoolError | None = None
        self._to_replace: deque[int] = deque()
        self._replacing: int | None = None
        self._replace_timeout_s = 0.0

    @property
    def deadline(self) -> float | None:
        """When the next ``Tick`` is due, on the clock of the ``now`` arguments; None means never."""
        times = (self._start_by, self._next_probe, *(worker.due for worker in self.workers.values()))
        return min((time for time in times if time is not None), default=None)

    @property
    def replacing(self) -> list[int]:
        """Workers whose replacement was asked for and is not done."""
        return [*([] if self._replacing is None else [self._replacing]), *self._to_replace]

    def refusal(self, event: RestartRequested | ScaleRequested) -> SamplerPoolError | None:
        """Why this cannot be done now, if it cannot."""
        if self.state != "running":
            return UsageError(f"The pool is {self.state}; only a running one can be changed.")
        if isinstance(event, RestartRequested) and event.index is not None and event.index not in self.workers:
            known = ", ".join(map(str, self.workers))
            return UsageError(f"There is no worker {event.index}; the pool has {known}.")
        return None

    def start(self, now: float) -> list[Action]:
        """The first actions. Workers are spawned one after the other, each when the one before exists."""
        self._start_by = now + self._rules.start_timeout_s
        return [Publish(), *self.workers[0].spawn(again=False)]

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about one event."""
        match event:
            case WorkerSpawned():
                return self._spawned(event, now)
            case WorkerLoading():
                return self._loading(event)
            case WorkerReady():
                return self._ready(event, now)
            case WorkerProgress():
                self.workers[event.index].health.report(event.steps, event.pending, now)
                return []
            case WorkerFailed():
                return self._failed(event, now)
            case WorkerExited():
                return self._exited(event, now)
            case RestartRequested():
                return self._restart(event, now)
            case ScaleRequested():
                return self._scale(event, now)
            case StopRequested():
                return self._stop(now, event.timeout_s, event.reason)
            case HurryRequested():
                return self._hurry(event, now)
            case Tick():
                return self._tick(now)

    # ---- how workers come up --------------------------------------------------------------------------------------

    def _spawned(self, event: WorkerSpawned, now: float) -> list[Action]:
        worker = self.workers[event.index]
        worker.pid, worker.alive = event.pid, True
        if self.state == "stopping" or worker.leaving:  # asked to stop while it was being spawned
            return [*worker.end(now, START_FAILURE_GRACE_S), Publish()]
        if self.state == "running":
            worker.due = now + self._rules.start_timeout_s
            return [Publish()]
        following = self.workers.get(event.index + 1)
        return [Publish(), *(following.spawn(again=False) if following else [])]

    def _loading(self, event: WorkerLoading) -> list[Action]:
        worker = self.workers[event.index]
        if worker.state not in ("starting", "loading"):
            return []
        worker.state, worker.detail = "loading", event.detail
        return [Publish(), Announce(f"worker {event.index}: {event.detail or 'loading'}")]

    def _ready(self, event: WorkerReady, now: float) -> list[Action]:
        worker = self.workers[event.index]
        worker.description = event.description
        if worker.state not in ("starting", "loading"):
            return []
        worker.state, worker.detail, worker.due, worker.ready_at = "ready", "", None, now
        actions: list[Action] = [Announce(f"worker {event.index}: ready"), Publish()]
        if self.state == "starting" and all(w.state == "ready" for w in self.workers.values()):
            self.state, self._start_by = "running", None
            self._next_probe = now + self._rules.probe_interval_s if self._rules.probes else None
            return [*actions, Open()]
        if event.index == self._replacing:
            return [*actions, *self._replace_next(now)]
        return actions

    # ---- how they end ---------------------------------------------------------------------------------------------

    def _failed(self, event: WorkerFailed, now: float) -> list[Action]:
        worker = self.workers[event.index]
        worker.detail = event.error.message
        worker.reason = worker.reason or f"ended with: {event.error.message}"
        if self.state == "starting":
            worker.state = "died"
            return self._fail_start(event.error, now)
        if worker.alive:
            return [Publish()]
        if self.state == "stopping":
            return self._end_if_alone()
        return self._died(worker, "", now)  # it could not be spawned

    def _exited(self, event: WorkerExited, now: float) -> list[Action]:
        worker = self.workers[event.index]
        worker.alive, worker.due = False, None
        worker.reason = worker.reason or describe_exit(event.returncode)
        ended = Ended(event.index, worker.requested, worker.reason)
        if not worker.requested:
            self.deaths += 1
        if self.state == "starting":
            worker.state, worker.detail = "died", worker.reason
            text = f"Worker {event.index} died while it was starting: it {describe_exit(event.returncode)}."
            return [ended, *self._fail_start(StartFailed(text, worker=event.index), now)]
        if self.state == "stopping":
            return [ended, Publish(), *self._end_if_alone()]
        if worker.leaving:
            return [ended, *self._removed(worker, now)]
        if worker.requested:
            return [ended, *worker.spawn(again=True)]
        return [ended, *self._died(worker, event.log_tail, now)]

    def _died(self, worker: Worker, log_tail: str, now: float) -> list[Action]:
        """Start it again later, or give it up."""
        if worker.ready_at is not None and now - worker.ready_at >= self._rules.restart_window_s:
            worker.deaths = 0
        worker.deaths += 1
        actions: list[Action] = self._call_off(worker.index)
        if worker.deaths > self._rules.max_restarts:
            return [*actions, *self._give_up(worker, log_tail, now)]
        delay_s = self._rules.delay_s(worker.deaths, self._jitter())
        worker.state, worker.detail, worker.due = "restarting", f"it {worker.reason}", now + delay_s
        text = f"worker {worker.index} died: it {worker.reason}; it is started again in {delay_s:.1f} s"
        return [*actions, Announce(text, True), Publish()]

    def _give_up(self, worker: Worker, log_tail: str, now: float) -> list[Action]:
        rules = self._rules
        often = f"{rules.max_restarts} restarts without {rules.restart_window_s:g} s of rest between them"
        ending = f" Its log ends with:\n{log_tail}" if log_tail else ""
        worker.state, worker.due = "failed", None
        worker.detail = f"it {worker.reason}, and that was its last start (limit: {often}).{ending}"
        actions: list[Action] = [Announce(f"worker {worker.index} has failed: {worker.detail}", True), Publish()]
        if any(other.state != "failed" for other in self.workers.values()):
            return actions
        text = f"No worker is left. Worker {worker.index}: {worker.detail}"
        self._error = RestartLimitReached(text, worker=worker.index, log_tail=log_tail)
        return [*actions, *self._stop(now, 0.0, "")]

    # ---- changes that were asked for ------------------------------------------------------------------------------

    def _restart(self, event: RestartRequested, now: float) -> list[Action]:
        if self.refusal(event):
            return []
        wanted = list(self.workers) if event.index is None else [event.index]
        self._replace_timeout_s = event.timeout_s
        self._to_replace.extend(index for index in wanted if index not in self.replacing)
        return self._replace_next(now) if self._replacing is None else []

    def _replace_next(self, now: float) -> list[Action]:
        self._replacing = None
        while self._to_replace:
            worker = self.workers.get(self._to_replace.popleft())
            if worker is not None and not worker.leaving:
                self._replacing, worker.deaths = worker.index, 0
                begin = Announce(f"worker {worker.index}: being replaced")
                if not worker.alive:
                    return [begin, *worker.spawn(again=True)]
                return [begin, *worker.end(now, self._replace_timeout_s, "finishes what it runs"), Publish()]
        return []

    def _call_off(self, index: int) -> list[Action]:
        """What replaces a worker has died: the others stay as they are."""
        if index != self._replacing:
            return []
        left = ", ".join(map(str, self._to_replace))
        self._replacing = None
        self._to_replace.clear()
        return [Announce(f"worker {index} did not come back; not replaced: {left}", True)] if left else []

    def _scale(self, event: ScaleRequested, now: float) -> list[Action]:
        if self.refusal(event):
            return []
        actions: list[Action] = [Announce(f"going from {len(self.workers)} to {event.workers} workers")]
        for index in range(event.workers):
            worker = self.workers.setdefault(index, Worker(index))
            worker.leaving = False  # one that is on its way out comes back with a new process
            if worker.state == "failed" or not (worker.pid or worker.alive):
                worker.deaths = 0
                actions += worker.spawn(again=worker.pid != 0)
        for worker in [worker for worker in self.workers.values() if worker.index >= event.workers]:
            worker.leaving = True
            if worker.alive:
                actions += worker.end(now, event.timeout_s, "finishes what it runs, then leaves")
            else:
                actions += self._removed(worker, now)
        return [*actions, Publish()]

    def _removed(self, worker: Worker, now: float) -> list[Action]:
        del self.workers[worker.index]
        actions: list[Action] = [Announce(f"worker {worker.index}: removed"), Publish()]
        return [*actions, *self._replace_next(now)] if worker.index == self._replacing else actions

    # ---- how the pool ends ----------------------------------------------------------------------------------------

    def _fail_start(self, error: SamplerPoolError, now: float) -> list[Action]:
        self._error = error
        return self._stop(now, START_FAILURE_GRACE_S, "")

    def _stop(self, now: float, timeout_s: float, reason: str) -> list[Action]:
        again = self.state == "stopping"
        self.state, self._start_by, self._next_probe = "stopping", None, None
        actions: list[Action] = [Announce(f"stopping: {reason}")] if reason and not again else []
        for worker in self.workers.values():
            if worker.alive:
                actions += worker.end(now, timeout_s)
            else:
                worker.due = None
        return actions if again else [*actions, Publish(), *self._end_if_alone()]

    def _hurry(self, event: HurryRequested, now: float) -> list[Action]:
        alive = [worker for worker in self.workers.values() if worker.alive]
        waiting = [worker for worker in alive if not worker.hurried]
        if waiting:
            dropped: list[Action] = [Announce(f"dropping what runs: {event.reason}")]
            return dropped + [action for worker in waiting for action in worker.hurry(now)]
        killed: list[Action] = [Announce(f"killing the workers: {event.reason}")]
        return killed + [action for worker in alive for action in worker.kill()]

    def _end_if_alone(self) -> list[Action]:
        if any(worker.alive for worker in self.workers.values()):
            return []
        return [End(0 if self._error is None else 1, self._error)]

    # ---- time -----------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> list[Action]:
        if self._start_by is not None and now >= self._start_by:
            return self._fail_start(self._late(), now)
        actions: list[Action] = []
        for worker in self.workers.values():
            actions += worker.tick(now, self._rules.start_timeout_s)
        if self._next_probe is not None and now >= self._next_probe:
            self._next_probe = now + self._rules.probe_interval_s
            actions += self._probe(now)
        return actions

    def _late(self) -> StartFailed:
        late = [worker for worker in self.workers.values() if worker.state != "ready"]
        doing = "; ".join(f"worker {worker.index}: {worker.detail or worker.state}" for worker in late)
        text = f"Not ready within {self._rules.start_timeout_s:g} s ({doing}). Allow more with --start-timeout."
        return StartFailed(text, worker=late[0].index)

    def _probe(self, now: float) -> list[Action]:
        """Look at every worker's progress. Loading is none of this: it has a time limit of its own."""
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.state == "ready" and not worker.hung and worker.health.probe() >= self._rules.probes:
                text = f"made no progress for {self._rules.hang_timeout_s:g} s (--hang-timeout)"
                actions += [*worker.condemn(now, text), Publish()]
        return actions
