"""Which processes of a pool a client should be connected to, from what the pool says of itself. Pure.

A worker's place in the pool keeps its number over all of its processes; each process has its own incarnation. The
pool's word comes from its connection file or its supervisor, the end of a process also from the system. Then the pool's
word on how it ended is awaited for a moment, because whoever had requests there wants to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from samplerpool.wire.endpoint import ConnectionFile, Ending, WorkerEntry

VERDICT_TIMEOUT_S = 2.0
"""How long the pool may take to say how a process ended."""

SILENT_FOR_S = 30.0
"""How long a process that did not answer, and that its pool thinks well of, is left alone before it is tried again."""

_GONE = ("restarting", "died", "failed")
_COMING = ("starting", "loading", "restarting", "stopping", "ready")


@dataclass(frozen=True, slots=True)
class Join:
    """Connect to this process."""

    entry: WorkerEntry


@dataclass(frozen=True, slots=True)
class Retire:
    """A process has ended: so do the calls on it.

    Args:
        ending: the pool's word on it, where there is one.
    """

    index: int
    incarnation: str
    ending: Ending | None


Change = Join | Retire


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker stands.

    Args:
        incarnation: of the process that is connected; empty if none is.
        open: it may be sent calls.
        coming: it may not, but its pool is about to bring it back.
        reason: why it is not open, a sentence.
    """

    index: int
    incarnation: str
    open: bool
    coming: bool
    reason: str = ""


@dataclass
class _Seat:
    """One worker's place.

    Args:
        entry: the pool's latest word.
        joined: the incarnation that is connected, or empty.
        ended: the one that was connected before.
        lost_at: since when ``joined`` is known to be gone.
        silent_until: it did not answer, and is left alone until then.
        reason: why the last one went.
    """

    entry: WorkerEntry
    joined: str = ""
    ended: str = ""
    lost_at: float | None = None
    silent_until: float = 0.0
    reason: str = ""


@dataclass
class Roster:
    """See the module's docstring. Times are seconds on one monotonic clock.

    Args:
        pool: its name, for hints in sentences.
        only: look at this worker alone.
        followed: there is somebody to tell what comes of the pool; without, a process that is gone stays gone.
    """

    pool: str = ""
    only: int | None = None
    followed: bool = True
    _seats: dict[int, _Seat] = field(default_factory=dict)
    _running: bool = False

    @property
    def awaiting(self) -> bool:
        """Whether the pool's word on a process that ended is still to come."""
        return any(seat.lost_at is not None for seat in self._seats.values())

    @property
    def uneasy(self) -> bool:
        """Whether any worker is not open."""
        return any(not standing.open for standing in self.standings().values())

    # ---- the pool's word ------------------------------------------------------------------------------------------

    def update(self, pool: ConnectionFile | None, now: float) -> list[Change]:
        """What to do about what the pool says now; None means that it has ended."""
        self._running = pool is not None and pool.state != "stopping"
        if pool is None:
            return [self._retire(seat, None) for seat in self._seats.values() if seat.lost_at is not None]
        entries = {entry.index: entry for entry in pool.workers if self.only in (None, entry.index)}
        endings = {(ending.index, ending.incarnation): ending for ending in pool.endings}
        changes: list[Change] = []
        for index in [index for index in self._seats if index not in entries]:
            seat = self._seats.pop(index)
            if seat.joined:
                changes.append(self._retire(seat, endings.get((index, seat.joined))))
        for index, entry in entries.items():
            seat = self._seats.setdefault(index, _Seat(entry))
            seat.entry = entry
            changes += self._judge(seat, endings, now)
        return changes

    def _judge(self, seat: _Seat, endings: Mapping[tuple[int, str], Ending], now: float) -> list[Change]:
        entry, changes = seat.entry, list[Change]()
        if seat.joined:
            ending = endings.get((entry.index, seat.joined))
            waited = seat.lost_at is not None and now - seat.lost_at >= VERDICT_TIMEOUT_S
            if ending or waited or entry.incarnation != seat.joined or entry.state in _GONE:
                changes.append(self._retire(seat, ending))
        welcome = entry.incarnation != seat.ended and now >= seat.silent_until
        if entry.state == "ready" and not seat.joined and welcome:
            seat.joined = entry.incarnation
            changes.append(Join(entry))
        return changes

    def _retire(self, seat: _Seat, ending: Ending | None) -> Retire:
        retire = Retire(seat.entry.index, seat.joined, ending)
        if ending.requested if ending else seat.entry.state == "stopping":  # of a pool's end there may be no word
            seat.reason = f"Worker {seat.entry.index} was stopped."
        else:
            how = f" (it {ending.reason})" if ending else ""
            seat.reason = f"Worker {seat.entry.index} is gone{how}{self._hint(seat)}."
        seat.joined, seat.ended, seat.lost_at = "", seat.joined, None
        return retire

    def _hint(self, seat: _Seat) -> str:
        return f"; samplerpool logs {self.pool} --worker {seat.entry.index} says why" if self.pool else ""

    # ---- what became of the processes -----------------------------------------------------------------------------

    def ended(self, index: int, incarnation: str, now: float) -> list[Change]:
        """A process has ended, says the system."""
        seat = self._seats.get(index)
        if seat is None or seat.joined != incarnation or seat.lost_at is not None:
            return []
        if not self.followed:
            return [self._retire(seat, None)]
        seat.lost_at = now
        seat.reason = f"Worker {index} is gone{self._hint(seat)}."
        return []

    def silent(self, index: int, incarnation: str, now: float) -> list[Change]:
        """A process has not answered for so long that it counts as gone; it may be tried again later."""
        seat = self._seats.get(index)
        if seat is None or seat.joined != incarnation:
            return []
        retire = self._retire(seat, None)
        seat.ended, seat.silent_until = "", now + SILENT_FOR_S
        seat.reason = f"Worker {index} has not answered for a long time."
        return [retire]

    def bar(self, reason: str) -> list[Change]:
        """The pool lets us in no more.

        Args:
            reason: a sentence.
        """
        self._running = False
        changes: list[Change] = [self._retire(seat, None) for seat in self._seats.values() if seat.joined]
        for seat in self._seats.values():
            seat.reason = reason
        return changes

    # ---- how they stand -------------------------------------------------------------------------------------------

    def standings(self) -> dict[int, Standing]:
        """How each worker stands, by number."""
        return {index: self._standing(self._seats[index]) for index in sorted(self._seats)}

    def _standing(self, seat: _Seat) -> Standing:
        entry = seat.entry
        is_open = bool(seat.joined) and seat.lost_at is None and entry.state != "stopping"
        coming = not is_open and self.followed and self._running and entry.state in _COMING
        return Standing(entry.index, seat.joined, is_open, coming, "" if is_open else self._reason(seat))

    def _reason(self, seat: _Seat) -> str:
        entry = seat.entry
        if entry.state == "failed":
            return f"Worker {entry.index} has failed: {entry.detail.partition(chr(10))[0]}"
        if entry.state == "stopping" and seat.joined:
            return f"Worker {entry.index} is being stopped."
        return seat.reason or f"Worker {entry.index} is {entry.state}."
