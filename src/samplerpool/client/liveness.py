"""When to ask a worker for a sign of life, and what to make of its answers. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable

PING_INTERVAL_S = 5.0
"""Well below the worker's lease of 60 s, which pings renew."""
MAX_UNANSWERED = 12
"""Probes of our own that may go unanswered; counted, so that our own stalls and suspends count for nothing."""


class Liveness:
    """The signs of life of one worker."""

    def __init__(self) -> None:
        self._last_ping_id = 0
        self._next_ping_at = 0.0
        self._sent_at: dict[int, float] = {}

    def due(self, now: float, *, busy: bool) -> int | None:
        """The id of the ping to send now, if one is due. Only a worker with calls of ours is asked."""
        if not busy:
            self._sent_at.clear()
            return None
        if now < self._next_ping_at:
            return None
        self._next_ping_at = now + PING_INTERVAL_S
        self._last_ping_id += 1
        self._sent_at[self._last_ping_id] = now
        return self._last_ping_id

    @property
    def unresponsive(self) -> bool:
        """Whether too many probes in a row went unanswered."""
        return len(self._sent_at) > MAX_UNANSWERED

    def heard(self) -> None:
        """Anything came from the worker."""
        if self._sent_at:
            latest = max(self._sent_at)
            self._sent_at = {latest: self._sent_at[latest]}

    def lost(self, ping_id: int, live: Iterable[int], calls: Iterable[tuple[int, float]]) -> list[int]:
        """Requests that the worker does not know although they were sent before the ping that it answers.

        Args:
            live: the requests that its ``Pong`` lists. What has ended was answered before the ``Pong``.
            calls: our unfinished (request id, time of sending).
        """
        sent_at = self._sent_at.pop(ping_id, None)
        if sent_at is None:
            return []
        known = set(live)
        return [request_id for request_id, at in calls if at < sent_at and request_id not in known]
