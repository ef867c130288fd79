"""What leads from threads into an event loop, and what is new of a text that is told again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.client.async_answering import AsyncAnswering
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.delivery import Delivery
from samplerpool.client.response import Call
from samplerpool.client.routing import WorkerView
from samplerpool.client.unseen import Unseen
from samplerpool.samplers.threads import ITEMS_AHEAD, done_or_undone, from_thread
from samplerpool.wire.messages import Accepted, Finished, TextPrompt, Tokens


async def test_all_that_threads_put_comes_in_order() -> None:
    delivery = Delivery(asyncio.get_running_loop())
    queue: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def put(thread: int) -> None:
        for number in range(2000):
            delivery.put(queue, (thread, number))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    got = [await queue.get() for _ in range(8000)]
    for number in range(4):
        assert [item for thread, item in got if thread == number] == list(range(2000))


class AtOnce:
    """A connection whose worker has answered before anyone looks."""

    def workers(self) -> list[WorkerView]:
        return [WorkerView(0, True, 0, 0)]

    def submit(self, worker: int, calls: Sequence[Call]) -> None:
        (call,) = calls
        letters = [Tokens(1, at, [at], letter) for at, letter in enumerate("abc")]
        for frame in (Accepted(1, [0], 7), *letters, Finished(1, "stop", 1, 3)):
            call.feed(frame)
            call.on_update(call)


async def test_what_has_come_by_the_time_that_somebody_looks_is_one_piece() -> None:
    connection: Any = AtOnce()
    answer = ContinuedAnswer(TextPrompt("x"), {})
    assert [piece async for piece in AsyncAnswering(connection).stream(answer, timeout_s=1.0)] == ["abc"]
    assert (answer.text, answer.finish_reason) == ("abc", "stop")


async def test_what_is_put_into_a_closed_loop_is_dropped() -> None:
    loop = asyncio.new_event_loop()
    delivery = Delivery(loop)
    assert delivery.leads_into(loop)
    loop.close()
    delivery.put(asyncio.Queue(), 1)


@given(st.text(), st.lists(st.text(min_size=1)))
def test_what_is_new_of_a_text_is_all_behind_what_was_shown(shown: str, more: list[str]) -> None:
    whole = shown + "".join(more)
    for pieces in ([shown, *more] if shown else more, list(whole)):
        unseen = Unseen(shown)
        assert "".join([*map(unseen.new, pieces), unseen.rest()]) == "".join(more)


async def test_a_generator_on_a_thread_stays_a_bounded_way_ahead() -> None:
    made: list[int] = []

    def numbers() -> Generator[int, None, None]:
        for number in range(ITEMS_AHEAD * 3):
            made.append(number)
            yield number

    stream = from_thread(numbers(), lambda: None)
    assert await anext(stream) == 0
    await asyncio.sleep(0.2)
    assert len(made) <= ITEMS_AHEAD + 3
    assert [number async for number in stream] == list(range(1, ITEMS_AHEAD * 3))


async def test_a_generator_that_is_left_is_stopped_and_closed() -> None:
    stopped = threading.Event()
    closed = threading.Event()

    def one_then_wait() -> Generator[int, None, None]:
        try:
            yield 1
            assert stopped.wait(10)
            yield 2
        finally:
            closed.set()

    stream = from_thread(one_then_wait(), stopped.set)
    assert await anext(stream) == 1
    await stream.aclose()
    assert closed.is_set()


async def test_an_error_on_the_thread_is_raised_behind_what_came_before() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ValueError("x")

    stream = from_thread(failing(), lambda: None)
    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="x"):
        await anext(stream)


async def test_what_nobody_waits_for_any_more_is_undone() -> None:
    go, undone = threading.Event(), threading.Event()

    def work() -> int:
        go.wait(10)
        return 7

    task = asyncio.create_task(done_or_undone(work, lambda result: undone.set() if result == 7 else None))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert await asyncio.to_thread(undone.wait, 10)
    assert await done_or_undone(lambda: 3, lambda _: pytest.fail("it was wanted")) == 3
