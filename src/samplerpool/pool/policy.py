"""What a pool does, and when: events in, actions out.

No sockets, clocks or processes: time is an argument, and every decision is a list of actions that the supervisor
carries out in order.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from samplerpool.errors import SamplerPoolError, StartFailed, WorkerDied

START_FAILURE_GRACE_S = 5.0
"""How long the other workers may take to end when one of them failed to start."""

LAST_CALL_S = 2.0
"""Between the second request to end, upon which a worker drops what it runs, and the kill."""

WorkerState = Literal["starting", "loading", "ready", "stopping", "died"]
PoolState = Literal["starting", "running", "stopping"]


# ---- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerSpawned:
    """A worker's process exists."""

    index: int
    pid: int


@dataclass(frozen=True)
class WorkerLoading:
    """A worker says what it is busy with before it is ready."""

    index: int
    detail: str


@dataclass(frozen=True)
class WorkerReady:
    """A worker takes requests; ``description`` is what it says of itself."""

    index: int
    description: Mapping[str, Any]


@dataclass(frozen=True)
class WorkerFailed:
    """A worker says why it is about to end, or could not be spawned at all."""

    index: int
    error: SamplerPoolError


@dataclass(frozen=True)
class WorkerExited:
    """A worker's process is gone; a negative return code is the signal that ended it."""

    index: int
    returncode: int


@dataclass(frozen=True)
class StopRequested:
    """End the pool: workers may take ``timeout_s`` to finish what they run."""

    timeout_s: float
    reason: str


@dataclass(frozen=True)
class KillRequested:
    """End the pool at once."""

    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = WorkerSpawned | WorkerLoading | WorkerReady | WorkerFailed | WorkerExited | StopRequested | KillRequested | Tick


# ---- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start the worker's process; answered by ``WorkerSpawned`` or ``WorkerFailed``."""

    index: int


@dataclass(frozen=True)
class Terminate:
    """Ask the worker to end: the first time after what it runs, the second time without it."""

    index: int


@dataclass(frozen=True)
class Kill:
    """End the worker and its children at once."""

    index: int


@dataclass(frozen=True)
class Publish:
    """What is known about the pool has changed: write the connection file."""


@dataclass(frozen=True)
class Announce:
    """Tell whoever looks on."""

    text: str


@dataclass(frozen=True)
class Open:
    """All workers are ready: whoever waits for the pool may use it."""


@dataclass(frozen=True)
class End:
    """Nothing is left to do. ``error`` says why, unless the pool was asked to end."""

    exit_code: int
    error: SamplerPoolError | None = None


Action = Spawn | Terminate | Kill | Publish | Announce | Open | End


# ---- the policy ---------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    """What the policy knows of one worker. ``alive``: it has a process."""

    index: int
    state: WorkerState = "starting"
    detail: str = ""
    pid: int = 0
    alive: bool = False
    restarts: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)


