"""What waits to be sent, per client. Pure.

Tokens of a request that has tokens waiting already join them, so what a slow client has waiting grows with the text
and not with the number of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from samplerpool.wire.messages import Accepted, Failed, Finished, Reply, Tokens

MAX_WEIGHT = 2**20
"""Of one message, roughly in bytes; a message takes at least one reply however large."""
_BASE_WEIGHT = 64
_TOKEN_WEIGHT = 5
_LOGPROB_WEIGHT = 16


class Outbox:
    """Replies of one client, in order."""

    __slots__ = ("_replies", "_tokens_at")

    def __init__(self) -> None:
        self._replies: list[Reply] = []
        self._tokens_at: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._replies)

    def extend(self, replies: Iterable[Reply]) -> None:
        """Put replies behind the others, and tokens to those of their request."""
        waiting, tokens_at = self._replies, self._tokens_at
        for reply in replies:
            if type(reply) is not Tokens:
                waiting.append(reply)
            elif (at := tokens_at.get(reply.request_id)) is None:
                tokens_at[reply.request_id] = len(waiting)
                waiting.append(reply)
            else:
                waiting[at] = _joined(waiting[at], reply)

    def batches(self) -> Iterator[list[Reply]]:
        """The replies, cut into messages of bounded size. Take each with ``sent`` once it is on its way."""
        batch: list[Reply] = []
        weight = 0
        for reply in self._replies:
            batch.append(reply)
            weight += _weight(reply)
            if weight >= MAX_WEIGHT:
                yield batch
                batch, weight = [], 0
        if batch:
            yield batch

    def sent(self, count: int) -> None:
        """Forget the first ``count`` replies."""
        if count == len(self._replies):
            self._replies.clear()
            self._tokens_at.clear()
            return
        del self._replies[:count]
        self._tokens_at = {r.request_id: at for at, r in enumerate(self._replies) if type(r) is Tokens}


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
        if reply.logprobs is not None:
            weight += sum(_LOGPROB_WEIGHT * (1 + len(entry.top)) for entry in reply.logprobs)
        return weight
    if isinstance(reply, Accepted):
        return _BASE_WEIGHT + _TOKEN_WEIGHT * len(reply.prompt_ids)
    if isinstance(reply, Finished) and reply.message is not None:
        return _BASE_WEIGHT + sum(len(block["value"]) for block in reply.message["content"])
    if isinstance(reply, Failed):
        return _BASE_WEIGHT + len(reply.message)
    return _BASE_WEIGHT
