"""The figures of a run: what the progress line shows and the summary says. Pure; time is an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from samplerpool.batch.problems import ErrorKind, Problems
from samplerpool.data.answers import Answer, RowResult

RATE_WINDOW_S = 60.0
"""Rates are those of the last minute, so that they tell of a worker that has gone, or of rows that are longer now."""
RATE_STEP_S = 1.0
UTILISATION_WINDOW_S = 10.0

WorkerState = Literal["busy", "idle", "coming", "gone"]


def duration(seconds: float) -> str:
    """A time for people: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(slots=True)
class WorkerTally:
    """One worker's share.

    Args:
        rows, tokens: what it answered.
        running: requests that it holds now.
        up: whether it is there; ``coming``: if not, whether its pool is about to bring it back.
        slots: requests that it works on at a time; 0 where that is not known.
        restarts: processes of it that this run has seen, but for the first.
        utilisation: how full its batch was over the last ten seconds or so, from 0 to 1.
    """

    index: int
    rows: int = 0
    tokens: int = 0
    running: int = 0
    up: bool = True
    coming: bool = False
    slots: int = 0
    restarts: int = 0
    utilisation: float = 0.0

    @property
    def state(self) -> WorkerState:
        """How it is, in a word."""
        if self.up:
            return "busy" if self.running else "idle"
        return "coming" if self.coming else "gone"

    def filled(self) -> float:
        """How full its batch is now, from 0 to 1."""
        return min(1.0, self.running / max(1, self.slots)) if self.up else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:
        done: answers and error rows so far, those of an earlier run included.
        total: of how many, where that is known.
        errors: error rows of this run; ``completion_tokens`` and ``prompt_tokens`` are this run's, too.
        deaths: of workers that held rows.
        suspects: rows of which one may have caused such a death.
        tokens_per_s: completion tokens over the last minute; ``prompt_tokens_per_s`` likewise.
        left_s: estimated time left, by how long the answers were so far; None while nothing can be said.
    """

    done: int
    total: int | None
    errors: int
    completion_tokens: int
    tokens_per_s: float
    elapsed_s: float
    left_s: float | None
    workers: tuple[WorkerTally, ...]
    deaths: int = 0
    suspects: int = 0
    prompt_tokens: int = 0
    prompt_tokens_per_s: float = 0.0

    @property
    def restarts(self) -> int:
        """Of all workers together."""
        return sum(worker.restarts for worker in self.workers)


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a run did.

    Args:
        rows: output rows given back, error rows included.
        errors: class of the error to the number of rows.
        deaths: of workers that held rows.
        complete: whether all of the input was dealt with.
        run_seed: gives the same rows again.
        kinds: the errors once more, the most frequent first, with the first rows and a sentence.
    """

    rows: int
    errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    elapsed_s: float
    workers: tuple[WorkerTally, ...]
    run_seed: int
    complete: bool
    deaths: int = 0
    kinds: tuple[ErrorKind, ...] = ()

    @property
    def error_rows(self) -> int:
        """How many rows carry an error."""
        return sum(self.errors.values())

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second over the whole run."""
        return self.completion_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0


@dataclass(slots=True)
class Tally:
    """Counts as the run goes.

    Args:
        started_s: on the clock that the other times are taken from.
        total: output rows to be expected, if known.
        before: of those, how many an earlier run has.
    """

    started_s: float
    total: int | None = None
    before: int = 0
    rows: int = 0
    answered: int = 0
    problems: Problems = field(default_factory=Problems)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    workers: dict[int, WorkerTally] = field(default_factory=dict)
    deaths: int = 0
    suspects: int = 0
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)
    _looked_at_s: float | None = None

    def worker_up(self, index: int, slots: int, *, another: bool) -> None:
        """A worker is there, or there again.

        Args:
            slots: requests that it works on at a time.
            another: it is not the process that it was.
        """
        worker = self.workers.setdefault(index, WorkerTally(index))
        worker.slots = slots
        worker.restarts += another

    def emitted(self, result: RowResult, worker: int | None) -> None:
        """A row was given back, with the answer of that worker, or an error."""
        self.rows += 1
        if result.error is not None:
            self.problems.add(result.row.index, result.error)
        if result.answer is not None and worker is not None:
            self._answered(result.answer, self.workers[worker])

    def _answered(self, answer: Answer, worker: WorkerTally) -> None:
        worker.rows += 1
        worker.tokens += answer.completion_tokens
        self.answered += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def progress(
        self,
        now_s: float,
        running: Iterable[tuple[int, int]],
        up: frozenset[int],
        coming: frozenset[int] = frozenset(),
    ) -> Progress:
        """The figures at this moment.

        Args:
            running: worker and the number of requests that it holds.
            up: the workers that are there.
            coming: those that are about to be.
        """
        for index, count in running:
            self.workers[index].running = count
        for index, worker in self.workers.items():
            worker.up, worker.coming = index in up, index in coming
        self._note_utilisation(now_s)
        prompt_rate, completion_rate = self._rates(now_s)
        elapsed_s = now_s - self.started_s
        error_rows = self.problems.count
        done = self.answered + error_rows
        return Progress(
            done=self.before + done,
            total=self.total,
            errors=error_rows,
            completion_tokens=self.completion_tokens,
            tokens_per_s=completion_rate,
            elapsed_s=elapsed_s,
            left_s=self._left_s(done, completion_rate),
            workers=tuple(self._copies()),
            deaths=self.deaths,
            suspects=self.suspects,
            prompt_tokens=self.prompt_tokens,
            prompt_tokens_per_s=prompt_rate,
        )

    def _note_utilisation(self, now_s: float) -> None:
        since_s, self._looked_at_s = self._looked_at_s, now_s
        weight = 1.0 if since_s is None else -math.expm1((since_s - now_s) / UTILISATION_WINDOW_S)
        for worker in self.workers.values():
            worker.utilisation += weight * (worker.filled() - worker.utilisation)

    def _rates(self, now_s: float) -> tuple[float, float]:
        """Prompt and completion tokens a second."""
        marks = self._marks
        if not marks:
            marks.append((self.started_s, 0, 0))
        if now_s - marks[-1][0] >= RATE_STEP_S:
            marks.append((now_s, self.prompt_tokens, self.completion_tokens))
        while len(marks) > 1 and marks[1][0] <= now_s - RATE_WINDOW_S:
            marks.popleft()
        since_s, prompt, completion = marks[0]
        taken_s = now_s - since_s
        if taken_s <= 0:
            return 0.0, 0.0
        return (self.prompt_tokens - prompt) / taken_s, (self.completion_tokens - completion) / taken_s

    def _left_s(self, done: int, tokens_per_s: float) -> float | None:
        """What is missing, each row as long as those so far, at the present rate."""
        if self.total is None or not self.answered or not tokens_per_s:
            return None
        return max(0, self.total - self.before - done) * self.completion_tokens / done / tokens_per_s

    def _copies(self) -> Iterable[WorkerTally]:
        return (replace(worker) for _, worker in sorted(self.workers.items()))

    def summary(self, now_s: float, run_seed: int, *, complete: bool) -> BatchSummary:
        """The figures at the end."""
        kinds = tuple(self.problems)
        return BatchSummary(
            rows=self.rows,
            errors={kind.code: kind.rows.count for kind in kinds},
            kinds=kinds,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            elapsed_s=now_s - self.started_s,
            workers=tuple(self._copies()),
            run_seed=run_seed,
            complete=complete,
            deaths=self.deaths,
        )
