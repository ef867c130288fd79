"""What to say while an answer waits for a worker, or goes on elsewhere. Pure.

Sentences without a capital letter and a full stop, to stand on a line of their own beside the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.client.routing import WorkerView
from samplerpool.errors import EngineBroken, QueueFull, SamplerPoolError, WorkerDied, WorkerDraining, WrongIncarnation


def setback(worker: int, error: SamplerPoolError) -> str:
    """Why a worker does not go on with an answer."""
    match error:
        case WorkerDied():
            how = error.data.get("reason")
            what = "was stopped" if error.data.get("requested") is True else "died"
            return f"worker {worker} {what}" + (f" (it {how})" if how else "")
        case EngineBroken():
            return f"the engine of worker {worker} broke"
        case WorkerDraining() | WrongIncarnation():
            return f"worker {worker} is being stopped"
        case QueueFull():
            return f"worker {worker} has no room"
        case _:
            return f"worker {worker} has lost the request"


def waiting(before: str, worker: int, workers: Sequence[WorkerView]) -> str:
    """What an answer waits for.

    Args:
        before: its latest setback, or nothing if it has not begun.
        worker: that one's number.
        workers: that may come; those that are up have refused it.
    """
    coming = [view for view in workers if view.coming] or list(workers)
    reason = before or " ".join(view.down_reason for view in coming if view.down_reason).rstrip(".")
    indexes = [view.index for view in coming]
    if before and indexes == [worker]:
        return f"{reason}; waiting for it to come back"
    names = ", ".join(map(str, indexes))
    return f"{reason or 'no worker is there'}; waiting for worker{'s' if len(indexes) > 1 else ''} {names}"


def going_on(before: str, worker: int, successor: int) -> str:
    """Who goes on with an answer after a setback."""
    return f"{before}; {'it' if worker == successor else f'worker {successor}'} goes on"
