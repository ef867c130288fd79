"""The worker's request table: who asked for what, until when, and what each is answered. Pure.

Events in (frames of clients, outputs of the engine, the clock), actions out. Every accepted request gets exactly one
terminal frame; what comes for a request that has ended is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samplerpool.engine.base import RequestId
from samplerpool.engine.loop import Admitted, RequestEvent, RequestOutput
from samplerpool.errors import (
    Aborted,
    LeaseExpired,
    ProtocolError,
    QueueFull,
    SamplerPoolError,
    WorkerDraining,
    WrongIncarnation,
)
from samplerpool.types import TokenLogprobs
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    Describe,
    Failed,
    Finished,
    Generate,
    Malformed,
    Ping,
    Pong,
    Reply,
    Request,
    Tokens,
)

LEASE_S = 60.0
MAX_LIVE_PER_CLIENT = 16384

Identity = bytes
"""ZeroMQ's routing id of a connection; nothing durable is keyed on it."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Give a request to the sampler."""

    key: RequestId
    request: Generate


@dataclass(frozen=True, slots=True)
class AbortRun:
    """Take a request away from the sampler."""

    key: RequestId


@dataclass(frozen=True, slots=True)
class Send:
    """Send frames to a client, behind those already on their way to it."""

    identity: Identity
    replies: Sequence[Reply]


@dataclass(frozen=True, slots=True)
class Report:
    """Answer a ``Describe`` with the worker's present figures."""

    identity: Identity
    request_id: int


Action = Submit | AbortRun | Send | Report


@dataclass(slots=True)
class _Live:
    request: Generate
    prompt_tokens: int = 0
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class _Client:
    identity: Identity
    number: int
    heard_at: float
    live: dict[int, _Live] = field(default_factory=dict)
    highest_id: int = 0


