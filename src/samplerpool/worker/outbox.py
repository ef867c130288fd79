"""What waits to be sent, per client. Pure.

Tokens of a request that has tokens waiting already join them, so what a slow client has waiting grows with the text
and not with the number of frames. A message that the client did not take is held as it was packed, so that trying it
again costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from samplerpool.types import Message, TokenLogprobs
from samplerpool.wire.messages import Accepted, Completed, Counted, Failed, Finished, Rendered, Reply, Tokens

MAX_WEIGHT = 2**20
"""Of one message, roughly in bytes; a message takes at least one reply however large."""
MIN_RETRY_S, MAX_RETRY_S = 0.005, 0.2
_BASE_WEIGHT = 64
_TOKEN_WEIGHT = 5
_LOGPROB_WEIGHT = 16


class Outbox:
    """Replies of one client, in order.

    ``weight`` is what they take, roughly in bytes, while a message is held; else 0. ``retry_at`` and ``held_since`` say
    when to try a held message again, and since when nothing was taken; ``pruned`` is its owner's to set.
    """

    __slots__ = ("_held", "_replies", "_retry_s", "_tokens_at", "held_since", "pruned", "retry_at", "weight")

    def __init__(self) -> None:
        self._replies: list[Reply] = []
        self._tokens_at: dict[int, int] = {}
        self._held: tuple[int, bytes] | None = None
        self._retry_s = 0.0
        self.held_since = self.retry_at = 0.0
        self.weight = 0
        self.pruned = False

    def __bool__(self) -> bool:
        return bool(self._replies)

    def extend(self, replies: Iterable[Reply]) -> None:
        """Put replies behind the others, and tokens to those of their request."""
        waiting, tokens_at = self._replies, self._tokens_at
        for reply in replies:
            if self._held is not None:
                self.weight += _weight(reply)
            if type(reply) is not Tokens:
                waiting.append(reply)
            elif (at := tokens_at.get(reply.request_id)) is None:
                tokens_at[reply.request_id] = len(waiting)
                waiting.append(reply)
            else:
                waiting[at] = _joined(waiting[at], reply)
                self.weight -= _BASE_WEIGHT if self._held is not None else 0

    def message(self, pack: Callable[[Sequence[Reply]], bytes]) -> tuple[int, bytes]:
        """The next message, of bounded size, and how many replies are in it. Take it with ``sent`` or ``hold``."""
        if self._held is not None:
            return self._held
        batch = list(self._first_batch())
        return len(batch), pack(batch)

    def _first_batch(self) -> Iterator[Reply]:
        weight = 0
        for reply in self._replies:
            yield reply
            weight += _weight(reply)
            if weight >= MAX_WEIGHT:
                return

    def sent(self, count: int) -> None:
        """Forget the first ``count`` replies."""
        self._held, self._retry_s, self.retry_at, self.weight = None, 0.0, 0.0, 0
        if count == len(self._replies):
            self._replies.clear()
            self._tokens_at.clear()
            return
        del self._replies[:count]
        self._index_tokens(0)

    def hold(self, count: int, data: bytes, now: float) -> None:
        """The client did not take this message: keep it for later, as it is."""
        if self._held is None:
            self._held, self.held_since = (count, data), now
            self._index_tokens(count)
            self.weight = sum(map(_weight, self._replies))
        self._retry_s = min(max(MIN_RETRY_S, 2 * self._retry_s), MAX_RETRY_S)
        self.retry_at = now + self._retry_s

    def _index_tokens(self, start: int) -> None:
        self._tokens_at = {r.request_id: at for at, r in enumerate(self._replies) if at >= start and type(r) is Tokens}

    def request_ids(self) -> list[int]:
        """The requests that have something waiting, each once."""
        kinds = (Accepted, Tokens, Finished, Completed, Counted, Rendered, Failed)
        return list(dict.fromkeys(r.request_id for r in self._replies if isinstance(r, kinds) and r.request_id))


def _joined(first: Reply, second: Tokens) -> Tokens:
    assert isinstance(first, Tokens)
    ids = first.token_ids if isinstance(first.token_ids, list) else list(first.token_ids)
    ids.extend(second.token_ids)
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = first.logprobs if isinstance(first.logprobs, list) else list(first.logprobs or ())
        logprobs.extend(second.logprobs or ())
    return Tokens(first.request_id, first.index, ids, first.text + second.text, logprobs)


def _weight(reply: Reply) -> int:
    if type(reply) is Tokens:
        weight = _BASE_WEIGHT + len(reply.text) + _TOKEN_WEIGHT * len(reply.token_ids)
        return weight + _logprobs_weight(reply.logprobs)
    if type(reply) is Completed:
        return _BASE_WEIGHT + len(reply.text) + _message_weight(reply.message) + _logprobs_weight(reply.logprobs)
    if isinstance(reply, Accepted):
        return _BASE_WEIGHT + _TOKEN_WEIGHT * len(reply.prompt_ids)
    if isinstance(reply, Finished):
        return _BASE_WEIGHT + _message_weight(reply.message)
    if isinstance(reply, Failed):
        return _BASE_WEIGHT + len(reply.message)
    if isinstance(reply, Counted):
        return _BASE_WEIGHT + sum(len(token) + len(place) for token, place in reply.count.escaped)
    if isinstance(reply, Rendered):
        return _BASE_WEIGHT + sum(_TOKEN_WEIGHT + len(piece) for piece in reply.prompt.pieces)
    return _BASE_WEIGHT


def _logprobs_weight(logprobs: Sequence[TokenLogprobs] | None) -> int:
    return sum(_LOGPROB_WEIGHT * (1 + len(entry.top)) for entry in logprobs or ())


def _message_weight(message: Message | None) -> int:
    return sum(len(block["value"]) for block in message["content"]) if message else 0
