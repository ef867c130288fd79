"""The worker's socket: a ROUTER on an asyncio loop between clients and a ``BaseSampler``.

The ROUTER is sent to with DONTWAIT only: what a full client cannot take waits in its outbox and is tried again, so
that one slow client never slows another or the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import zmq

from samplerpool.config.arguments import ClientLimits
from samplerpool.engine.base import BATCH, INTERACTIVE
from samplerpool.engine.loop import RequestEvent
from samplerpool.errors import ProtocolError
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.samplers.intake import Job
from samplerpool.wire.codec import MAX_MESSAGE_BYTES, encode, requests_in
from samplerpool.wire.figures import FigureReport
from samplerpool.wire.keys import Lock
from samplerpool.wire.messages import Count, Description, Failed, Malformed, Render, Reply, Request
from samplerpool.wire.sockets import Router
from samplerpool.worker.clients import Identity
from samplerpool.worker.figures import Ended, Figures
from samplerpool.worker.outbox import Outbox
from samplerpool.worker.session import AbortRun, Action, Report, Send, Session, Submit

log = logging.getLogger(__name__)

SEND_HIGH_WATER = 64
RECEIVE_HIGH_WATER = 16
"""Messages of one client that ZeroMQ reads ahead; each may have 64 MiB."""
_SOCKET_OPTIONS = {
    zmq.ROUTER_MANDATORY: 1,
    zmq.SNDHWM: SEND_HIGH_WATER,
    zmq.RCVHWM: RECEIVE_HIGH_WATER,
    zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
}
TICK_S = 0.2
COMPLAINT_INTERVAL_S = 60.0
LAST_WORDS_TICKS = 10
"""How long a drained worker waits for clients that do not take their last replies."""
MAX_ENTRIES_AT_ONCE = 256
"""Of what has come, before it is the engine's and the replies' turn."""
BYTES_PER_ENTRY = 4096
"""Reading so many bytes counts as one entry more."""
MAX_BUSY_TICKS = 25
"""So long a flood of messages puts off the judgement of leases; by then each client had its turn many times."""


class WorkerServer:
    """Serves one sampler on one endpoint, from its construction to ``close``, on the running loop.

    Args:
        sampler: answers the requests.
        endpoint: where the ROUTER binds.
        incarnation: this process's.
        describe: more facts for ``Description``, beside the sampler's own.
        limits: what clients may ask.
        on_ended: called with every request that was taken and has ended.
        worker: its name, with which requests are told apart in logs.
        lock: who may come in, where others can reach the endpoint.

    Raises:
        StartFailed: the endpoint cannot be listened on.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        endpoint: str,
        incarnation: str,
        describe: Callable[[], Mapping[str, Any]] = dict,
        limits: ClientLimits | None = None,
        on_ended: Callable[[Ended], None] = lambda ended: None,
        worker: str = "",
        lock: Lock | None = None,
    ) -> None:
        self._sampler = sampler
        self._describe = describe
        self._on_ended = on_ended
        self._figures = Figures()
        self._session = Session(incarnation, limits, worker)
        self._outboxes: dict[Identity, Outbox] = {}
        self._produced: list[RequestEvent] = []
        self._produced_lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._wake_scheduled = False
        self._present: tuple[Identity, str, Iterator[Request | Malformed]] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._idle_ticks = self._busy_ticks = 0
        self._complained_at = -COMPLAINT_INTERVAL_S
        self._complained_of = self._dropped = 0
        self._idle = asyncio.Event()
        self._router = Router(endpoint, lock, _SOCKET_OPTIONS)
        self._socket, self.endpoint = self._router.socket, self._router.endpoint
        self._loop.add_reader(self._socket.FD, self._on_readable)
        if self._router.door is not None:
            self._loop.add_reader(self._router.door.FD, self._router.answer_door)
        self._tick_handle: asyncio.Handle = self._loop.call_soon(self._on_tick)

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return self._session.live

    async def drain(self) -> None:
        """Take no new requests, and return when all have ended."""
        self._session.draining = True
        if self._session.live:
            await self._idle.wait()

    def stop(self, reason: str = "The worker is stopping.") -> None:
        """Take no new requests, and fail those that have not ended."""
        self._act(self._session.stop(reason))
        self._flush()

    def close(self) -> None:
        """Close the socket, with a short linger for what was sent last. The sampler stays open."""
        self._tick_handle.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.FD)
            if self._router.door is not None:
                self._loop.remove_reader(self._router.door.FD)
            self._router.close()

    # ---- events ---------------------------------------------------------------------------------------------------

    def on_events(self, events: Sequence[RequestEvent]) -> None:
        """Take events of the sampler, from its threads; one wake-up serves all that come before it."""
        with self._produced_lock:
            self._produced.extend(events)
            if self._wake_scheduled:
                return
            self._wake_scheduled = True
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._on_produced)

    def _on_produced(self) -> None:
        with self._produced_lock:
            events, self._produced = self._produced, []
            self._wake_scheduled = False
        for ended in self._figures.produced(events, time.monotonic()):
            self._on_ended(ended)
        self._carry_out(self._session.produced(events))
        self._on_readable()

    def _on_readable(self) -> bool:
        """Take messages, for a moment, and send replies; whether all that has come was taken."""
        if self._socket.closed:
            return True
        taken, drained = 0, False
        while taken < MAX_ENTRIES_AT_ONCE and not drained:
            count = self._take_part()
            taken += count
            drained = not count
        # Sending may consume the edge of the socket's descriptor, and the engine's events must have their turn.
        if self._flush() or not drained:
            self._loop.call_soon(self._on_readable)
        return drained

    def _take_part(self) -> int:
        """Take some entries of the present message, else of the next one; what that cost, 0 if there was nothing."""
        cost = 1
        if self._present is None:
            if not self._readable():
                return 0
            parts, key = self._router.receive()
            if self._router.name_of(key) is None:  # it was known when it connected
                self._act(self._session.denied(parts[0]))
                return cost
            if len(parts) != 2:
                self._dropped += 1
                return cost
            self._present = parts[0], key, requests_in(parts[1])
            cost += len(parts[1]) // BYTES_PER_ENTRY
        identity, key, entries = self._present
        messages = list(itertools.islice(entries, MAX_ENTRIES_AT_ONCE))
        if len(messages) < MAX_ENTRIES_AT_ONCE:
            self._present = None
        self._act(self._session.received(identity, messages, time.monotonic(), self._sampler.steps, key))
        return cost + len(messages)

    def _readable(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _on_tick(self) -> None:
        self._tick_handle = self._loop.call_later(TICK_S, self._on_tick)  # first: nothing may end the ticking
        self._router.answer_door()
        if self._router.keys_changed():
            self._act(self._session.revoke(lambda key: self._router.name_of(key) is not None))
        drained = self._on_readable()  # before leases are judged, so that a stall of our own costs nobody anything
        self._busy_ticks = 0 if drained else self._busy_ticks + 1
        if drained or self._busy_ticks > MAX_BUSY_TICKS:
            now = time.monotonic()
            self._act(self._session.tick(now))
            self._drop_dead_letters(now)
            self._complain(now)
            self._flush()
        if self._session.draining and not self._session.live:
            self._idle_ticks += 1
            if not self._outboxes or self._idle_ticks > LAST_WORDS_TICKS:
                self._idle.set()

    # ---- actions --------------------------------------------------------------------------------------------------

    def _act(self, actions: Sequence[Action]) -> None:
        """Count and carry out what the session does, but for what it makes of the sampler's events."""
        for ended in self._figures.acted(actions, time.monotonic()):
            self._on_ended(ended)
        self._carry_out(actions)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        jobs: list[Job] = []
        for action in actions:
            if type(action) is Send:
                self._outbox(action.identity).extend(action.replies)
            elif isinstance(action, Submit):
                jobs.append(self._job(action))
            elif isinstance(action, AbortRun):
                self._sampler.abort_request(action.key)
            elif isinstance(action, Report):
                description = Description(action.request_id, self.description())
                self._outbox(action.identity).extend([description])
        if jobs:
            self._sampler.submit(jobs)

    def _job(self, action: Submit) -> Job:
        key, request = action.key, action.request
        if isinstance(request, Count):
            return Job(key, request.prompt, request.params, BATCH, self.on_events, purpose="count")
        if isinstance(request, Render):
            return Job(key, request.prompt, {}, INTERACTIVE, self.on_events, purpose="render")
        return Job(key, request.prompt, request.params, request.priority, self.on_events, request.parse)

    def description(self) -> dict[str, Any]:
        """Facts and figures for ``Describe``."""
        return {
            **self._sampler.describe(),
            **self._describe(),
            "incarnation": self._session.incarnation,
            "clients": self._session.clients,
            "live": self._session.live,
            "queued_bytes": self._session.queued_bytes,
            "refused": self._session.refused,
            "malformed": self._session.malformed + self._dropped,
        }

    def figures(self) -> FigureReport:
        """Counts of requests, tokens and times since the start, and present figures."""
        return self._figures.report(self.description())

    def _outbox(self, identity: Identity) -> Outbox:
        outbox = self._outboxes.get(identity)
        if outbox is None:
            outbox = self._outboxes[identity] = Outbox()
        return outbox

    def _flush(self) -> bool:
        """Send what clients can take; whether anything went out."""
        moved = False
        now = time.monotonic()
        for identity in list(self._outboxes):
            outbox = self._outboxes[identity]
            if outbox.retry_at <= now:
                moved |= self._flush_one(identity, outbox, now)
        if self._outboxes:
            self._bound_unread()
            self._schedule_retry()
        return moved

    def _schedule_retry(self) -> None:
        retry_at = min((outbox.retry_at for outbox in self._outboxes.values()), default=None)
        if retry_at is None:
            return
        if self._retry is not None:
            if self._retry.when() <= retry_at:
                return
            self._retry.cancel()
        self._retry = self._loop.call_at(retry_at, self._on_retry)  # the loop's clock is the monotonic one

    def _on_retry(self) -> None:
        self._retry = None
        self._on_readable()

    def _flush_one(self, identity: Identity, outbox: Outbox, now: float) -> bool:
        """Send a client's replies as far as it takes them; whether it took any."""
        moved = False
        while outbox:
            count, data = outbox.message(_pack)
            try:
                self._socket.send_multipart((identity, data), zmq.DONTWAIT)
            except zmq.Again:
                outbox.hold(count, data, now)
                return moved
            except zmq.ZMQError as error:
                if error.errno != errno.EHOSTUNREACH:
                    raise
                self._drop(identity)
                return False
            outbox.sent(count)
            moved = True
        del self._outboxes[identity]
        return moved

    def _drop(self, identity: Identity) -> None:
        """Forget a client, what waits for it, and what it asked for."""
        del self._outboxes[identity]
        self._act(self._session.unreachable(identity))

    def _bound_unread(self) -> None:
        """Keep what waits for clients that do not read within the limit, at the cost of those with the most."""
        unread = sum(outbox.weight for outbox in self._outboxes.values())
        while unread > self._session.limits.max_unread_bytes:
            identity, outbox = max(self._outboxes.items(), key=lambda item: item[1].weight)
            unread -= outbox.weight
            log.warning("a client does not read; %d bytes that waited for it are dropped", outbox.weight)
            if outbox.pruned:  # even the words that its requests have failed are too many
                self._drop(identity)
                continue
            self._outboxes[identity] = pruned = Outbox()
            pruned.pruned = True
            self._act(self._session.overflowed(identity, outbox.request_ids(), outbox.weight))

    def _drop_dead_letters(self, now: float) -> None:
        """Forget what nobody has taken for a lease, of clients whose lease has lapsed."""
        lease_s = self._session.limits.lease_s
        for identity, outbox in list(self._outboxes.items()):
            if outbox.weight and now - outbox.held_since > lease_s and not self._session.remembers(identity):
                del self._outboxes[identity]

    def _complain(self, now: float) -> None:
        """Log, once in a while, how much could not be understood."""
        bad = self._session.malformed + self._dropped
        if bad > self._complained_of and now - self._complained_at >= COMPLAINT_INTERVAL_S:
            log.warning("%d malformed messages, or entries of messages, were refused lately", bad - self._complained_of)
            self._complained_at, self._complained_of = now, bad


def _pack(replies: Sequence[Reply]) -> bytes:
    """One message. A reply that cannot be sent ends its request alone: kept, it would hold up everything behind it."""
    try:
        return encode(replies)
    except ProtocolError:
        return encode(map(_sendable, replies))


def _sendable(reply: Reply) -> Reply:
    try:
        encode((reply,))
    except ProtocolError as error:
        log.error("a %s cannot be sent: %s", type(reply).__name__, error.message)
        name, message, _ = error.to_wire()
        return Failed(getattr(reply, "request_id", 0), name, message)
    return reply