class Session:
    """See the module's docstring. Times are seconds on one monotonic clock.

    Args:
        incarnation: this process's; requests for another are refused.
        lease_s: a client that is silent for so long, with requests running, loses them.
        max_live_per_client: requests that one client may have at a time.
    """

    def __init__(
        self, incarnation: str, *, lease_s: float = LEASE_S, max_live_per_client: int = MAX_LIVE_PER_CLIENT
    ) -> None:
        self.incarnation = incarnation
        self.draining = False
        self._lease_s = lease_s
        self._max_live_per_client = max_live_per_client
        self._clients: dict[Identity, _Client] = {}
        self._by_number: dict[int, _Client] = {}
        self._last_number = 0

    @property
    def clients(self) -> int:
        """Connections that were heard of within their lease."""
        return len(self._clients)

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return sum(len(client.live) for client in self._clients.values())

    # ---- frames of clients ----------------------------------------------------------------------------------------

    def received(
        self, identity: Identity, messages: Sequence[Request | Malformed], now: float, steps: int = 0
    ) -> list[Action]:
        """What to do about one client's messages."""
        client = self._client(identity, now)
        actions: list[Action] = []
        for message in messages:
            match message:
                case Generate():
                    actions.append(self._generate(client, message))
                case Abort(request_id):
                    actions += self._abort(client, request_id, Aborted("The request was aborted by its client."))
                case Ping(ping_id):
                    pong = Pong(ping_id, self.incarnation, steps, list(client.live))
                    actions.append(Send(identity, [pong]))
                case Describe(request_id):
                    actions.append(Report(identity, request_id))
                case Malformed(request_id, reason):
                    actions.append(self._refuse(client, request_id, ProtocolError(reason)))
                case _:
                    error = ProtocolError(f"A worker does not take {type(message).__name__}.")
                    actions.append(self._refuse(client, message.request_id, error))
        return actions

    def _client(self, identity: Identity, now: float) -> _Client:
        client = self._clients.get(identity)
        if client is None:
            self._last_number += 1
            client = _Client(identity, self._last_number, now)
            self._clients[identity] = self._by_number[client.number] = client
        client.heard_at = now
        return client

    def _generate(self, client: _Client, request: Generate) -> Action:
        refusal = self._refusal(client, request)
        if refusal is not None:
            return self._refuse(client, request.request_id, refusal)
        client.highest_id = request.request_id
        client.live[request.request_id] = _Live(request)
        return Submit((client.number, request.request_id), request)

    def _refusal(self, client: _Client, request: Generate) -> SamplerPoolError | None:
        if request.incarnation != self.incarnation:
            return WrongIncarnation(
                f"The request was meant for incarnation {request.incarnation[:32]!r} of this worker; "
                f"this is {self.incarnation!r}. Send it again.",
                incarnation=self.incarnation,
            )
        if self.draining:
            return WorkerDraining("The worker is stopping and takes no new requests.")
        if request.request_id <= client.highest_id:
            return ProtocolError(f"Request id {request.request_id} is not above the one before, {client.highest_id}.")
        if len(client.live) >= self._max_live_per_client:
            return QueueFull(
                f"This connection has {len(client.live)} unfinished requests; the limit is "
                f"{self._max_live_per_client}. Wait for some of them.",
                limit=self._max_live_per_client,
            )
        return None

    def _abort(self, client: _Client, request_id: int, error: SamplerPoolError) -> list[Action]:
        if client.live.pop(request_id, None) is None:
            return []
        return [AbortRun((client.number, request_id)), Send(client.identity, [_failed(request_id, error)])]

    @staticmethod
    def _refuse(client: _Client, request_id: int, error: SamplerPoolError) -> Send:
        """A live request of that id goes on: only the frame that cannot be taken is lost."""
        return Send(client.identity, [_failed(0 if request_id in client.live else request_id, error)])

    # ---- events of the sampler ------------------------------------------------------------------------------------

    def produced(self, events: Sequence[RequestEvent]) -> list[Send]:
        """What to send for events of the sampler: one action a client."""
        replies: dict[int, list[Reply]] = {}
        for event in events:
            number, request_id = event.request_id
            client = self._by_number.get(number)
            live = client.live.get(request_id) if client is not None else None
            if client is None or live is None:
                continue
            out = replies.get(number)
            if out is None:
                out = replies[number] = []
            if type(event) is RequestOutput:
                self._output(client, live, event, out)
            elif isinstance(event, Admitted):
                live.prompt_tokens = len(event.prompt_ids)
                out.append(Accepted(request_id, event.prompt_ids, event.seed))
        return [Send(self._by_number[number].identity, out) for number, out in replies.items() if out]

    def _output(self, client: _Client, live: _Live, output: RequestOutput, out: list[Reply]) -> None:
        request_id = live.request.request_id
        if not live.request.stream:
            self._collect(live, output)
        elif output.token_ids or output.text:
            out.append(Tokens(request_id, output.index, output.token_ids, output.text, output.logprobs))
        if output.finish_reason is None:
            return
        del client.live[request_id]
        if output.error is not None:
            out.append(_failed(request_id, output.error))
            return
        if live.token_ids or any(live.texts):  # a continuation may have text left and no token to come
            out.append(Tokens(request_id, live.index, live.token_ids, "".join(live.texts), live.logprobs))
        out.append(
            Finished(request_id, output.finish_reason, live.prompt_tokens, output.completion_tokens, output.message)
        )

    @staticmethod
    def _collect(live: _Live, output: RequestOutput) -> None:
        if not live.token_ids:
            live.index = output.index
        live.token_ids.extend(output.token_ids)
        live.texts.append(output.text)
        if output.logprobs is not None:
            live.logprobs = live.logprobs or []
            live.logprobs.extend(output.logprobs)

    # ---- time, and clients that are gone --------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """End the requests of clients whose lease has lapsed, and forget those clients."""
        actions: list[Action] = []
        for client in [c for c in self._clients.values() if now - c.heard_at > self._lease_s]:
            error = LeaseExpired(f"The client was silent for more than {self._lease_s:g} s.")
            for request_id in list(client.live):
                actions += self._abort(client, request_id, error)
            self._forget(client)
        return actions

    def unreachable(self, identity: Identity) -> list[Action]:
        """A client's connection is gone: its requests are aborted without an answer."""
        client = self._clients.get(identity)
        if client is None:
            return []
        self._forget(client)
        return [AbortRun((client.number, request_id)) for request_id in client.live]

    def _forget(self, client: _Client) -> None:
        del self._clients[client.identity]
        del self._by_number[client.number]

    def stop(self, reason: str) -> list[Action]:
        """Fail everything that has not ended, and take nothing new."""
        self.draining = True
        actions: list[Action] = []
        for client in self._clients.values():
            for request_id in list(client.live):
                actions += self._abort(client, request_id, WorkerDraining(reason))
        return actions


def _failed(request_id: int, error: SamplerPoolError) -> Failed:
    name, message, data = error.to_wire()
    return Failed(request_id, name, message, _plain(data))


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Error data as the wire can hold it; what it cannot is shown as text."""
    simple = (str, int, float, bool, type(None))
    return {name: value if isinstance(value, simple) else str(value) for name, value in data.items()}
