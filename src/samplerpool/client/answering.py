"""Answers over a pool's connection: which worker is asked, what is waited for, who goes on where one stopped."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any

from samplerpool.client.connection import PoolConnection
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.facts import WorkerFacts, worker_facts
from samplerpool.client.interruptions import going_on, waiting
from samplerpool.client.response import Call
from samplerpool.client.routing import Affinity, WorkerView, choose
from samplerpool.errors import UsageError
from samplerpool.types import RenderedPrompt
from samplerpool.wire.messages import ChatPrompt, Purpose, TokenPrompt

OnWait = Callable[[str], None]


class Answering:
    """Asks the workers of one connection. Thread-safe.

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
        known = [view.index for view in self._connection.workers()]
        if worker is not None and worker not in known:
            there_are = ", ".join(map(str, known)) or "none"
            raise UsageError(f"The pool has no worker {worker!r}; it has: {there_are}.")

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
        tell = on_wait or _say_nothing
        while (chosen := self._worker_for(answer, worker, timeout_s, tell)) is not None:
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

        prompt, params = answer.next_prompt()
        streamed = purpose == "answer"
        call = Call(prompt, params, stream=streamed, parse=streamed, purpose=purpose, on_update=on_update)
        answer.begun(call)
        shown: list[str] = []
        try:
            self._connection.submit(worker.index, [call])
            while (delta := deltas.get()) is not None:
                shown.append(delta)
                yield delta
        except BaseException:  # the consumer wants no more; what came meanwhile was never seen
            if not call.done:
                self._connection.abort([call])
            answer.stopped(call, "".join(shown))
            raise
        answer.ended(call, worker.incarnation)

    def _worker_for(
        self, answer: ContinuedAnswer, only: int | None, timeout_s: float, tell: OnWait
    ) -> WorkerView | None:
        """The worker to send it to; one that is coming back is waited for. Without any, the answer ends."""
        messages = answer.prompt.messages if isinstance(answer.prompt, ChatPrompt) else ()
        preferred = self._affinity.preferred(messages) if answer.home is None else answer.home
        chosen: list[WorkerView] = []

        def decided(views: list[WorkerView]) -> bool:
            meant = _meant(views, only)
            candidates = [view for view in meant if not answer.avoids(view)]
            index = choose(candidates, preferred=preferred)
            chosen[:] = [view for view in candidates if view.index == index]
            return bool(chosen) or not answer.hopeful(meant)

        if not decided(views := self._connection.workers()):
            tell(waiting(answer.setback, answer.worker, _meant(views, only)))
            self._connection.wait_until(decided, timeout_s)
        if not chosen:
            meant = _meant(self._connection.workers(), only)
            answer.nobody_left(" ".join(view.down_reason for view in meant if view.down_reason))
            return None
        if answer.setback:
            tell(going_on(answer.setback, answer.worker, chosen[0].index))
        if messages:
            self._affinity.remember(messages, chosen[0].index)
        return chosen[0]

    def rendered(
        self, prompt: ChatPrompt | TokenPrompt, *, timeout_s: float, worker: int | None = None
    ) -> RenderedPrompt:
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


def behind(shown: str, stream: Generator[str, None, None]) -> Generator[str, None, None]:
    """The text behind what was shown, of a stream that begins anew.

    Where the end of ``shown`` was cut short (half a character, or the first letters of a stop string), what stands
    there now is part of it.
    """
    with closing(stream):
        received = ""
        for delta in stream:
            received += delta
            if len(received) >= len(shown):
                break
        if rest := received[_shared(received, shown) :]:
            yield rest
        yield from stream


def _shared(first: str, second: str) -> int:
    """How many characters they begin with are the same."""
    different = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


def _meant(views: list[WorkerView], only: int | None) -> list[WorkerView]:
    return [view for view in views if only is None or view.index == only]


def _say_nothing(text: str) -> None:
    """Nobody asked."""
