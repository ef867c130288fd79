"""Whether the pool gets on: a worker is up and answers, and if it has work, its steps move. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samplerpool.client.facts import WorkerFacts
from samplerpool.config.wording import plural

STALLED_S = 30.0
"""The longest steps that there are, a long prompt on a CPU, take less."""


@dataclass(frozen=True)
class _Mark:
    """What a worker had done when it was last seen to get on."""

    incarnation: str
    steps: int
    at: float


class Progress:
    """Looks at the workers again and again."""

    def __init__(self) -> None:
        self._marks: dict[int, _Mark] = {}

    def trouble(self, workers: Sequence[WorkerFacts], now: float) -> str:
        """Why no worker gets on, a sentence; empty if one does.

        Args:
            workers: what they tell now.
            now: seconds on a monotonic clock.
        """
        troubles = [self._trouble(worker, now) for worker in workers]
        if "" in troubles:
            return ""
        if not workers:
            return "The pool has no workers."
        return f"No worker of {plural(len(workers), 'worker')} gets on: {' '.join(troubles)}"

    def _trouble(self, worker: WorkerFacts, now: float) -> str:
        name = f"worker {worker.index}"
        if not worker.up:
            self._marks.pop(worker.index, None)
            return worker.down_reason or f"{name} {'is coming' if worker.coming else 'is not up'}."
        if not worker.answered:
            return f"{name} does not answer."
        mark = self._marks.get(worker.index)
        idle = worker.running + worker.queued == 0
        if mark is None or idle or (mark.incarnation, mark.steps) != (worker.incarnation, worker.steps):
            self._marks[worker.index] = _Mark(worker.incarnation, worker.steps, now)
            return ""
        still_s = now - mark.at
        return f"{name} has work and has done nothing for {still_s:.0f} s." if still_s > STALLED_S else ""
