"""One worker as the I/O thread sees it: its socket, the calls on it, what waits to be sent."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import zmq

from samplerpool.client.admission import Admission
from samplerpool.client.liveness import Liveness
from samplerpool.client.readiness import Readiness
from samplerpool.client.response import Call
from samplerpool.errors import AccessDenied, ProtocolError, RequestLost, SamplerPoolError, TransportError
from samplerpool.wire.codec import MAX_REQUESTS, decode_replies, encode, encode_requests
from samplerpool.wire.endpoint import ConnectionFile, WorkerEntry
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    Completed,
    Count,
    Counted,
    Describe,
    Description,
    Failed,
    Finished,
    Generate,
    Malformed,
    Ping,
    Pong,
    Render,
    Rendered,
    Reply,
    Request,
    Submission,
    Tokens,
)
from samplerpool.wire.sockets import open_dealer

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RECEIVED_AT_ONCE = 256
_OF_CALLS = frozenset({Accepted, Tokens, Finished, Completed, Counted, Rendered, Failed})


class Peer:
    """See the module's docstring. Only ``reserve`` and ``outstanding`` may be called from other threads.

    Args:
        entry: where it is, and which start of it is meant.
        pool: it belongs to, with the keys that let us in.
        readiness: where it is to be told of what comes, under the peer as the name.

    ``denied`` tells that the worker does not know our key (any more).
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        entry: WorkerEntry,
        pool: ConnectionFile,
        readiness: Readiness,
    ) -> None:
        self.index = entry.index
        self.incarnation = entry.incarnation
        self.denied: AccessDenied | None = None
        self.up = True
        self.down_reason = ""
        self.backlog: deque[bytes] = deque()
        self.messages_received = 0
        self.descriptions: dict[int, concurrent.futures.Future[dict[str, Any]]] = {}
        self._calls: dict[int, Call] = {}
        self._last_id = 0
        self._liveness = Liveness()
        self._lock = threading.Lock()
        self._outstanding = 0
        self._outstanding_tokens = 0
        self._fail_with: Callable[[Call], SamplerPoolError] | None = None
        self.socket = open_dealer(context, entry.endpoint, pool.keys)
        self._readiness = readiness
        readiness.watch(self, self.socket)
        self._admission = Admission(self.socket, pool, entry.endpoint) if pool.keys is not None else None

    # ---- from any thread ------------------------------------------------------------------------------------------

    def reserve(self, calls: Sequence[Call]) -> None:
        """Count calls that are on their way, so that the next choice of a worker knows of them."""
        with self._lock:
            self._outstanding += len(calls)
            self._outstanding_tokens += sum(call.tokens_asked for call in calls)

    def outstanding(self) -> tuple[int, int]:
        """Unfinished calls, and how many tokens they may still ask for."""
        with self._lock:
            return self._outstanding, self._outstanding_tokens

    # ---- sending --------------------------------------------------------------------------------------------------

    def next_id(self) -> int:
        """A number for a request; they rise."""
        self._last_id += 1
        return self._last_id

    def send_calls(self, calls: Sequence[Call], now: float) -> None:
        """Send calls, in one message if it takes them; one that cannot be packed fails alone."""
        if len(calls) > MAX_REQUESTS:
            for part in _parts(calls):
                self.send_calls(part, now)
            return
        for call in calls:
            call.worker, call.submitted_at, call.request_id = self.index, now, self.next_id()
        if self._fail_with is not None:
            for call in calls:
                self._end(call, self._fail_with(call))
            return
        self._calls.update((call.request_id, call) for call in calls)
        try:
            data = encode_requests(map(self._request, calls))
        except ProtocolError as error:
            if len(calls) == 1:
                self._end(calls[0], error)
                return
            for call in calls:
                del self._calls[call.request_id]
                self.send_calls((call,), now)
        else:
            self._send_bytes(data)

    def _request(self, call: Call) -> Submission:
        if call.purpose == "count":
            return Count(call.request_id, self.incarnation, call.prompt, call.params)
        if call.purpose == "render":
            return Render(call.request_id, self.incarnation, call.prompt)
        return Generate(
            call.request_id, self.incarnation, call.prompt, call.params, call.priority, call.stream, call.parse
        )

    def describe(self, answer: concurrent.futures.Future[dict[str, Any]]) -> None:
        """Ask the worker for its description, and forget those that nobody waits for any more."""
        for request_id in [number for number, waiting in self.descriptions.items() if waiting.cancelled()]:
            del self.descriptions[request_id]
        if answer.cancelled():
            return
        request_id = self.next_id()
        self.descriptions[request_id] = answer
        self.send([Describe(request_id)])

    def abort(self, calls: Sequence[Call]) -> None:
        """Ask the worker to stop calls that have not ended."""
        live = [call for call in calls if self._calls.get(call.request_id) is call]
        if live and self.up:
            self.send([Abort(call.request_id) for call in live])

    def send(self, messages: Sequence[Request]) -> None:
        """Send messages that always fit."""
        if self.up:
            for part in _parts(messages):
                self._send_bytes(encode(part))
        else:
            self._fail_descriptions()

    def _fail_descriptions(self) -> None:
        for answer in self.descriptions.values():
            if not answer.set_running_or_notify_cancel():
                continue
            answer.set_exception(TransportError(self.down_reason, worker=self.index))
        self.descriptions.clear()

    def _send_bytes(self, data: bytes) -> None:
        self.backlog.append(data)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        if not (self.backlog and self.up):
            return
        try:
            while self.backlog:
                self.socket.send(self.backlog[0], zmq.DONTWAIT)
                self.backlog.popleft()
        except zmq.Again:
            pass
        self._readiness.touched(self, self.socket, waiting_to_send=bool(self.backlog))

    # ---- receiving ------------------------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Take what has come, up to a bound so that other workers have their turn; whether there may be more."""
        for _ in range(MAX_RECEIVED_AT_ONCE):
            try:
                data = self.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return False
            self.messages_received += 1
            for reply in decode_replies(data):
                self._reply(reply)
            self._liveness.heard()
        self._readiness.touched(self, self.socket, waiting_to_send=bool(self.backlog))
        return True

    def _reply(self, reply: Reply | Malformed) -> None:
        if type(reply) in _OF_CALLS:
            self._call_reply(reply)
        elif isinstance(reply, Pong):
            calls = [(request_id, call.submitted_at) for request_id, call in self._calls.items()]
            for request_id in self._liveness.lost(reply.ping_id, reply.live, calls):
                error = RequestLost(f"Worker {self.index} does not know the request (any more); send it again.")
                self._end(self._calls[request_id], error)
        elif isinstance(reply, Description):
            answer = self.descriptions.pop(reply.request_id, None)
            if answer is not None and answer.set_running_or_notify_cancel():
                answer.set_result(dict(reply.info))
        else:
            assert isinstance(reply, Malformed)
            self._malformed(reply.request_id, reply.reason)

    def _call_reply(self, reply: Any) -> None:
        if isinstance(reply, Failed) and reply.error == AccessDenied.__name__:
            self.denied = AccessDenied(reply.message)
        call = self._calls.get(reply.request_id)
        if call is None:
            if isinstance(reply, Failed) and reply.request_id == 0:
                log.warning("worker %d could not read a message: %s", self.index, reply.message)
            return
        try:
            call.feed(reply)
        except ProtocolError as error:
            self._malformed(reply.request_id, error.message)
            return
        if call.done:
            self._ended(call)
        elif call.stream:
            _tell(call)

    def _malformed(self, request_id: int, reason: str) -> None:
        """The answer of one call cannot be trusted any more; it ends here and is stopped there."""
        call = self._calls.get(request_id)
        if call is None:
            log.warning("worker %d sent something that cannot be read: %s", self.index, reason)
            return
        self.send([Abort(request_id)])
        self._end(call, ProtocolError(reason))

    # ---- ends -----------------------------------------------------------------------------------------------------

    def _end(self, call: Call, error: SamplerPoolError) -> None:
        call.fail(error)
        self._ended(call)

    def _ended(self, call: Call) -> None:
        self._calls.pop(call.request_id, None)
        with self._lock:
            self._outstanding -= 1
            self._outstanding_tokens -= call.tokens_asked
        _tell(call)

    def check(self, now: float) -> bool:
        """Ping if it is time to; whether the worker still counts as there."""
        if self._admission is not None and isinstance(refused := self._admission.look(), AccessDenied):
            self.denied = refused
        ping_id = self._liveness.due(now, busy=bool(self._calls))
        if ping_id is not None:
            self.send([Ping(ping_id)])
        return not self._liveness.unresponsive

    def lose(self, reason: str) -> None:
        """The worker is of no more use: nothing more is sent to it or comes of it. Its calls wait for ``fail``."""
        if not self.up:
            return
        self._fail_with = functools.partial(_unsent, reason)
        self.up, self.down_reason = False, reason
        if self._admission is not None:
            self._admission.close()
        self._readiness.unwatch(self)
        self.socket.close()
        self.backlog.clear()
        self._fail_descriptions()

    def fail(self, error_for: Callable[[Call], SamplerPoolError]) -> None:
        """End the calls of a worker that is lost."""
        for call in list(self._calls.values()):
            self._end(call, error_for(call))

    def close(self, error_for: Callable[[Call], SamplerPoolError]) -> None:
        """Abort the calls and close the socket, with a short linger for the aborts."""
        if self.up:
            self.flush()
            self.abort(list(self._calls.values()))
            self.lose("The connection is closed.")
        self._fail_with = error_for
        self.fail(error_for)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many at a time as a message to a worker may hold."""
    for start in range(0, len(items), MAX_REQUESTS):
        yield items[start : start + MAX_REQUESTS]


def refuse(calls: Sequence[Call], worker: int, reason: str) -> None:
    """End calls that cannot be sent."""
    for call in calls:
        call.worker = worker
        call.fail(_unsent(reason, call))
        _tell(call)


def _unsent(reason: str, call: Call) -> SamplerPoolError:
    return RequestLost(f"{reason} The request was not sent.", sent=False, text=call.text)


def _tell(call: Call) -> None:
    try:
        call.on_update(call)
    except Exception:  # it is the caller's, and all other calls depend on this thread
        log.exception("on_update of request %d to worker %d raised", call.request_id, call.worker)
