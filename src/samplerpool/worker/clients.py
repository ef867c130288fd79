"""A worker's clients and their unfinished requests, within limits. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from samplerpool.config.arguments import ClientLimits
from samplerpool.engine.base import RequestId
from samplerpool.errors import PromptTooLong, QueueFull, RequestError
from samplerpool.types import TokenLogprobs
from samplerpool.wire.messages import Generate, Submission

Identity = bytes
"""ZeroMQ's routing id of a connection; nothing durable is keyed on it."""


def request_label(worker: str, request_id: RequestId) -> str:
    """How logs and errors name a request: worker, connection and the client's own number, as in ``w0.3.17``."""
    client, number = request_id
    return f"{worker}.{client}.{number}" if worker else f"{client}.{number}"


@dataclass(slots=True)
class Live:
    """A request that has not ended. What it asks for is the sampler's to remember."""

    request_id: int
    stream: bool
    size_bytes: int
    prompt_tokens: int = 0
    seed: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class Client:
    """One connection. ``queued_bytes`` are those of its live requests; ``key`` is its public key, if it has one."""

    identity: Identity
    number: int
    heard_at: float
    live: dict[int, Live] = field(default_factory=dict)
    queued_bytes: int = 0
    highest_id: int = 0
    key: str = ""


class Clients:
    """See the module's docstring. Times are seconds on one monotonic clock.

    ``live`` and ``queued_bytes`` are of all clients together.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self.limits = limits
        self.live = 0
        self.queued_bytes = 0
        self._by_identity: dict[Identity, Client] = {}  # those that were heard of last stand last
        self._by_number: dict[int, Client] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._by_identity)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._by_identity.values()))

    def heard(self, identity: Identity, now: float) -> Client:
        """The client that something has come from; a new one may push an idle one out."""
        client = self._by_identity.pop(identity, None)
        if client is None:
            self._forget_idle(len(self) + 1 - self.limits.max_clients)
            self._last_number += 1
            client = Client(identity, self._last_number, now)
            self._by_number[client.number] = client
        self._by_identity[identity] = client
        client.heard_at = now
        return client

    def _forget_idle(self, count: int) -> None:
        if count > 0:
            idle = (client for client in self._by_identity.values() if not client.live)
            for client in list(itertools.islice(idle, count)):
                self.forget(client)

    def with_identity(self, identity: Identity) -> Client | None:
        """The client of a connection, if it is remembered."""
        return self._by_identity.get(identity)

    def with_number(self, number: int) -> Client | None:
        """The client with the number that is part of its requests' names in the engine."""
        return self._by_number.get(number)

    def silent_since(self, moment: float) -> list[Client]:
        """Those that nothing was heard of since."""
        return list(itertools.takewhile(lambda client: client.heard_at < moment, self._by_identity.values()))

    def forget(self, client: Client) -> None:
        """A client is gone, and its requests with it."""
        for request_id in list(client.live):
            self.end(client, request_id)
        del self._by_identity[client.identity], self._by_number[client.number]

    # ---- requests -------------------------------------------------------------------------------------------------

    def begin(self, client: Client, request: Submission) -> None:
        """Enter a request."""
        client.highest_id = request.request_id
        stream = isinstance(request, Generate) and request.stream
        client.live[request.request_id] = Live(request.request_id, stream, request.size_bytes)
        client.queued_bytes += request.size_bytes
        self.queued_bytes += request.size_bytes
        self.live += 1

    def end(self, client: Client, request_id: int) -> Live | None:
        """Take a request out; None if it has ended already."""
        live = client.live.pop(request_id, None)
        if live is not None:
            client.queued_bytes -= live.size_bytes
            self.queued_bytes -= live.size_bytes
            self.live -= 1
        return live

    def refusal(self, client: Client, request: Submission) -> RequestError | None:
        """Why there is no room for a request, if there is none."""
        limits, size = self.limits, request.size_bytes
        largest = min(limits.max_request_bytes, limits.max_queue_bytes, limits.max_queue_bytes_per_client)
        if size > largest:
            return PromptTooLong(
                f"The request has {size:,} bytes; this worker takes {largest:,} at most. Shorten it, or launch with "
                "a larger --max-request-bytes, and --max-queue-bytes and --max-queue-bytes-per-client no smaller.",
                bytes=size,
                limit=largest,
            )
        if len(self) > limits.max_clients:
            return _full("max_clients", "this worker has {} clients", len(self) - 1, limits.max_clients)
        if len(client.live) >= limits.max_queue_per_client:
            what = "this connection has {} unfinished requests"
            return _full("max_queue_per_client", what, len(client.live), limits.max_queue_per_client)
        if self.live >= limits.max_queue:
            return _full("max_queue", "this worker has {} unfinished requests", self.live, limits.max_queue)
        if client.queued_bytes + size > limits.max_queue_bytes_per_client:
            what = f"with these {size:,} bytes, this connection's unfinished requests would have {{}} bytes"
            held = client.queued_bytes + size
            return _full("max_queue_bytes_per_client", what, held, limits.max_queue_bytes_per_client)
        if self.queued_bytes + size > limits.max_queue_bytes:
            what = f"with these {size:,} bytes, this worker's unfinished requests would have {{}} bytes"
            return _full("max_queue_bytes", what, self.queued_bytes + size, limits.max_queue_bytes)
        return None


def _full(limited: str, what: str, held: int, limit: int) -> QueueFull:
    option = limited.replace("_", "-")
    return QueueFull(
        f"There is no room now: {what.format(f'{held:,}')}; the limit is {limit:,} (--{option}). "
        "Send the request again when some have ended.",
        limited=limited,
        held=held,
        limit=limit,
    )
