"""Answers over a pool's connection: which worker is asked, what is waited for, who goes on where one stopped."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

from samplerpool.client.connection import PoolConnection
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.facts import WorkerFacts, worker_facts
from samplerpool.client.response import Call
from samplerpool.client.routing import Affinity, WorkerView
from samplerpool.client.search import Search, check_worker
from samplerpool.client.unseen import Unseen
from samplerpool.types import RenderedPrompt
from samplerpool.wire.messages import Prompt, Purpose

OnWait = Callable[[str], None]


class Asking:
    """What asking the workers of one connection has in common, whoever waits for their answers, and how.

    Args:
        connection: to them; stays its owner's.
    """

    def __init__(self, connection: PoolConnection) -> None:
        self._connection = connection
        self._affinity = Affinity()
        self._told: dict[int, Mapping[str, Any]] = {}

    def check_worker(self, worker: int | None) -> None:
        """Refuse a worker that the pool does not have.

        Raises:
            UsageError
        """
        check_worker(self._connection.workers(), worker)

    def facts(self, timeout_s: float) -> list[WorkerFacts]:
        """What the workers tell of themselves, in one round trip to all of them.

        Args:
            timeout_s: how long to wait; who has not answered by then is shown as it was.
        """
        views = self._connection.workers()
        up = [view.index for view in views if view.up]
        told = self._connection.descriptions(up, timeout_s)
        self._told.update(told)
        return [worker_facts(view, self._told.get(view.index, {}), answered=view.index in told) for view in views]

    def _begun(self, answer: ContinuedAnswer, purpose: Purpose, on_update: Callable[[Call], None]) -> Call:
        """The next call of an answer."""
        prompt, params = answer.next_prompt()
        streamed = purpose == "answer"
        call = Call(prompt, params, stream=streamed, parse=streamed, purpose=purpose, on_update=on_update)
        answer.begun(call)
        return call

    def _given_up(self, answer: ContinuedAnswer, call: Call, shown: str) -> None:
        """Whoever asked wants no more; what came meanwhile was never seen."""
        if not call.done:
            self._connection.abort([call])
        answer.stopped(call, shown)


class Answering(Asking):
    """Asks the workers of one connection, and waits where it is called. Thread-safe."""

    def stream(
        self,
        answer: ContinuedAnswer,
        *,
        timeout_s: float,
        worker: int | None = None,
        on_wait: OnWait | None = None,
        purpose: Purpose = "answer",
    ) -> Generator[str, None, None]:
        """Get an answer, from several workers if need be. Closing the generator early aborts the request.

        Args:
            answer: takes what comes.
            timeout_s: how long to wait for a worker that is coming back.
            worker: ask only this one, and wait for it.
            on_wait: told in a few words when a worker has to be waited for, and when an answer goes on after a setback.

        Yields:
            Text as it comes.
        """
        tell = on_wait or say_nothing
        while (chosen := self._worker_for(Search(answer, worker, self._affinity), timeout_s, tell)) is not None:
            yield from self._call(answer, chosen, purpose)
            if answer.done:
                break
        if answer.error is not None:
            raise answer.error

    def _call(self, answer: ContinuedAnswer, worker: WorkerView, purpose: Purpose) -> Generator[str, None, None]:
        """One call to one worker, with the text that comes of it."""
        deltas: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def on_update(call: Call) -> None:
            if call.delta:
                deltas.put(call.delta)
            if call.done:
                deltas.put(None)

        call = self._begun(answer, purpose, on_update)
        shown: list[str] = []
        try:
            self._connection.submit(worker.index, [call])
            while (delta := deltas.get()) is not None:
                shown.append(delta)
                yield delta
        except BaseException:
            self._given_up(answer, call, "".join(shown))
            raise
        answer.ended(call, worker.incarnation)

    def _worker_for(self, search: Search, timeout_s: float, tell: OnWait) -> WorkerView | None:
        """The worker to send it to; one that is coming back is waited for. Without any, the answer ends."""
        if not search.decided(views := self._connection.workers()):
            tell(search.waiting(views))
            self._connection.wait_until(search.decided, timeout_s)
        chosen = search.concluded(self._connection.workers())
        if said := search.going_on():
            tell(said)
        return chosen

    def rendered(self, prompt: Prompt, *, timeout_s: float, worker: int | None = None) -> RenderedPrompt:
        """The tokens of a prompt, as a worker tells them.

        Raises:
            RequestError: it cannot be rendered.
            WorkerDied: no worker is left.
        """
        answer = ContinuedAnswer(prompt, {})
        for _ in self.stream(answer, timeout_s=timeout_s, worker=worker, purpose="render"):
            pass
        assert answer.rendered is not None
        return answer.rendered


def behind(shown: str, stream: Generator[str, None, None]) -> Generator[str, None, None]:
    """The text behind what was shown, of a stream that begins anew."""
    unseen = Unseen(shown)
    with closing(stream):
        for delta in stream:
            if text := unseen.new(delta):
                yield text
        if text := unseen.rest():
            yield text


def say_nothing(text: str) -> None:
    """Nobody asked."""
