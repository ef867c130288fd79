"""The jobs that no worker has yet, in the order in which they are to be handed out. Pure."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from samplerpool.batch.events import Job


class Waiting:
    """See the module's docstring.

    First those that were handed out before and came back: they are nearest to what is to be given back next. Then those
    whose answers' lengths are known, the longest first, so that none of them is what a run waits for in the end. Then
    the others, as they stand in the input.
    """

    def __init__(self) -> None:
        self._returned: deque[Job] = deque()
        self._known: list[tuple[int, int, int, Job]] = []
        self._others: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._returned) + len(self._known) + len(self._others)

    @property
    def lengths_known(self) -> bool:
        """Whether it is worth while to look further ahead."""
        return bool(self._known)

    def add(self, jobs: Iterable[Job]) -> None:
        """Jobs of rows that were just read."""
        for job in jobs:
            tokens = job.row.expected_tokens
            if tokens is None:
                self._others.append(job)
            else:
                heapq.heappush(self._known, (-tokens, job.row.index, job.sample, job))

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Jobs that were handed out before."""
        self._returned.extendleft(reversed(list(jobs)))

    def take(self, count: int) -> list[Job]:
        """The next ones; there are as many."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Job:
        if self._returned:
            return self._returned.popleft()
        if self._known:
            return heapq.heappop(self._known)[3]
        return self._others.popleft()

    def clear(self) -> None:
        """None is to be handed out any more."""
        self._returned.clear()
        self._known.clear()
        self._others.clear()
