"""Which worker gets the next call. Pure."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from samplerpool.types import Message

MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as this client sees it.

    Args:
        up: whether calls can be sent to it.
        outstanding: this client's unfinished calls there.
        outstanding_tokens: how many tokens those may still ask for.
        down_reason: why it is not up.
        coming: it is not up, but its pool is about to bring it back.
        incarnation: of the process that is meant; empty if there is none.
    """

    index: int
    up: bool
    outstanding: int
    outstanding_tokens: int
    down_reason: str = ""
    coming: bool = False
    incarnation: str = ""


def choose(workers: Sequence[WorkerView], *, preferred: int | None = None) -> int | None:
    """The worker with the fewest outstanding tokens, or None if none is up.

    Args:
        preferred: taken as long as it is up: a conversation stays where its earlier turns are cached.
    """
    up = [worker for worker in workers if worker.up]
    if any(worker.index == preferred for worker in up):
        return preferred
    if not up:
        return None
    return min(up, key=lambda worker: (worker.outstanding_tokens, worker.outstanding, worker.index)).index


class Affinity:
    """Remembers which worker answered a conversation's latest turn, so that the next one finds its prefix cached.

    A next turn is the conversation so far, the answer to it, and one more message. Thread-safe.
    """

    def __init__(self) -> None:
        self._workers: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def preferred(self, messages: Sequence[Message]) -> int | None:
        """The worker that answered the turn before this one, if there was one."""
        if len(messages) < 3:
            return None
        with self._lock:
            return self._workers.get(_key(messages[:-2]))

    def remember(self, messages: Sequence[Message], worker: int) -> None:
        """Note where a conversation went; the least recently noted are forgotten."""
        key = _key(messages)
        with self._lock:
            self._workers[key] = worker
            self._workers.move_to_end(key)
            while len(self._workers) > MAX_REMEMBERED:
                self._workers.popitem(last=False)


def _key(messages: Sequence[Message]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        for part in (message["role"], *(block["value"] for block in message["content"])):
            data = part.encode("utf-8", "replace")
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
