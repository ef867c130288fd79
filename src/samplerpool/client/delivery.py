"""From threads to what waits in an event loop: one wake-up for all that has come since the last one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any


class Delivery:
    """The way into one event loop. ``put`` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._on_its_way = False

    def leads_into(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is this loop's."""
        return self._loop is loop

    def put(self, queue: asyncio.Queue[Any], item: Any) -> None:
        """Put something into a queue (without a bound) of the loop."""
        self._items.append((queue, item))
        if not self._on_its_way:
            self._on_its_way = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._on_its_way = False  # first: what comes from here on wakes the loop again, if need be for nothing
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)