class PoolPolicy:
    """One pool's life: starting, running, stopping.

    A worker that fails before all are ready fails the launch. One that dies later is left dead, and the pool goes on
    with the others while there are any.

    Args:
        workers: how many.
        start_timeout_s: how long all of them together may take to become ready.
    """

    def __init__(self, workers: int, start_timeout_s: float) -> None:
        self.state: PoolState = "starting"
        self.workers: Sequence[Worker] = [Worker(index) for index in range(workers)]
        self.deaths = 0
        self._start_timeout_s = start_timeout_s
        self._deadline: float | None = None
        self._hurried = False
        self._killed = False
        self._error: SamplerPoolError | None = None

    @property
    def deadline(self) -> float | None:
        """When the next ``Tick`` is due, on the clock of the ``now`` arguments; None means never."""
        return self._deadline

    def start(self, now: float) -> list[Action]:
        """The first actions. Workers are spawned one after the other, each when the one before exists."""
        self._deadline = now + self._start_timeout_s
        return [Publish(), Spawn(0)]

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about one event."""
        match event:
            case WorkerSpawned():
                return self._spawned(event)
            case WorkerLoading():
                return self._loading(event)
            case WorkerReady():
                return self._ready(event)
            case WorkerFailed():
                return self._failed(event, now)
            case WorkerExited():
                return self._exited(event, now)
            case StopRequested():
                return self._stop(now, event.timeout_s, event.reason)
            case KillRequested():
                return self._kill_all(event.reason)
            case Tick():
                return self._tick(now)

    def _spawned(self, event: WorkerSpawned) -> list[Action]:
        worker = self.workers[event.index]
        worker.pid, worker.alive = event.pid, True
        if self.state == "stopping":  # asked to stop while it was being spawned
            worker.state = "stopping"
            return [Kill(event.index) if self._killed else Terminate(event.index), Publish()]
        following = event.index + 1
        return [Publish(), *([Spawn(following)] if following < len(self.workers) else [])]

    def _loading(self, event: WorkerLoading) -> list[Action]:
        worker = self.workers[event.index]
        if worker.state not in ("starting", "loading"):
            return []
        worker.state, worker.detail = "loading", event.detail
        return [Publish(), Announce(f"worker {event.index}: {event.detail or 'loading'}")]

    def _ready(self, event: WorkerReady) -> list[Action]:
        worker = self.workers[event.index]
        worker.description = event.description
        if worker.state not in ("starting", "loading"):
            return []
        worker.state, worker.detail = "ready", ""
        actions: list[Action] = [Announce(f"worker {event.index}: ready")]
        if self.state == "starting" and all(w.state == "ready" for w in self.workers):
            self.state, self._deadline = "running", None
            return [*actions, Publish(), Open()]
        return [*actions, Publish()]

    def _failed(self, event: WorkerFailed, now: float) -> list[Action]:
        worker = self.workers[event.index]
        worker.detail = event.error.message
        if self.state != "starting":
            return [Publish()]
        worker.state = "died"
        return self._fail_start(event.error, now)

    def _exited(self, event: WorkerExited, now: float) -> list[Action]:
        worker = self.workers[event.index]
        expected = worker.state == "stopping"
        worker.alive = False
        reason = worker.detail if worker.state != "loading" and worker.detail else describe_exit(event.returncode)
        if not expected:
            worker.state, worker.detail = "died", reason
            self.deaths += 1
        if self.state == "starting":
            text = f"Worker {event.index} died while it was starting: it {describe_exit(event.returncode)}."
            return self._fail_start(StartFailed(text, worker=event.index), now)
        if self.state == "running":
            return self._lost(event.index, reason, now)
        return [Publish(), *self._end_if_alone()]

    def _lost(self, index: int, reason: str, now: float) -> list[Action]:
        left = sum(worker.alive for worker in self.workers)
        text = f"worker {index} died: {reason}"
        if left:
            return [Announce(f"{text}; {left} of {len(self.workers)} workers left"), Publish()]
        self._error = WorkerDied(f"No worker is left: {text}.", worker=index)
        return [Announce(f"{text}; no worker is left"), *self._stop(now, 0.0, "")]

    def _fail_start(self, error: SamplerPoolError, now: float) -> list[Action]:
        self._error = error
        return self._stop(now, START_FAILURE_GRACE_S, "")

    def _stop(self, now: float, timeout_s: float, reason: str) -> list[Action]:
        deadline = now + timeout_s
        if self.state == "stopping":  # asked again: the shorter time counts
            if self._deadline is not None and not self._hurried:
                self._deadline = min(deadline, self._deadline)
            return []
        self.state, self._deadline = "stopping", deadline
        actions: list[Action] = [Announce(f"stopping: {reason}")] if reason else []
        for worker in self.workers:
            if worker.alive:
                worker.state = "stopping"
                actions.append(Terminate(worker.index))
        return [*actions, Publish(), *self._end_if_alone()]

    def _kill_all(self, reason: str) -> list[Action]:
        self.state, self._deadline, self._killed = "stopping", None, True
        actions: list[Action] = [Announce(f"killing the workers: {reason}")]
        for worker in self.workers:
            if worker.alive:
                worker.state = "stopping"
                actions.append(Kill(worker.index))
        return [*actions, Publish(), *self._end_if_alone()]

    def _hurry(self, now: float) -> list[Action]:
        self._hurried, self._deadline = True, now + LAST_CALL_S
        return [Terminate(worker.index) for worker in self.workers if worker.alive]

    def _end_if_alone(self) -> list[Action]:
        if any(worker.alive for worker in self.workers):
            return []
        return [End(0 if self._error is None else 1, self._error)]

    def _tick(self, now: float) -> list[Action]:
        if self._deadline is None or now < self._deadline:
            return []
        if self.state == "stopping":
            return self._kill_all("they did not end in time") if self._hurried else self._hurry(now)
        late = [worker for worker in self.workers if worker.state != "ready"]
        doing = "; ".join(f"worker {worker.index}: {worker.detail or worker.state}" for worker in late)
        text = f"Not ready within {self._start_timeout_s:g} s ({doing}). Allow more with --start-timeout."
        return self._fail_start(StartFailed(text, worker=late[0].index), now)


def describe_exit(returncode: int) -> str:
    """How a process ended, to go on after "it"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
