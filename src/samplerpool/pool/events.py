"""What happens to a pool (events), and what is to be done about it (actions): the policy's two languages."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from samplerpool.errors import SamplerPoolError

WorkerState = Literal["starting", "loading", "ready", "stopping", "restarting", "died", "failed"]
PoolState = Literal["starting", "running", "stopping"]


# ---- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerSpawned:
    """A worker's process exists."""

    index: int
    pid: int


@dataclass(frozen=True)
class WorkerLoading:
    """A worker says what it is busy with before it is ready."""

    index: int
    detail: str


@dataclass(frozen=True)
class WorkerReady:
    """A worker takes requests; ``description`` is what it says of itself."""

    index: int
    description: Mapping[str, Any]


@dataclass(frozen=True)
class WorkerProgress:
    """A ready worker says how far it is, about once a second.

    Args:
        steps: of its engine since the start, those that gave no token included.
        pending: it has work to do.
    """

    index: int
    steps: int
    pending: bool


@dataclass(frozen=True)
class WorkerFailed:
    """A worker says why it is about to end, or could not be spawned at all."""

    index: int
    error: SamplerPoolError


@dataclass(frozen=True)
class WorkerExited:
    """A worker's process is gone; a negative return code is the signal that ended it."""

    index: int
    returncode: int
    log_tail: str = ""


@dataclass(frozen=True)
class RestartRequested:
    """Replace this worker, or all, one after the other (None); each may take ``timeout_s`` to finish what it runs."""

    index: int | None
    timeout_s: float


@dataclass(frozen=True)
class ScaleRequested:
    """Have so many workers; those that go may take ``timeout_s`` to finish what they run."""

    workers: int
    timeout_s: float


@dataclass(frozen=True)
class StopRequested:
    """End the pool: workers may take ``timeout_s`` to finish what they run."""

    timeout_s: float
    reason: str


@dataclass(frozen=True)
class HurryRequested:
    """End a pool that is stopping without waiting for what runs; asked once more, kill it."""

    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    WorkerSpawned
    | WorkerLoading
    | WorkerReady
    | WorkerProgress
    | WorkerFailed
    | WorkerExited
    | RestartRequested
    | ScaleRequested
    | StopRequested
    | HurryRequested
    | Tick
)


# ---- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spawn:
    """Start a new process for the worker; answered by ``WorkerSpawned`` or ``WorkerFailed``."""

    index: int


@dataclass(frozen=True)
class Terminate:
    """Ask the worker to end: the first time after what it runs, the second time without it."""

    index: int


@dataclass(frozen=True)
class DumpStacks:
    """Ask the worker to write its threads' stacks into its log."""

    index: int


@dataclass(frozen=True)
class Kill:
    """End the worker and its children at once."""

    index: int


@dataclass(frozen=True)
class Ended:
    """A worker's process has ended: clients want to know how. ``reason`` goes on after "it"."""

    index: int
    requested: bool
    reason: str


@dataclass(frozen=True)
class Publish:
    """What is known about the pool has changed: write the connection file."""


@dataclass(frozen=True)
class Announce:
    """Tell whoever looks on. ``trouble``: it is a fault."""

    text: str
    trouble: bool = False


@dataclass(frozen=True)
class Open:
    """All workers are ready: whoever waits for the pool may use it."""


@dataclass(frozen=True)
class End:
    """Nothing is left to do. ``error`` says why, unless the pool was asked to end."""

    exit_code: int
    error: SamplerPoolError | None = None


Action = Spawn | Terminate | DumpStacks | Kill | Ended | Publish | Announce | Open | End


def describe_exit(returncode: int) -> str:
    """How a process ended, to go on after "it"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
