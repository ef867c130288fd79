"""The course of one batch run as a state machine: events in, actions out; no clock, socket or file.

Rows are read ahead a little, cut into jobs (one a sample), handed out in shards, and given back in input order, each
exactly once. What became of a job decides its way::

    waiting ──Assign──▶ running ──Answered──────────────────────────▶ done ──Emit, in order──▶
       ▲                   │  └───RequestFailed: the row's own fault──▶ done (an error row)
       └───────────────────┘  RequestFailed: the worker's fault, up to MAX_ATTEMPTS times
"""

from __future__ import annotations

from collections import deque

from samplerpool.batch.events import (
    Action,
    Answered,
    Assign,
    Emit,
    Event,
    Finish,
    InputEnded,
    Job,
    Outcome,
    RequestFailed,
    Rest,
    RowsRead,
    Slot,
    StopRequested,
    WorkerDown,
    WorkerRested,
    WorkerUp,
)
from samplerpool.batch.plan import Window, hand_out, window_for
from samplerpool.data.answers import RowResult, row_seed
from samplerpool.data.rows import Row
from samplerpool.errors import (
    Aborted,
    QueueFull,
    Retryable,
    SamplerPoolError,
    TransportError,
    UnsupportedParameter,
    WorkerDraining,
    WorkerError,
)

MAX_ATTEMPTS = 3
"""How often a row is handed out before its worker's failures are held against it."""

AHEAD_PER_PLACE = 64
MIN_AHEAD = 8192
"""Rows that may be read and not yet given back: enough that one slow row stalls nobody, yet bounded."""

NOT_THE_ROWS_FAULT = (WorkerError, TransportError, Retryable, Aborted)


class BatchState:
    """See the module's docstring.

    Args:
        run_seed: from which each job's seed is derived.
        samples: answers per row.
        ahead: most rows between reading and giving back; None means a number fit for the workers.
    """

    def __init__(self, run_seed: int, samples: int = 1, ahead: int | None = None) -> None:
        self._run_seed = run_seed
        self._samples = samples
        self._ahead = ahead
        self._slots: deque[Slot] = deque()
        self._waiting: deque[Job] = deque()
        self._windows: dict[int, Window] = {}
        self._outstanding: dict[int, int] = {}
        self._resting: set[int] = set()
        self._draining: set[int] = set()
        self._ended = False
        self._stopping: StopRequested | None = None
        self._fatal: SamplerPoolError | None = None
        self._finished = False

    @property
    def workers(self) -> frozenset[int]:
        """Those that are up."""
        return frozenset(self._windows)

    @property
    def outstanding(self) -> dict[int, int]:
        """Worker to the number of jobs it holds."""
        return dict(self._outstanding)

    @property
    def room(self) -> int:
        """How many rows should be read now. Never 0 for good: the first unfinished row is always waiting or running."""
        if self._ended or self._stopping or self._finished:
            return 0
        places = sum(window.size for window in self._windows.values())
        ahead = self._ahead or max(MIN_AHEAD, AHEAD_PER_PLACE * places)
        wanted = -(-(places - len(self._waiting)) // self._samples)
        return max(0, min(wanted, ahead - len(self._slots)))

    def handle(self, *events: Event) -> list[Action]:
        """Take note of what happened, and say what is to be done."""
        actions: list[Action] = []
        for event in events:
            match event:
                case Answered(worker, job, answer):
                    self._outstanding[worker] -= 1
                    self._close(job, RowResult(job.row, job.sample, job.seed, answer))
                case RequestFailed(worker, job, error):
                    self._outstanding[worker] -= 1
                    self._failed(worker, job, error, actions)
                case RowsRead(rows):
                    for row in rows:
                        self._open(row)
                case InputEnded():
                    self._ended = True
                case WorkerUp(worker, max_batch):
                    self._windows[worker] = window_for(max_batch)
                    self._outstanding.setdefault(worker, 0)
                    self._draining.discard(worker)
                    self._resting.discard(worker)
                case WorkerDown(worker):
                    self._windows.pop(worker, None)
                case WorkerRested(worker):
                    self._resting.discard(worker)
                case StopRequested():
                    self._stopping = event
                    self._waiting.clear()
        if self._finished:
            return []
        self._assign(actions)
        self._emit(actions)
        self._finish(actions)
        return actions

    def _open(self, row: Row) -> None:
        slot = Slot(row, self._samples)
        self._slots.append(slot)
        if row.error is not None:
            slot.results = [RowResult(row, sample, None, None, row.error) for sample in range(self._samples)]
            slot.missing = 0
        elif not self._stopping:
            for sample in range(self._samples):
                self._waiting.append(Job(slot, sample, row_seed(self._run_seed, row.index, sample)))

    def _close(self, job: Job, result: RowResult) -> None:
        job.slot.results[job.sample] = result
        job.slot.missing -= 1

    def _failed(self, worker: int, job: Job, error: SamplerPoolError, actions: list[Action]) -> None:
        if isinstance(error, UnsupportedParameter):  # all rows share their parameters
            self._fatal = error
        if isinstance(error, WorkerError):
            self._windows.pop(worker, None)
        elif isinstance(error, WorkerDraining):
            self._draining.add(worker)
        elif isinstance(error, QueueFull) and worker not in self._resting:
            self._resting.add(worker)
            actions.append(Rest(worker))
        if not isinstance(error, NOT_THE_ROWS_FAULT):
            self._close(job, RowResult(job.row, job.sample, job.seed, None, error))
        elif isinstance(error, QueueFull):
            job.attempts -= 1
            self._again(job)
        elif job.attempts < MAX_ATTEMPTS:
            self._again(job)
        else:
            final = type(error)(f"{error.message} Given up after {job.attempts} attempts.", **error.data)
            self._close(job, RowResult(job.row, job.sample, job.seed, None, final))

    def _again(self, job: Job) -> None:
        """Ahead of all others, because it is nearest to what is to be given back next."""
        if not self._stopping:
            self._waiting.appendleft(job)

    def _assign(self, actions: list[Action]) -> None:
        if not self._waiting or self._fatal:
            return
        open_to_work = self._windows.keys() - self._draining - self._resting
        windows = {worker: self._windows[worker] for worker in open_to_work}
        for worker, count in hand_out(len(self._waiting), self._outstanding, windows).items():
            jobs = [self._waiting.popleft() for _ in range(count)]
            for job in jobs:
                job.attempts += 1
            self._outstanding[worker] += count
            actions.append(Assign(worker, jobs))

    def _emit(self, actions: list[Action]) -> None:
        slots = self._slots
        while slots and slots[0].missing == 0:
            actions.extend(Emit(result) for result in slots.popleft().results if result is not None)

    def _finish(self, actions: list[Action]) -> None:
        outcome: Outcome
        running = any(self._outstanding.values())
        if self._fatal:
            outcome = "failed"
        elif self._ended and not self._slots:
            outcome = "complete"
        elif self._stopping and (self._stopping.at_once or not running):
            outcome = "stopped"
        elif not self._stopping and not running and not self._windows.keys() - self._draining:
            outcome = "no_workers"
        else:
            return
        self._finished = True
        self._flush(actions)
        actions.append(Finish(outcome, self._fatal))

    def _flush(self, actions: list[Action]) -> None:
        """Give back what lies finished behind unfinished rows; it is not worth less for that."""
        for slot in self._slots:
            if slot.missing == 0:
                actions.extend(Emit(result) for result in slot.results if result is not None)
        self._slots.clear()
