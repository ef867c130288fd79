"""Answers over a pool's connection for those who wait in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from samplerpool.client.answering import Asking, OnWait, say_nothing
from samplerpool.client.connection import PoolConnection
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.delivery import Delivery
from samplerpool.client.response import Call
from samplerpool.client.routing import WorkerView
from samplerpool.client.search import Search
from samplerpool.client.unseen import Unseen
from samplerpool.types import RenderedPrompt
from samplerpool.wire.messages import Prompt, Purpose


class AsyncAnswering(Asking):
    """Asks the workers of one connection without blocking the event loop that it is called in, whichever that is."""

    def __init__(self, connection: PoolConnection) -> None:
        super().__init__(connection)
        self._delivery: Delivery | None = None

    async def stream(
        self,
        answer: ContinuedAnswer,
        *,
        timeout_s: float,
        worker: int | None = None,
        on_wait: OnWait | None = None,
        purpose: Purpose = "answer",
    ) -> AsyncGenerator[str, None]:
        """Get an answer, from several workers if need be. Closing the generator early, and cancelling who waits for it,
        aborts the request.

        Args:
            answer: see ``Answering.stream``; and so all others.

        Yields:
            Text as it comes.
        """
        tell = on_wait or say_nothing
        while (chosen := await self._worker_for(Search(answer, worker, self._affinity), timeout_s, tell)) is not None:
            async with aclosing(self._call(answer, chosen, purpose)) as deltas:
                async for delta in deltas:
                    yield delta
            if answer.done:
                break
        if answer.error is not None:
            raise answer.error

    async def _call(self, answer: ContinuedAnswer, worker: WorkerView, purpose: Purpose) -> AsyncGenerator[str, None]:
        """One call to one worker, with the text that comes of it."""
        deltas: asyncio.Queue[str | None] = asyncio.Queue()
        put = partial(self._delivery_here().put, deltas)

        def on_update(call: Call) -> None:
            if call.delta:
                put(call.delta)
            if call.done:
                put(None)

        call = self._begun(answer, purpose, on_update)
        shown: list[str] = []
        try:
            self._connection.submit(worker.index, [call])
            delta: str | None = ""
            while delta is not None:
                # All that has come: whoever is slower than the worker gets longer pieces, and keeps the loop no longer.
                parts = [delta := await deltas.get()]
                while not deltas.empty():
                    parts.append(delta := deltas.get_nowait())
                if text := "".join(part for part in parts if part is not None):
                    shown.append(text)
                    yield text
        except BaseException:
            self._given_up(answer, call, "".join(shown))
            raise
        answer.ended(call, worker.incarnation)

    def _delivery_here(self) -> Delivery:
        loop = asyncio.get_running_loop()
        delivery = self._delivery  # once: the loop of another thread may put its own there at any moment
        if delivery is None or not delivery.leads_into(loop):
            self._delivery = delivery = Delivery(loop)
        return delivery

    async def _worker_for(self, search: Search, timeout_s: float, tell: OnWait) -> WorkerView | None:
        """The worker to send it to; one that is coming back is waited for. Without any, the answer ends."""
        if not search.decided(views := self._connection.workers()):
            tell(search.waiting(views))
            await self._wait_until(lambda: search.decided(self._connection.workers()), timeout_s)
        chosen = search.concluded(self._connection.workers())
        if said := search.going_on():
            tell(said)
        return chosen

    async def _wait_until(self, satisfied: Callable[[], bool], timeout_s: float) -> None:
        changes: asyncio.Queue[None] = asyncio.Queue()
        with self._connection.listening(partial(self._delivery_here().put, changes, None)):
            try:
                async with asyncio.timeout(timeout_s):
                    while not satisfied():
                        await changes.get()
            except TimeoutError:
                return

    async def rendered(self, prompt: Prompt, *, timeout_s: float, worker: int | None = None) -> RenderedPrompt:
        """The tokens of a prompt, as a worker tells them.

        Raises:
            RequestError: it cannot be rendered.
            WorkerDied: no worker is left.
        """
        answer = ContinuedAnswer(prompt, {})
        async for _ in self.stream(answer, timeout_s=timeout_s, worker=worker, purpose="render"):
            pass
        assert answer.rendered is not None
        return answer.rendered


async def behind(shown: str, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The text behind what was shown, of a stream that begins anew."""
    unseen = Unseen(shown)
    async with aclosing(stream):
        async for delta in stream:
            if text := unseen.new(delta):
                yield text
        if text := unseen.rest():
            yield text
