"""A batch run on simulated time: the project's own planner, and workers of which only the speed is made up."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from samplerpool.batch.events import Answered, Assign, Drop, Event, Finish, InputEnded, Job, RowsRead, WorkerUp
from samplerpool.batch.state import BatchState
from samplerpool.data.answers import Answer
from samplerpool.data.rows import Row

MESSAGE_S = 0.002
"""From the client to a worker or back."""

LOOK_EVERY_S = 0.2
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Machine:
    """A worker: requests that it works on at a time, and seconds a token of each of them."""

    batch: int
    pace_s: float


def zipf_lengths(count: int, seed: int, *, longest: int, exponent: float = 1.2) -> list[int]:
    """Lengths of answers in tokens, of which few are long: the probability of n falls like 1 / n ** exponent."""
    numbers = range(8, longest + 1)
    weights = list(itertools.accumulate(n**-exponent for n in numbers))
    return random.Random(seed).choices(numbers, cum_weights=weights, k=count)


def lower_bound_s(lengths: Sequence[int], machines: Sequence[Machine]) -> float:
    """No plan can end sooner: all work shared out without a gap, and the longest answer at the fastest worker."""
    tokens_per_s = sum(machine.batch / machine.pace_s for machine in machines)
    return max(sum(lengths) / tokens_per_s, max(lengths) * min(machine.pace_s for machine in machines))


def static_split_s(lengths: Sequence[int], machines: Sequence[Machine]) -> float:
    """How long it takes if each worker gets its share of the rows at the start."""
    share = -(-len(lengths) // len(machines))
    ends = []
    for number, machine in enumerate(machines):
        free = [0.0] * machine.batch
        for tokens in lengths[number * share : (number + 1) * share]:
            heapq.heappush(free, heapq.heappop(free) + tokens * machine.pace_s)
        ends.append(max(free))
    return max(ends)


@dataclass
class _Worker:
    machine: Machine
    queue: deque[Job] = field(default_factory=deque)
    running: set[Job] = field(default_factory=set)


@dataclass
class Outcome:
    """Of a run. ``taken_over``: rows that two workers were given; ``wasted``: tokens that came too late to count."""

    seconds: float
    taken_over: int
    wasted: int


class Simulation:
    """One run of the planner.

    Args:
        lengths: tokens of each row's answer.
        known: whether the planner is told them beforehand.
    """

    def __init__(self, lengths: Sequence[int], machines: Sequence[Machine], *, known: bool) -> None:
        self._lengths = lengths
        self._known = known
        self._state = BatchState(0)
        self._workers = [_Worker(machine) for machine in machines]
        self._read = 0
        self._clock_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, int, Job | None]] = []
        self._finish: Finish | None = None
        self._given: dict[int, int] = {}
        self._wasted = 0

    def run(self) -> Outcome:
        """To its end."""
        self._tell(*(WorkerUp(number, worker.machine.batch) for number, worker in enumerate(self._workers)))
        self._later(LOOK_EVERY_S, "look", 0, None)
        while self._finish is None:
            self._feed()
            self._clock_s, _, kind, number, job = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(number, job)
        return Outcome(self._clock_s, sum(count > 1 for count in self._given.values()), self._wasted)

    def _feed(self) -> None:
        while self._finish is None and (count := min(self._state.room, READ_AT_ONCE)):
            numbers = range(self._read, min(self._read + count, len(self._lengths)))
            rows = [Row(n, expected_tokens=self._lengths[n] if self._known else None) for n in numbers]
            self._read += len(rows)
            self._tell(RowsRead(rows), *([InputEnded()] if len(rows) < count else []))

    def _later(self, delay_s: float, kind: str, number: int, job: Job | None) -> None:
        heapq.heappush(self._events, (self._clock_s + delay_s, next(self._order), kind, number, job))

    def _tell(self, *events: Event) -> None:
        for action in self._state.handle(*events, now_s=self._clock_s):
            match action:
                case Assign(number, jobs):
                    for job in jobs:
                        self._given[job.row.index] = self._given.get(job.row.index, 0) + 1
                        self._later(MESSAGE_S, "arrive", number, job)
                case Drop(number, job):
                    self._later(MESSAGE_S, "drop", number, job)
                case Finish():
                    self._finish = action

    def _look(self, _number: int, _job: Any) -> None:
        self._tell()
        self._later(LOOK_EVERY_S, "look", 0, None)

    def _arrive(self, number: int, job: Job) -> None:
        self._workers[number].queue.append(job)
        self._begin(number)

    def _begin(self, number: int) -> None:
        worker = self._workers[number]
        while worker.queue and len(worker.running) < worker.machine.batch:
            job = worker.queue.popleft()
            worker.running.add(job)
            self._later(self._lengths[job.row.index] * worker.machine.pace_s, "end", number, job)

    def _end(self, number: int, job: Job) -> None:
        worker = self._workers[number]
        if job in worker.running:
            worker.running.remove(job)
            self._later(MESSAGE_S, "answer", number, job)
            self._begin(number)

    def _drop(self, number: int, job: Job) -> None:
        worker = self._workers[number]
        if job in worker.queue:
            worker.queue.remove(job)
        elif job in worker.running:
            worker.running.remove(job)
        else:
            return  # it has ended meanwhile
        self._answer(number, job)
        self._begin(number)

    def _answer(self, number: int, job: Job) -> None:
        if job.done:
            self._wasted += self._lengths[job.row.index]
        self._tell(Answered(number, job, Answer("", "stop", 0, self._lengths[job.row.index], 0, None)))
