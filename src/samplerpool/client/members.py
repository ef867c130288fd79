"""The processes that a connection is connected to: their sockets, their ends, and who comes after them.

All of it belongs to the connection's I/O thread, but for ``views`` and what they are made of, which are replaced and
never changed. ``client.roster`` decides.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence

import zmq

from samplerpool.client import ends
from samplerpool.client.following import Source
from samplerpool.client.peer import Peer
from samplerpool.client.readiness import Readiness
from samplerpool.client.response import Call
from samplerpool.client.roster import Change, Join, Retire, Roster, Standing
from samplerpool.client.routing import WorkerView
from samplerpool.errors import AccessDenied, SamplerPoolError
from samplerpool.wire.endpoint import ConnectionFile, WorkerEntry

ErrorFor = Callable[[Call], SamplerPoolError]

_POOL = "pool"  # among what is ready: the source of news of the pool


class Members:
    """See the module's docstring.

    Args:
        roster: fresh; it hears of the pool for the first time here.
        own_numbers: process numbers of the pool mean the same here, so that the end of a process can be seen.
        on_change: called when anybody has come or gone.

    ``denied`` tells that the pool lets us in no more.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        source: Source,
        roster: Roster,
        *,
        own_numbers: bool,
        on_change: Callable[[], None],
    ) -> None:
        self._context = context
        self._source = source
        self._roster = roster
        self._own_numbers = own_numbers
        self._on_change = on_change
        self._readiness = Readiness()
        self._watched: dict[int, Peer] = {}
        self._stillborn: list[Peer] = []
        self._received_before = 0
        self.peers: Mapping[int, Peer] = {}
        self.standings: Mapping[int, Standing] = {}
        self._look_at = 0.0
        self.denied: AccessDenied | None = None
        if source.socket is not None:
            self._readiness.watch(_POOL, source.socket)
        self.look()

    # ---- from any thread ------------------------------------------------------------------------------------------

    def views(self) -> list[WorkerView]:
        """The workers as they stand now."""
        peers = self.peers
        return [_view(standing, peers.get(index)) for index, standing in self.standings.items()]

    def why_not(self, index: int) -> str:
        """Why a worker cannot be asked anything."""
        standing = self.standings.get(index)
        known = ", ".join(map(str, self.standings)) or "none"
        return standing.reason if standing else f"There is no worker {index}; there are: {known}."

    @property
    def messages_received(self) -> int:
        """ZeroMQ messages that have come from all of them."""
        return self._received_before + sum(peer.messages_received for peer in self.peers.values())

    # ---- what comes -----------------------------------------------------------------------------------------------

    def watch(self, descriptor: int) -> None:
        """Let ``wait`` end when this can be read."""
        self._readiness.watch(descriptor, descriptor)

    def wait(self, longest_s: float) -> set[object]:
        """Wait until something has come or is due, and return what."""
        return self._readiness.wait(min(longest_s, self._look_at - time.monotonic()))

    def take(self, ready: set[object]) -> None:
        """Deal with what has come."""
        for peer in [one for one in ready if isinstance(one, Peer)]:
            if peer.up:
                peer.receive()
                peer.flush()
                if peer.denied is not None:
                    self._bar(peer.denied)
        for descriptor in self._watched.keys() & ready:
            self._process_ended(self._watched[descriptor])
        if _POOL in ready and self._source.receive():
            self._update(self._source.pool)
        if time.monotonic() >= self._look_at:
            self.look()

    def look(self) -> None:
        """See what has become of the pool."""
        self._update(self._source.look())
        if self._source.socket is not None:
            self._readiness.touched(_POOL, self._source.socket)
        wait_s = self._source.urgent_s if self._roster.awaiting else self._source.interval_s
        self._look_at = time.monotonic() + wait_s

    def _update(self, pool: ConnectionFile | None) -> None:
        if self._source.denied is not None:
            self._bar(self._source.denied)
        elif self.denied is None:
            self._carry_out(self._roster.update(pool, time.monotonic()))

    def _bar(self, error: AccessDenied) -> None:
        """The pool lets us in no more, which is the end of all calls."""
        if self.denied is None:
            self.denied = error
            self._carry_out(self._roster.bar(error.message), functools.partial(ends.denied, error))

    def check_liveness(self) -> None:
        """Ask for signs of life where they are due; who has given none for too long counts as gone."""
        now = time.monotonic()
        for peer in self.peers.values():
            if peer.up and not peer.check(now):
                error_for = functools.partial(ends.unresponsive, peer.index)
                self._carry_out(self._roster.silent(peer.index, peer.incarnation, now), error_for)
            if peer.denied is not None:
                self._bar(peer.denied)

    def _process_ended(self, peer: Peer) -> None:
        while peer.up and peer.receive():
            pass  # what it sent before its end counts
        changes = self._roster.ended(peer.index, peer.incarnation, time.monotonic())
        self._lose(peer, self._roster.standings()[peer.index].reason)
        self._carry_out(changes)
        self._look_at = 0.0

    # ---- who comes and goes ---------------------------------------------------------------------------------------

    def _carry_out(self, changes: Sequence[Change], error_for: ErrorFor | None = None) -> None:
        retired: list[tuple[Peer, Retire]] = []
        peers = dict(self.peers)
        for change in changes:
            if isinstance(change, Join):
                peers[change.entry.index] = self._join(change.entry)
            elif peer := peers.pop(change.index, None):
                retired.append((peer, change))
        standings = self._roster.standings()
        for peer, _ in retired:
            standing = standings.get(peer.index)
            self._lose(peer, standing.reason if standing else f"Worker {peer.index} has left the pool.")
        if peers != self.peers or standings != self.standings:
            self.peers, self.standings = peers, standings
            self._on_change()
        while self._stillborn:
            self._process_ended(self._stillborn.pop())
        for peer, change in retired:  # last, so that who hears of it sees the others as they are now
            self._received_before += peer.messages_received
            peer.fail(error_for or functools.partial(ends.died, self._roster.pool, peer.index, change.ending))

    def _join(self, entry: WorkerEntry) -> Peer:
        peer = Peer(self._context, entry, self._source.pool, self._readiness)
        if self._own_numbers and not entry.node and (descriptor := self._pidfd(entry, peer)) is not None:
            self._watched[descriptor] = peer
            self._readiness.watch(descriptor, descriptor)
        return peer

    def _pidfd(self, entry: WorkerEntry, peer: Peer) -> int | None:
        try:
            descriptor = os.pidfd_open(entry.process.pid)
        except ProcessLookupError:
            descriptor = None
        except (OSError, AttributeError):  # an older system: the pool will say
            return None
        if not entry.process.alive():  # its number may be another's by now
            self._stillborn.append(peer)
        return descriptor

    def _lose(self, peer: Peer, reason: str) -> None:
        self._unwatch(peer)
        peer.lose(reason)

    def _unwatch(self, peer: Peer) -> None:
        for descriptor in [d for d, watched in self._watched.items() if watched is peer]:
            del self._watched[descriptor]
            self._readiness.unwatch(descriptor)
            os.close(descriptor)

    def close(self, error_for: ErrorFor) -> None:
        """Close everything."""
        for peer in self.peers.values():
            self._unwatch(peer)
            peer.close(error_for)
        self._source.close()
        self._readiness.close()
        self._on_change()


def _view(standing: Standing, peer: Peer | None) -> WorkerView:
    calls, tokens = peer.outstanding() if peer else (0, 0)
    up = standing.open and peer is not None and peer.up and peer.incarnation == standing.incarnation
    return WorkerView(
        index=standing.index,
        up=up,
        outstanding=calls,
        outstanding_tokens=tokens,
        down_reason="" if up else standing.reason,
        coming=not up and standing.coming,
        incarnation=standing.incarnation,
    )
