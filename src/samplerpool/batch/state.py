"""The course of one batch run as a state machine: events in, actions out; no socket or file, and time is an argument.

Rows are read ahead a little, cut into jobs (one a sample), handed out in shards, and given back as they finish, each
exactly once. What became of a job decides its way::

    waiting ──Assign──▶ running ──Answered──────────────────────────▶ done ──Emit──▶
       ▲                  │ │ └──RequestFailed: the row's own fault────▶ done (an error row)
       ├──────────────────┘ │    RequestFailed: not its fault, up to MAX_ATTEMPTS times
       │                    └────RequestFailed: its worker died ───────▶ suspect (batch.suspects)

Ordinary rows go first. Suspects are tried at a worker that has nothing else to do: one that has just come back, or one
that is kept free for them, as long as another goes on with ordinary rows; at the only one when those are done. So a row
that kills its worker delays nobody but itself and, for a while, its neighbours, and endangers no others.

When nothing waits any more, workers that have room take over what would come sooner from them, by the speeds measured
so far (``batch.plan``): two workers hold such a job then, and the first answer counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from samplerpool.batch.events import (
    Action,
    Answered,
    Assign,
    Drop,
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
from samplerpool.batch.plan import Asked, Expected, Speed, Window, hand_out, take_over, window_for
from samplerpool.batch.suspects import NOTHING, End, Suspects
from samplerpool.batch.waiting import Waiting
from samplerpool.client.continuation import is_death
from samplerpool.data.answers import RowResult, row_seed
from samplerpool.data.rows import Row
from samplerpool.errors import (
    Aborted,
    EngineBroken,
    QueueFull,
    Retryable,
    SamplerPoolError,
    TransportError,
    UnsupportedParameter,
    WorkerDraining,
    WorkerError,
)

MAX_ATTEMPTS = 10
"""How often a row is handed out to workers that live and yet do not answer it."""

LOOK_AHEAD = 4096
"""Rows that are read ahead to find the long ones, where the lengths of answers are known beforehand."""

TAKE_OVER_EVERY_S = 0.1
TAKE_OVER_PER_WORKER_S = 0.0003
"""Looking at what all workers hold takes about a tenth of this for each of them."""

NOT_THE_ROWS_FAULT = (WorkerError, TransportError, Retryable, Aborted)
UNTRIED = (WorkerError, WorkerDraining, QueueFull)
"""Ends that do not count as attempts."""


class BatchState:
    """See the module's docstring.

    Args:
        run_seed: from which each job's seed is derived.
        samples: answers per row.
        max_new_tokens: limit of each answer's tokens.
    """

    def __init__(self, run_seed: int, samples: int = 1, max_new_tokens: int | None = None) -> None:
        self._run_seed = run_seed
        self._samples = samples
        self._max_new_tokens = max_new_tokens
        self._unfinished = 0  # jobs
        self._results: list[Emit | Drop] = []  # to be given back
        self._waiting = Waiting()
        self._speed = Speed()
        self._now_s = 0.0
        self._looked_at_s = 0.0
        self._windows: dict[int, Window] = {}
        self._places = 0  # of all windows
        self._hungry: set[int] = set()  # those of them that want more
        self._held: dict[int, dict[Job, None]] = {}
        self._suspects = Suspects()
        self._coming: set[int] = set()
        self._resting: set[int] = set()
        self._draining: set[int] = set()
        self._input_ended = False
        self._stopping: StopRequested | None = None
        self._fatal: SamplerPoolError | None = None
        self._finished = False

    @property
    def workers(self) -> frozenset[int]:
        """Those that are up."""
        return frozenset(self._windows)

    @property
    def coming(self) -> frozenset[int]:
        """Those that are not, but will be."""
        return frozenset(self._coming)

    @property
    def outstanding(self) -> dict[int, int]:
        """Worker to the number of jobs it holds."""
        return {worker: len(jobs) for worker, jobs in self._held.items()}

    @property
    def deaths(self) -> int:
        """How often a worker died while it held rows."""
        return self._suspects.deaths.total()

    @property
    def suspects(self) -> int:
        """Rows that were in flight when a worker died, and are not cleared."""
        return self._suspects.rows

    @property
    def room(self) -> int:
        """How many rows should be read now."""
        if self._input_ended or self._stopping or self._finished:
            return 0
        places = max(self._places, LOOK_AHEAD) if self._waiting.lengths_known else self._places
        return max(0, -(-(places - len(self._waiting)) // self._samples))

    def handle(self, *events: Event, now_s: float = 0.0) -> list[Action]:
        """Take note of what happened, and say what is to be done.

        Args:
            now_s: by a clock that never goes back. Call it with no event, too, a few times a second.
        """
        self._now_s = now_s
        actions: list[Action] = []
        for event in events:
            match event:
                case Answered(worker, job, answer):
                    if not job.done:
                        if job.copies == 1:  # else it was sent there later
                            self._speed.note(worker, now_s - job.sent_at_s, answer.completion_tokens)
                        self._close(job, RowResult(job.row, job.sample, job.seed, answer), worker)
                    self._suspects.proved(worker)
                    self._ended(worker, job, "done")
                case RequestFailed(worker, job, error):
                    self._failed(worker, job, error, actions)
                case RowsRead(rows):
                    for row in rows:
                        self._open(row)
                case InputEnded():
                    self._input_ended = True
                case WorkerUp(worker, max_batch):
                    self._close_window(worker)
                    self._windows[worker] = window = window_for(max_batch)
                    self._places += window.size
                    if len(self._held.setdefault(worker, {})) <= window.refill_at:
                        self._hungry.add(worker)
                    self._suspects.proved(worker)
                    for others in (self._coming, self._draining, self._resting):
                        others.discard(worker)
                case WorkerDown(worker, coming):
                    self._close_window(worker)
                    (self._coming.add if coming else self._coming.discard)(worker)
                case WorkerRested(worker):
                    self._resting.discard(worker)
                case StopRequested():
                    self._stopping = event
                    self._waiting.clear()
                    self._suspects.drop()
        if self._finished:
            return []
        self._assign(actions)
        actions += self._results  # workers first
        self._results.clear()
        self._finish(actions)
        return actions

    def _open(self, row: Row) -> None:
        missing = [sample for sample in range(self._samples) if sample not in row.finished]
        if row.error is not None:
            self._results += [Emit(RowResult(row, sample, None, None, row.error)) for sample in missing]
        elif not self._stopping:
            slot = Slot(row)
            self._waiting.add(Job(slot, sample, row_seed(self._run_seed, row.index, sample)) for sample in missing)
            self._unfinished += len(missing)

    def _close(self, job: Job, result: RowResult, worker: int | None = None) -> None:
        job.done = True
        self._results.append(Emit(result, worker))
        self._unfinished -= 1
        if job.copies > 1:
            self._results += [Drop(w, job) for w, held in self._held.items() if w != worker and job in held]

    def _close_window(self, worker: int) -> bool:
        """A worker gets nothing for now; whether it did."""
        window = self._windows.pop(worker, None)
        self._places -= window.size if window else 0
        self._hungry.discard(worker)
        return window is not None

    def _failed(self, worker: int, job: Job, error: SamplerPoolError, actions: list[Action]) -> None:
        if not job.done or not isinstance(error, Aborted):
            self._note(worker, error, job.row.params or {}, actions)
        death = is_death(error)
        if job.done:
            self._ended(worker, job, "died" if death else "done", error)
            return
        job.attempts -= death or isinstance(error, UNTRIED) or error.data.get("sent") is False
        if death:
            self._ended(worker, job, "died", error)
        elif isinstance(error, NOT_THE_ROWS_FAULT) and (job.attempts < MAX_ATTEMPTS or job.copies > 1):
            self._ended(worker, job, "returned")
        else:
            transient = isinstance(error, NOT_THE_ROWS_FAULT)
            if transient:
                error = type(error)(f"{error.message} Given up after {job.attempts} attempts.", **error.data)
            transient |= self._fatal is not None  # no row's own, so not to be found in an output
            self._close(job, RowResult(job.row, job.sample, job.seed, None, error, transient=transient), worker)
            self._ended(worker, job, "done")

    def _note(self, worker: int, error: SamplerPoolError, own: Mapping[str, Any], actions: list[Action]) -> None:
        """What a failure says of the worker, and of parameters but for the row's own, as all rows share these."""
        if isinstance(error, UnsupportedParameter) and error.data.get("parameter") not in own:
            self._fatal = error
        if isinstance(error, WorkerError):
            if self._close_window(worker):
                self._coming.add(worker)  # until more is known
        elif isinstance(error, WorkerDraining):
            self._draining.add(worker)
        broken_again = isinstance(error, EngineBroken) and self._suspects.doubtful(worker)
        if (broken_again or isinstance(error, QueueFull)) and worker not in self._resting:
            self._resting.add(worker)
            actions.append(Rest(worker))

    def _ended(self, worker: int, job: Job, end: End, error: SamplerPoolError | None = None) -> None:
        """A worker holds a job no more."""
        held = self._held[worker]
        del held[job]
        job.copies -= 1
        job.fell |= end == "died" and job.copies > 0
        if (window := self._windows.get(worker)) and len(held) <= window.refill_at:
            self._hungry.add(worker)
        verdict = self._suspects.ended(worker, job, end, held, error, settled=job.done or job.copies > 0)
        if verdict is NOTHING:  # as for nearly every job there is
            return
        for convict in verdict.convicted:
            self._close(convict, RowResult(convict.row, convict.sample, convict.seed, None, verdict.error))
        if self._stopping:
            self._suspects.drop()
        else:  # ahead of all others, because they are nearest to what is to be given back next
            self._waiting.put_back(verdict.released)

    # ---- who gets what --------------------------------------------------------------------------------------------

    def _assign(self, actions: list[Action]) -> None:
        if self._fatal:
            return
        if self._suspects.waiting:
            free = self._free(self._windows.keys())
            self._try_suspects(free, actions)
        elif self._hungry and (self._waiting or self._may_take_over()):
            free = self._free(self._hungry)
        else:
            return
        if self._waiting:
            windows = {worker: self._windows[worker] for worker in free & self._hungry}
            outstanding = {worker: len(self._held[worker]) for worker in windows}
            for worker, count in hand_out(len(self._waiting), outstanding, windows).items():
                self._send(worker, self._waiting.take(count), actions)
        elif self._may_take_over():
            self._take_over(free, actions)

    def _may_take_over(self) -> bool:
        """Whether it is time to look for rows that others would end sooner."""
        every_s = TAKE_OVER_EVERY_S + TAKE_OVER_PER_WORKER_S * len(self._windows)
        wanted = self._input_ended and not (self._stopping or self._suspects.waiting)
        return wanted and self._now_s >= self._looked_at_s + every_s

    def _free(self, workers: Iterable[int]) -> set[int]:
        """Which of them may get ordinary rows."""
        busy = self._draining | self._resting
        return {worker for worker in workers if worker not in busy and not self._suspects.engaged(worker)}

    def _take_over(self, free: set[int], actions: list[Action]) -> None:
        """Have workers with room begin what others would end later."""
        self._looked_at_s = self._now_s
        room = {w: self._windows[w].batch - len(self._held[w]) for w in free}
        idle = {worker: count for worker, count in room.items() if count > 0}
        if not idle:
            return
        held = {w: list(self._held[w]) for w in self._windows if not self._suspects.engaged(w)}
        expected: list[Expected] = []
        for worker, jobs in held.items():
            asked = [Asked(job.sent_at_s, job.row.expected_tokens, self._most_tokens(job)) for job in jobs]
            batch = self._windows[worker].batch
            of_worker = self._speed.expect(worker, asked, batch, self._now_s)
            expected += [one for one in of_worker if _may_be_copied(jobs[one.place])]
        for one, worker in take_over(expected, idle, self._speed):
            self._send(worker, [held[one.worker][one.place]], actions)

    def _most_tokens(self, job: Job) -> int | None:
        own = job.row.params or {}
        most = own.get("max_new_tokens", self._max_new_tokens)
        return most if isinstance(most, int) else None

    def _send(self, worker: int, jobs: list[Job], actions: list[Action]) -> None:
        held = self._held[worker]
        for job in jobs:
            job.attempts += 1
            job.copies += 1
            if job.copies == 1:
                job.sent_at_s = self._now_s
            held[job] = None
        if (window := self._windows.get(worker)) and len(held) > window.refill_at:
            self._hungry.discard(worker)
        actions.append(Assign(worker, jobs))

    def _try_suspects(self, free: set[int], actions: list[Action]) -> None:
        """Begin trials, and take the workers that they need from those that are free for ordinary rows."""
        while self._suspects.waiting and (worker := self._place_of_trial(free)) is not None:
            free.discard(worker)
            if self._held[worker]:
                return  # when it has finished what it holds
            self._send(worker, self._suspects.begin(worker), actions)

    def _place_of_trial(self, free: set[int]) -> int | None:
        """Where the next trial is to be, if anywhere now: where it holds up least, and not always at the same one."""

        def cost(worker: int) -> tuple[int, int, int]:
            held = 1 if worker in self._coming else 2 * len(self._held[worker])
            return self._suspects.strain(worker), held, worker

        if self._waiting or self.room > 0:
            worker = min(free | self._coming, key=cost) if len(free) > 1 else None
            return worker if worker in free else None
        return min((worker for worker in free if not self._held[worker]), key=cost, default=None)

    def _finish(self, actions: list[Action]) -> None:
        outcome: Outcome
        running = any(self._held.values())
        if self._fatal:
            outcome = "failed"
        elif self._input_ended and not self._unfinished:
            outcome = "complete"
        elif self._stopping and (self._stopping.at_once or not running):
            outcome = "stopped"
        elif not self._stopping and not running and not self._windows and not self._coming:
            outcome = "no_workers"
        else:
            return
        self._finished = True
        actions.append(Finish(outcome, self._fatal))


def _may_be_copied(job: Job) -> bool:
    """Whether a second worker may begin it; not where it may be what killed one that did."""
    return job.copies == 1 and not job.done and not job.fell
