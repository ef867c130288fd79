"""The figures of a run: what the progress line shows and the summary says. Pure; time is an argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from samplerpool.data.answers import Answer, RowResult


@dataclass(slots=True)
class WorkerTally:
    """One worker's share. ``rows`` and ``tokens`` count what it answered, ``running`` what it holds now."""

    index: int
    rows: int = 0
    tokens: int = 0
    running: int = 0
    up: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Args:
        done: answers and error rows so far, those of an earlier run included.
        total: of how many, where that is known.
        deaths: of workers that held rows.
        suspects: rows of which one may have caused such a death.
        tokens_per_s: completion tokens over the whole time so far.
        left_s: estimated time left; None while nothing can be said.
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


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a run did.

    Args:
        rows: output rows given back, error rows included.
        errors: class of the error to the number of rows.
        deaths: of workers that held rows.
        complete: whether all of the input was dealt with.
        run_seed: gives the same rows again.
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
    errors: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    workers: dict[int, WorkerTally] = field(default_factory=dict)
    deaths: int = 0
    suspects: int = 0

    def answer(self, worker: int, answer: Answer) -> None:
        """A worker answered."""
        tally = self.workers[worker]
        tally.rows += 1
        tally.tokens += answer.completion_tokens
        self.answered += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens

    def emitted(self, result: RowResult) -> None:
        """A row was given back."""
        self.rows += 1
        if result.error is not None:
            self.errors[type(result.error).__name__] += 1

    def progress(self, now_s: float, running: Iterable[tuple[int, int]], up: frozenset[int]) -> Progress:
        """The figures at this moment.

        Args:
            running: worker and the number of requests that it holds.
            up: the workers that are there.
        """
        for index, count in running:
            self.workers[index].running = count
        for index, worker in self.workers.items():
            worker.up = index in up
        elapsed_s = now_s - self.started_s
        error_rows = self.errors.total()
        done = self.answered + error_rows
        return Progress(
            done=self.before + done,
            total=self.total,
            errors=error_rows,
            completion_tokens=self.completion_tokens,
            tokens_per_s=self.completion_tokens / elapsed_s if elapsed_s > 0 else 0.0,
            elapsed_s=elapsed_s,
            left_s=self._left_s(done, elapsed_s),
            workers=tuple(self._copies()),
            deaths=self.deaths,
            suspects=self.suspects,
        )

    def _left_s(self, done: int, elapsed_s: float) -> float | None:
        if self.total is None or not self.answered:
            return None
        return max(0, self.total - self.before - done) * elapsed_s / done

    def _copies(self) -> Iterable[WorkerTally]:
        for _, w in sorted(self.workers.items()):
            yield WorkerTally(w.index, w.rows, w.tokens, w.running, w.up)

    def summary(self, now_s: float, run_seed: int, *, complete: bool) -> BatchSummary:
        """The figures at the end."""
        return BatchSummary(
            rows=self.rows,
            errors=dict(self.errors),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            elapsed_s=now_s - self.started_s,
            workers=tuple(self._copies()),
            run_seed=run_seed,
            complete=complete,
            deaths=self.deaths,
        )
