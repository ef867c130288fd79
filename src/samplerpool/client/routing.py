"""Which worker gets the next call. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as this client sees it.

    Args:
        up: whether calls can be sent to it.
        outstanding: this client's unfinished calls there.
        outstanding_tokens: how many tokens those may still ask for.
        down_reason: why it is not up.
    """

    index: int
    up: bool
    outstanding: int
    outstanding_tokens: int
    down_reason: str = ""


def choose(workers: Sequence[WorkerView], *, preferred: int | None = None) -> int | None:
    """The worker with the fewest outstanding tokens, or None if none is up.

    Args:
        preferred: taken as long as it is up: a conversation stays where its earlier turns are cached.
    """
    up = [worker for worker in workers if worker.up]
    if any(worker.index == preferred for worker in up):
        return preferred
    if not up:
        return None
    return min(up, key=lambda worker: (worker.outstanding_tokens, worker.outstanding, worker.index)).index
