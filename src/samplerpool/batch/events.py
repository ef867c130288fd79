"""What goes into and comes out of the batch state machine: the records, the events and the actions.

Those of which there is one a row are not frozen, because that takes two to three times as long to make one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.rows import Row
from samplerpool.errors import SamplerPoolError


class Slot:
    """What the samples of a row have in common: they stand and fall together where one kills its worker."""

    __slots__ = ("row",)

    def __init__(self, row: Row) -> None:
        self.row = row


@dataclass(slots=True, eq=False)
class Job:
    """One request to be made.

    Args:
        slot: of its row.
        sample: which of the row's answers.
        attempts: how often it was handed out.
        copies: how many workers hold it; more than one at the end of a run, and the first answer counts.
        done: it has its answer or its error.
        fell: a worker died that held it beside another one.
        sent_at_s: when it was handed out first.
    """

    slot: Slot
    sample: int
    seed: int
    attempts: int = 0
    copies: int = 0
    done: bool = False
    fell: bool = False
    sent_at_s: float = 0.0

    @property
    def row(self) -> Row:
        """What is to be answered."""
        return self.slot.row


# ---- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowsRead:
    """The next rows of the input, in order."""

    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class InputEnded:
    """There are no more."""


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A worker is there, or there again. ``max_batch``: requests that it works on at a time."""

    worker: int
    max_batch: int


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """A worker is not there. Each job that it held fails on its own (``RequestFailed``).

    Args:
        coming: its pool is about to bring it back.
    """

    worker: int
    coming: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRested:
    """A worker that was full, or whose engine keeps raising, may be asked again."""

    worker: int


@dataclass(slots=True)
class Answered:
    """A worker answered a job."""

    worker: int
    job: Job
    answer: Answer


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A job ended with an error; whose fault it is shows in the error."""

    worker: int
    job: Job
    error: SamplerPoolError


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Hand nothing more out and let what runs finish, or (``at_once``) do not even wait for that."""

    at_once: bool = False


Event = RowsRead | InputEnded | WorkerUp | WorkerDown | WorkerRested | Answered | RequestFailed | StopRequested

# ---- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assign:
    """Send these jobs to a worker, in one message."""

    worker: int
    jobs: list[Job]


@dataclass(slots=True)
class Emit:
    """Give this result back: it is final. ``worker``: which answered."""

    result: RowResult
    worker: int | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop a job at a worker: its answer has come from another one."""

    worker: int
    job: Job


@dataclass(frozen=True, slots=True)
class Rest:
    """Send ``WorkerRested`` in a moment: the worker's queue is full, or its engine keeps raising."""

    worker: int


Outcome = Literal["complete", "stopped", "no_workers", "failed"]


@dataclass(frozen=True, slots=True)
class Finish:
    """The run has ended; nothing follows. ``error``: with ``failed``, what every row would fail with."""

    outcome: Outcome
    error: SamplerPoolError | None = None


Action = Assign | Emit | Drop | Rest | Finish
