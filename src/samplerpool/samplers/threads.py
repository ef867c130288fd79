"""Work on threads for those who wait in an event loop, and may stop waiting at any moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from samplerpool.client.delivery import Delivery

T = TypeVar("T")

ITEMS_AHEAD = 1024
"""So many items of a generator may wait to be taken."""


async def done_or_undone(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """What some blocking work returns. If nobody waits for it any more when it is done, it is undone.

    Args:
        work: done on a thread.
        undo: called there, or on another one, with what the work returned.
    """
    lock = threading.Lock()
    given_up = False
    results: list[T] = []

    def run() -> T:
        result = work()
        with lock:
            wanted = not given_up
            results.append(result)
        if not wanted:
            undo(result)
        return result

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        with lock:
            given_up = True
            late = list(results)
        for result in late:
            await asyncio.to_thread(undo, result)
        raise


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def from_thread(generator: Generator[T, None, object], stop: Callable[[], None]) -> AsyncGenerator[T, None]:
    """A generator that blocks, run on a thread of its own. It goes on while its items are taken, some ahead of that.

    Args:
        generator: closed at the end, however that comes.
        stop: called when no more of it is wanted, from another thread than the generator's, which may be waiting.
    """
    queue: asyncio.Queue[_Item[T] | _End] = asyncio.Queue()
    delivery = Delivery(asyncio.get_running_loop())
    room = threading.Semaphore(ITEMS_AHEAD)
    left = threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            with closing(generator):
                for value in generator:
                    room.acquire()
                    if left.is_set():
                        break
                    delivery.put(queue, _Item(value))
        except BaseException as raised:  # it is the consumer's, whatever it is
            error = raised
        delivery.put(queue, _End(error))

    threading.Thread(target=run, name="samplerpool-batch", daemon=True).start()
    got: _Item[T] | _End | None = None
    try:
        while isinstance(got := await queue.get(), _Item):
            room.release()
            yield got.value
        if got.error is not None:
            raise got.error
    finally:
        if not isinstance(got, _End):
            left.set()
            stop()
            room.release()
            while not isinstance(await queue.get(), _End):
                pass
