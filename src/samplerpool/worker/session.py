"""The worker's request table: who asked for what, until when, and what each is answered. Pure.

Events in (frames of clients, outputs of the engine, the clock), actions out. Every accepted request gets exactly one
terminal frame; what comes for a request that has ended is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.config.arguments import ClientLimits
from samplerpool.engine.base import RequestId
from samplerpool.engine.loop import Admitted, Prepared, RequestEvent, RequestOutput
from samplerpool.errors import (
    Aborted,
    AccessDenied,
    ClientTooSlow,
    LeaseExpired,
    ProtocolError,
    SamplerPoolError,
    WorkerDraining,
    WrongIncarnation,
)
from samplerpool.types import FinishReason, PromptCount
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    Completed,
    Count,
    Counted,
    Describe,
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
from samplerpool.worker.clients import Client, Clients, Identity, Live, request_label


@dataclass(frozen=True, slots=True)
class Submit:
    """Give a request to the sampler."""

    key: RequestId
    request: Submission


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


class Session:
    """See the module's docstring. Times are seconds on one monotonic clock.

    Args:
        incarnation: this process's; requests for another are refused.
        limits: what clients may ask of this worker.
        worker: its name, with which requests are told apart in logs.

    ``malformed`` counts messages, or entries of messages, that could not be taken; ``refused`` requests that were
    refused for a limit's sake.
    """

    def __init__(self, incarnation: str, limits: ClientLimits | None = None, worker: str = "") -> None:
        self.incarnation = incarnation
        self._worker = worker
        self.draining = False
        self.malformed = 0
        self.refused = 0
        self._clients = Clients(limits or ClientLimits())

    @property
    def limits(self) -> ClientLimits:
        """What clients may ask of this worker."""
        return self._clients.limits

    @property
    def clients(self) -> int:
        """Connections that were heard of within their lease."""
        return len(self._clients)

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return self._clients.live

    @property
    def queued_bytes(self) -> int:
        """What the requests that have not ended took on their way here."""
        return self._clients.queued_bytes

    # ---- frames of clients ----------------------------------------------------------------------------------------

    def received(
        self, identity: Identity, messages: Sequence[Request | Malformed], now: float, steps: int = 0, key: str = ""
    ) -> list[Action]:
        """What to do about one client's messages, and with which public key they came."""
        client = self._clients.heard(identity, now)
        client.key = key
        actions: list[Action] = []
        complained = False
        for message in messages:
            match message:
                case Generate() | Count() | Render():
                    actions.append(self._generate(client, message))
                case Abort(request_id):
                    actions += self._abort(client, request_id, Aborted("The request was aborted by its client."))
                case Ping(ping_id):
                    pong = Pong(ping_id, self.incarnation, steps, list(client.live))
                    actions.append(Send(identity, [pong]))
                case Describe(request_id):
                    actions.append(Report(identity, request_id))
                case Malformed(request_id, reason):
                    self.malformed += 1
                    unknown = not request_id or request_id in client.live
                    if not (unknown and complained):  # one answer is enough to those of a message that have no id
                        actions.append(self._refuse(client, request_id, ProtocolError(reason)))
                    complained |= unknown
                case _:
                    error = ProtocolError(f"A worker does not take {type(message).__name__}.")
                    actions.append(self._refuse(client, message.request_id, error))
        return actions

    def _generate(self, client: Client, request: Submission) -> Action:
        refusal = self._refusal(client, request)
        if refusal is not None:
            return self._refuse(client, request.request_id, refusal)
        self._clients.begin(client, request)
        return Submit((client.number, request.request_id), request)

    def _refusal(self, client: Client, request: Submission) -> SamplerPoolError | None:
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
        full = self._clients.refusal(client, request)
        self.refused += full is not None
        return full

    def _abort(self, client: Client, request_id: int, error: SamplerPoolError) -> list[Action]:
        if self._clients.end(client, request_id) is None:
            return []
        key = (client.number, request_id)
        failed = _failed(request_id, error, request=request_label(self._worker, key))
        return [AbortRun(key), Send(client.identity, [failed])]

    @staticmethod
    def _refuse(client: Client, request_id: int, error: SamplerPoolError) -> Send:
        """A live request of that id goes on: only the frame that cannot be taken is lost."""
        return Send(client.identity, [_failed(0 if request_id in client.live else request_id, error)])

    # ---- keys that are not known any more -------------------------------------------------------------------------

    def revoke(self, known: Callable[[str], bool]) -> list[Action]:
        """End the requests of clients whose key is not known any more, and forget those clients."""
        strangers = [client for client in self._clients if client.key and not known(client.key)]
        return [action for client in strangers for action in self._bar(client)]

    def denied(self, identity: Identity) -> list[Action]:
        """Such a client still sends something, over the connection that it has: it is told, and what it asks for is
        not even looked at."""
        client = self._clients.with_identity(identity)
        actions = self._bar(client) if client is not None else []
        return [*actions, Send(identity, [_failed(0, _denial())])]

    def _bar(self, client: Client) -> list[Action]:
        actions = self._end_all(client, _denial())
        self._clients.forget(client)
        return actions

    # ---- events of the sampler ------------------------------------------------------------------------------------

    def produced(self, events: Sequence[RequestEvent]) -> list[Send]:
        """What to send for events of the sampler: one action a client."""
        replies: dict[Identity, list[Reply]] = {}
        for event in events:
            number, request_id = event.request_id
            client = self._clients.with_number(number)
            live = client.live.get(request_id) if client is not None else None
            if client is None or live is None:
                continue
            out = replies.get(client.identity)
            if out is None:
                out = replies[client.identity] = []
            if type(event) is RequestOutput:
                self._output(client, live, event, out)
            elif isinstance(event, Admitted):
                live.prompt_tokens, live.seed = len(event.prompt_ids), event.seed
                if live.stream:
                    out.append(Accepted(request_id, event.prompt_ids, event.seed, event.reasoning_open))
            elif isinstance(event, Prepared):
                self._clients.end(client, request_id)
                told = event.told
                out.append(Counted(request_id, told) if isinstance(told, PromptCount) else Rendered(request_id, told))
        return [Send(identity, out) for identity, out in replies.items() if out]

    def _output(self, client: Client, live: Live, output: RequestOutput, out: list[Reply]) -> None:
        request_id = live.request_id
        if not live.stream:
            self._collect(live, output)
        elif output.token_ids or output.text:
            out.append(Tokens(request_id, output.index, output.token_ids, output.text, output.logprobs))
        if output.finish_reason is None:
            return
        self._clients.end(client, request_id)
        if output.error is not None:
            out.append(_failed(request_id, output.error, request=request_label(self._worker, output.request_id)))
        elif live.stream:
            end = output.finish_reason, live.prompt_tokens, output.completion_tokens, output.message
            out.append(Finished(request_id, *end))
        else:
            out.append(_completed(live, output, output.finish_reason))

    @staticmethod
    def _collect(live: Live, output: RequestOutput) -> None:
        if output.text:
            live.texts.append(output.text)
        if output.logprobs is not None:
            live.logprobs = live.logprobs or []
            live.logprobs.extend(output.logprobs)

    # ---- time, and clients that are gone --------------------------------------------------------------------------

    def tick(self, now: float) -> list[Action]:
        """End the requests of clients whose lease has lapsed, and forget those clients."""
        actions: list[Action] = []
        lease_s = self.limits.lease_s
        for client in self._clients.silent_since(now - lease_s):
            actions += self._end_all(client, LeaseExpired(f"The client was silent for more than {lease_s:g} s."))
            self._clients.forget(client)
        return actions

    def unreachable(self, identity: Identity) -> list[Action]:
        """A client's connection is gone: its requests are aborted without an answer."""
        client = self._clients.with_identity(identity)
        if client is None:
            return []
        actions: list[Action] = [AbortRun((client.number, request_id)) for request_id in client.live]
        self._clients.forget(client)
        return actions

    def remembers(self, identity: Identity) -> bool:
        """Whether the client was heard of within its lease."""
        return self._clients.with_identity(identity) is not None

    def overflowed(self, identity: Identity, unread: Iterable[int], unread_bytes: int) -> list[Action]:
        """A client does not read: what waited for it was dropped, and all requests that this concerns fail.

        Args:
            unread: the requests that had something waiting; some of them have ended here.
            unread_bytes: how much that was.
        """
        limit = self.limits.max_unread_bytes
        error = ClientTooSlow(
            f"{unread_bytes:,} bytes of replies waited for this client to read them, and all clients together may "
            f"have {limit:,} (--max-unread-bytes). Read faster, or ask for less at a time.",
            bytes=unread_bytes,
            limit=limit,
        )
        client = self._clients.with_identity(identity)
        live = set(client.live) if client is not None else set()
        actions = self._end_all(client, error) if client is not None else []
        lost = [request_id for request_id in unread if request_id not in live]
        return [*actions, Send(identity, [_failed(request_id, error) for request_id in lost])]

    def _end_all(self, client: Client, error: SamplerPoolError) -> list[Action]:
        return [action for request_id in list(client.live) for action in self._abort(client, request_id, error)]

    def stop(self, reason: str) -> list[Action]:
        """Fail everything that has not ended, and take nothing new."""
        self.draining = True
        actions: list[Action] = []
        for client in self._clients:
            actions += self._end_all(client, WorkerDraining(reason))
        return actions


def _denial() -> AccessDenied:
    return AccessDenied("The pool does not know this client's key any more; its owner has revoked it.")


def _completed(live: Live, output: RequestOutput, finish_reason: FinishReason) -> Completed:
    text, message = "".join(live.texts), output.message
    if message is not None and len(message) == 2 and message["content"] == [{"type": "text", "value": text}]:
        message = None  # nothing that the text does not say
    return Completed(
        live.request_id,
        finish_reason,
        live.prompt_tokens,
        output.completion_tokens,
        live.seed,
        text,
        message,
        live.logprobs,
    )


def _failed(request_id: int, error: SamplerPoolError, **more: str) -> Failed:
    name, message, data = error.to_wire()
    return Failed(request_id, name, message, _plain({**data, **more}))


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Error data as the wire can hold it; what it cannot is shown as text."""
    simple = (str, int, float, bool, type(None))
    return {name: value if isinstance(value, simple) else str(value) for name, value in data.items()}
