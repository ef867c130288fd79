"""A batch run on simulated time: rows are read as there is room for them, and what happens comes in its order."""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from samplerpool.batch.events import Action, Finish, InputEnded, Job, RowsRead, WorkerUp
from samplerpool.batch.state import BatchState
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row

READ_AT_ONCE = 5


def rows(*indexes: int) -> list[Row]:
    """Rows with these numbers."""
    return [Row(index, {}, [{"role": "user", "content": []}]) for index in indexes]


class SimulatedRun(ABC):
    """Drives a ``BatchState`` to its end; what workers do is a subclass's.

    Args:
        seed: of everything that is drawn.
        count: rows of the input.
        samples: as for ``BatchState``.
    """

    def __init__(self, seed: int, *, count: int, workers: int, samples: int = 1) -> None:
        self.random = random.Random(seed)
        self.state = BatchState(seed, samples)
        self.count, self.read = count, 0
        self.max_batch = {worker: self.random.randint(1, 6) for worker in range(workers)}
        self.holds: dict[int, list[Job]] = {worker: [] for worker in range(workers)}
        self.clock = 0.0
        self.queue: list[tuple[float, int, tuple[Any, ...]]] = []
        self.order = 0
        self.emitted: list[RowResult] = []
        self.finish: Finish | None = None

    def later(self, delay: float, *what: Any) -> None:
        """Have something happen after a while."""
        self.order += 1
        heapq.heappush(self.queue, (self.clock + delay, self.order, what))

    def run(self) -> Self:
        """To the end, which must come."""
        self.act(self.state.handle(*(WorkerUp(w, batch) for w, batch in self.max_batch.items())))
        while self.finish is None:
            while (room := min(self.state.room, READ_AT_ONCE)) and self.finish is None:
                new = rows(*range(self.read, min(self.read + room, self.count)))
                self.read += len(new)
                self.act(self.state.handle(RowsRead(new), *([InputEnded()] if len(new) < room else [])))
            if self.finish is None:
                assert self.queue, "deadlock: nothing runs and nothing is finished"
                self.clock, _, (kind, *what) = heapq.heappop(self.queue)
                getattr(self, kind)(*what)
        return self

    @abstractmethod
    def act(self, actions: Sequence[Action]) -> None:
        """Carry out what the state says."""
