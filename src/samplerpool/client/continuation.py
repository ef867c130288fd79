"""One answer, whose worker may be another one halfway. Pure: calls that have ended in, the next one out.

What was received is final. The next worker gets the rendered prompt, the tokens so far, the seed, and how many
characters were delivered, and goes on as if it had generated them itself: the text is the one that would have come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from samplerpool.client.interruptions import setback
from samplerpool.client.response import Call
from samplerpool.client.routing import WorkerView
from samplerpool.data.media import has_media
from samplerpool.errors import (
    EngineBroken,
    QueueFull,
    RequestLost,
    Retryable,
    SamplerPoolError,
    WorkerDied,
    WorkerDraining,
    WrongIncarnation,
)
from samplerpool.types import Message, RenderedPrompt, TokenLogprobs
from samplerpool.wire.messages import ChatPrompt, Prompt, TextPrompt, TokenPrompt

MAX_DEATHS = 3
"""Workers that may die over one request. It may be what kills them."""

MAX_FRUITLESS = 10
"""Times in a row that it may be sent again without a token having come."""

_SENT_AGAIN = (WorkerDied, RequestLost, Retryable)
_LEAVING = (WorkerDraining, WrongIncarnation)
_REFUSALS = (*_LEAVING, QueueFull)


class ContinuedAnswer:
    """See the module's docstring. Has the fields of the ``Call`` that it would be, had nothing happened.

    Args:
        prompt: what to answer.
        params: the sampling parameters given, by name.

    ``error`` and ``finish_reason`` are those of the end; ``worker`` is the latest; ``calls`` is how many there were;
    ``home`` is the worker that has the tokens of an answer which goes on, or None. ``text`` does not hold the prompt's
    ``prefill``, and ``message`` does.
    """

    def __init__(self, prompt: Prompt, params: Mapping[str, Any]) -> None:
        self.prompt = prompt
        self.params = params
        self.home: int | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self.message: Message | None = None
        self.rendered: RenderedPrompt | None = None
        self.error: SamplerPoolError | None = None
        self.done = False
        self.calls = 0
        self._ended: list[Call] = []
        self._current: Call | None = None
        self._deaths = 0
        self._fruitless = 0
        self._avoided: dict[tuple[int, str], SamplerPoolError] = {}

    @classmethod
    def going_on(cls, answer: ContinuedAnswer, params: Mapping[str, Any]) -> ContinuedAnswer:
        """An answer that begins with all tokens of one that has ended, whose text is then told anew: how a text ends
        that goes on is another matter than how it ended.

        Args:
            params: for all of it. A ``seed`` among them is for the tokens to come.
        """
        new = cls(answer.prompt, params)
        if answer.token_ids:
            before = Call(answer.prompt, params)
            before.accepted, before.prompt_ids, before.reasoning_open = True, answer.prompt_ids, answer.reasoning_open
            before.seed = params.get("seed", answer.seed)
            before.token_ids, before.logprobs = answer.token_ids, answer.logprobs
            before.worker = new.home = answer.worker
            new._ended = [before]
        elif answer.seed is not None:
            new.params = {"seed": answer.seed, **params}
        return new

    # ---- what has come --------------------------------------------------------------------------------------------

    def _all(self) -> list[Call]:
        return [*self._ended, *([self._current] if self._current else [])]

    def _accepted(self) -> Call | None:
        return next((call for call in self._all() if call.accepted), None)

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Of the rendered prompt, once a worker has told them."""
        call = self._accepted()
        return call.prompt_ids if call else ()

    @property
    def seed(self) -> int | None:
        """With which it is drawn, once a worker has told it."""
        call = self._accepted()
        return call.seed if call else None

    @property
    def reasoning_open(self) -> bool:
        """Whether it begins inside its reasoning; known when the first text comes."""
        call = self._accepted()
        return call is not None and call.reasoning_open

    @property
    def setback(self) -> str:
        """Why the latest worker does not go on, in a few words; empty if there was none, or it has not failed."""
        last = self._ended[-1] if self._ended else None
        return "" if last is None or last.error is None else setback(last.worker, last.error)

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(call.text for call in self._all())

    @property
    def token_ids(self) -> list[int]:
        """All generated tokens so far."""
        return [token_id for call in self._all() for token_id in call.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        """One entry a token, where they were asked for."""
        parts = [call.logprobs for call in self._all() if call.logprobs is not None]
        return [entry for part in parts for entry in part] if parts else None

    def logprobs_behind(self, count: int) -> list[TokenLogprobs]:
        """Those of the tokens behind the first ``count``, for whoever follows an answer without looking at all of it
        each time."""
        found: list[TokenLogprobs] = []
        for call in self._all():
            entries = call.logprobs or []
            found += entries[count:]
            count = max(0, count - len(entries))
        return found

    @property
    def worker(self) -> int:
        """The latest worker's number."""
        calls = self._all()
        return calls[-1].worker if calls else -1

    # ---- how it goes on -------------------------------------------------------------------------------------------

    def next_prompt(self) -> tuple[Prompt, Mapping[str, Any]]:
        """What to send now, and with which parameters."""
        if not self.prompt_ids:
            return self.prompt, self.params
        return self._continued(), {**self.params, "seed": self.seed}

    def _continued(self) -> TokenPrompt:
        prompt, ids, told = self.prompt, self.token_ids, len(self.text)
        match prompt:
            case ChatPrompt():
                media = prompt if has_media(prompt.messages) else None
                return TokenPrompt(self.prompt_ids, ids, told, media, prompt.prefill)
            case TokenPrompt():
                told += prompt.delivered_chars
                return replace(prompt, generated_ids=[*prompt.generated_ids, *ids], delivered_chars=told)
            case TextPrompt():
                return TokenPrompt(self.prompt_ids, ids, told, goes_on=True)

    def begun(self, call: Call) -> None:
        """It was sent; what comes is to be found in this call."""
        self._current = call
        self.calls += 1

    def avoids(self, worker: WorkerView) -> bool:
        """Whether that process has refused the request already."""
        return (worker.index, worker.incarnation) in self._avoided

    def hopeful(self, workers: Sequence[WorkerView]) -> bool:
        """Whether there will be a worker to send it to, where there is none now."""
        return any(
            worker.coming or isinstance(self._avoided.get((worker.index, worker.incarnation)), _LEAVING)
            for worker in workers
        )

    def ended(self, call: Call, incarnation: str = "") -> None:
        """The call has ended: so has the answer, or it is to be sent again.

        Args:
            incarnation: of the process that it was sent to.
        """
        self._current = None
        self._ended.append(call)
        self.completion_tokens = len(self.token_ids)
        if call.error is None:
            self.done, self.finish_reason, self.message = True, call.finish_reason, call.message
            self.prompt_tokens, self.rendered = call.prompt_tokens, call.rendered
            return
        self._failed(call, call.error, incarnation)

    def stopped(self, call: Call, text: str) -> None:
        """Whoever asked for it wants no more of it.

        Args:
            text: what was taken of this call's text; the rest was never seen.
        """
        self._current = None
        self._ended.append(call.cut_at(text))
        self.completion_tokens, self.prompt_tokens = len(self.token_ids), len(self.prompt_ids)
        self.done, self.finish_reason = True, "aborted"

    def _failed(self, call: Call, error: SamplerPoolError, incarnation: str) -> None:
        self._fruitless = 0 if call.token_ids else self._fruitless + 1
        self._deaths += is_death(error)
        if not isinstance(error, _SENT_AGAIN):
            self.fail(error)
        elif self._deaths >= MAX_DEATHS:
            text = f"{error.message} That happened {self._deaths} times under this request; it is not sent again."
            self.fail(type(error)(text, **error.data))
        elif self._fruitless >= MAX_FRUITLESS:
            self.fail(type(error)(f"{error.message} Given up after {self._fruitless} times.", **error.data))
        elif isinstance(error, _REFUSALS):
            self._avoided[call.worker, incarnation] = error

    def nobody_left(self, reasons: str) -> None:
        """There is no worker to send it to, and none will come."""
        refusals = [error for error in self._avoided.values() if not isinstance(error, _LEAVING)]
        if refusals:
            self.fail(refusals[-1])
        else:
            last = self._ended[-1].error if self._ended else None
            before = f"{last.message} " if isinstance(last, WorkerDied) else ""
            self.fail(WorkerDied(f"{before}No worker of the pool is left. {reasons}".strip()))

    def fail(self, error: SamplerPoolError) -> None:
        """End with an error, which tells what was received."""
        error.data["text"] = self.text
        self.error, self.finish_reason, self.done = error, "error", True


def is_death(error: SamplerPoolError) -> bool:
    """Whether a request that ended so may have been what ended its worker, or all that the worker did."""
    return isinstance(error, (WorkerDied, EngineBroken)) and error.data.get("requested") is not True
