"""Which worker an answer is sent to next, and what is said of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.interruptions import going_on, waiting
from samplerpool.client.routing import Affinity, WorkerView, choose
from samplerpool.errors import UsageError
from samplerpool.wire.messages import ChatPrompt


class Search:
    """The search for the next worker of one answer.

    Args:
        answer: that is to begin, or go on.
        only: the number of the only worker that may have it; None for any.
        affinity: where earlier turns of conversations went.
    """

    def __init__(self, answer: ContinuedAnswer, only: int | None, affinity: Affinity) -> None:
        self._answer = answer
        self._only = only
        self._affinity = affinity
        self._messages = answer.prompt.messages if isinstance(answer.prompt, ChatPrompt) else ()
        self._preferred = affinity.preferred(self._messages) if answer.home is None else answer.home
        self._chosen: WorkerView | None = None

    def decided(self, views: Sequence[WorkerView]) -> bool:
        """Whether a worker can have it as things are, or none ever will."""
        meant = self._meant(views)
        candidates = [view for view in meant if not self._answer.avoids(view)]
        index = choose(candidates, preferred=self._preferred)
        self._chosen = next((view for view in candidates if view.index == index), None)
        return self._chosen is not None or not self._answer.hopeful(meant)

    def waiting(self, views: Sequence[WorkerView]) -> str:
        """What it waits for."""
        return waiting(self._answer.setback, self._answer.worker, self._meant(views))

    def concluded(self, views: Sequence[WorkerView]) -> WorkerView | None:
        """The worker that was found. Without any, the answer ends with the error that says why."""
        if self._chosen is None:
            reasons = [view.down_reason for view in self._meant(views) if view.down_reason]
            self._answer.nobody_left(" ".join(reasons))
        elif self._messages:
            self._affinity.remember(self._messages, self._chosen.index)
        return self._chosen

    def going_on(self) -> str:
        """Who goes on after a setback; empty if there was none."""
        if self._chosen is None or not self._answer.setback:
            return ""
        return going_on(self._answer.setback, self._answer.worker, self._chosen.index)

    def _meant(self, views: Sequence[WorkerView]) -> list[WorkerView]:
        return [view for view in views if self._only is None or view.index == self._only]


def check_worker(views: Sequence[WorkerView], worker: int | None) -> None:
    """Refuse a worker that the pool does not have.

    Raises:
        UsageError
    """
    known = [view.index for view in views]
    if worker is not None and worker not in known:
        there_are = ", ".join(map(str, known)) or "none"
        raise UsageError(f"The pool has no worker {worker!r}; it has: {there_are}.")
