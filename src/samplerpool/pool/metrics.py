"""The figures of a pool as Prometheus wants them: counts never go backwards, whatever happens to a worker. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from samplerpool.wire.figures import BOUNDS, FIRST_TOKEN_S, TOKEN_S, Buckets, FigureReport

PREFIX = "samplerpool_"

COUNTERS: Mapping[str, tuple[str, str]] = {
    "prompt_tokens": ("prompt_tokens", "Tokens of the prompts that were taken."),
    "completion_tokens": ("completion_tokens", "Tokens that were generated."),
    "prefix_hits": ("prefix_cache_hits", "Requests that found a part of their prompt computed already."),
    "prefix_tokens": ("prefix_cache_tokens", "Prompt tokens that were not computed again."),
    "preemptions": ("preemptions", "Times that a running request was put back to make room."),
    "out_of_memory": ("out_of_memory", "Steps that ran out of the device's memory."),
}
GAUGES: Mapping[str, tuple[str, str]] = {
    "running": ("requests_running", "Requests that have a place in the batch."),
    "queued": ("requests_queued", "Requests that wait for a place."),
    "clients": ("clients", "Connections that were heard of lately."),
    "cache_tokens": ("kv_cache_tokens", "Tokens whose keys and values the cache can hold."),
    "cache_tokens_used": ("kv_cache_used_tokens", "Tokens whose keys and values it holds."),
    "memory_bytes": ("worker_memory_bytes", "Resident memory of the process."),
}
HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    FIRST_TOKEN_S: ("time_to_first_token_seconds", "From a request's arrival to its first token."),
    TOKEN_S: ("time_per_output_token_seconds", "Between the tokens of an answer, beginning with its second."),
}
"""Name in a worker's report to name (behind the prefix) and help."""


@dataclass(frozen=True)
class WorkerState:
    """What the supervisor itself knows of a worker."""

    index: int
    state: str
    restarts: int
    hangs: int = 0


@dataclass(frozen=True)
class Metric:
    """One metric with its samples: the values of its labels to a number, or to buckets with these bounds."""

    kind: str
    name: str
    help: str
    samples: Mapping[tuple[str, ...], float | Buckets]
    labels: tuple[str, ...] = ("worker",)
    bounds: tuple[float, ...] = ()


class MetricsBook:
    """Adds up what the processes of each worker report, one after the other.

    ``metrics`` may be called from another thread: what it reads is only ever replaced.
    """

    def __init__(self) -> None:
        self._base: dict[int, FigureReport] = {}
        self._latest: dict[int, tuple[str, FigureReport]] = {}
        self._sums: dict[int, FigureReport] = {}
        self._workers: dict[int, WorkerState] = {}
        self._left: dict[int, WorkerState] = {}
        """What workers had counted that were removed; another may come in their place."""

    def workers(self, workers: tuple[WorkerState, ...]) -> None:
        """Take the workers' present states."""
        present = {worker.index: worker for worker in workers}
        for index, gone in self._workers.items():
            if index not in present:
                self._left[index] = gone
        self._workers = {index: _further(worker, self._left.get(index)) for index, worker in present.items()}

    def take(self, index: int, incarnation: str, report: Mapping[str, Any]) -> bool:
        """Take a worker's report; whether it was one. A new incarnation counts from where the one before ended."""
        try:
            figures = FigureReport.from_plain(report)
        except ValueError:
            return False
        before = self._latest.get(index)
        if before is not None and before[0] != incarnation:
            self._base[index] = self._sums[index]
        self._latest[index] = (incarnation, figures)
        self._sums = {**self._sums, index: figures.behind(self._base.get(index, FigureReport()))}
        return True

    def metrics(self) -> Iterator[Metric]:
        """All that is known now. Gauges only of workers that are ready."""
        sums, workers = dict(sorted(self._sums.items())), self._workers
        ready = {index for index, worker in workers.items() if worker.state == "ready"}
        restarts = {index: worker.restarts for index, worker in workers.items()}
        yield _metric("counter", "worker_restarts", "Times that the process was started again.", restarts)
        hangs = {index: worker.hangs for index, worker in workers.items()}
        yield _metric("counter", "worker_hangs", "Times that the process was killed because it hung.", hangs)
        up = {index: float(index in ready) for index in workers}
        yield _metric("gauge", "worker_ready", "1 while the worker takes requests.", up)
        outcomes: dict[tuple[str, ...], float | Buckets]
        outcomes = {(str(i), outcome): count for i, r in sums.items() for outcome, count in r.outcomes.items()}
        text = "Ended requests, by how: a finish reason or an error's class."
        yield Metric("counter", f"{PREFIX}requests", text, outcomes, ("worker", "outcome"))
        for key, (name, text) in COUNTERS.items():
            yield _metric("counter", name, text, {i: r.counters[key] for i, r in sums.items() if key in r.counters})
        for key, (name, text) in GAUGES.items():
            known = {i: r.gauges[key] for i, r in sums.items() if i in ready and key in r.gauges}
            yield _metric("gauge", name, text, known)
        for key, (name, text) in HISTOGRAMS.items():
            buckets = {i: r.histograms[key] for i, r in sums.items() if key in r.histograms}
            yield _metric("histogram", name, text, buckets, BOUNDS[key])


def _further(worker: WorkerState, before: WorkerState | None) -> WorkerState:
    if before is None:
        return worker
    return replace(worker, restarts=worker.restarts + before.restarts, hangs=worker.hangs + before.hangs)


def _metric(
    kind: str, name: str, text: str, values: Mapping[int, float | Buckets], bounds: tuple[float, ...] = ()
) -> Metric:
    return Metric(kind, PREFIX + name, text, {(str(i),): value for i, value in values.items()}, bounds=bounds)
