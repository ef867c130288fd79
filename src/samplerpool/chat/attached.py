"""Who answers: a sampler over a pool, all of its workers or one. ``/attach`` changes it; a chat ends only its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from samplerpool.client.facts import WorkerFacts
from samplerpool.errors import SamplerPoolError, UsageError
from samplerpool.types import Message, RenderedPrompt, TokenLogprobs


class Ending(Protocol):
    """How a request goes, or ended: ``client.continuation.ContinuedAnswer`` has it."""

    @property
    def text(self) -> str:
        """All text so far."""

    @property
    def error(self) -> SamplerPoolError | None:
        """Why it failed, if it did."""

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None where it was stopped."""

    @property
    def message(self) -> Message | None:
        """The parsed answer, once it has ended."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Of the rendered prompt."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the rendered prompt; 0 where it is not known."""

    @property
    def seed(self) -> int | None:
        """With which it was drawn."""

    @property
    def reasoning_open(self) -> bool:
        """Whether it begins inside its reasoning; known when the first text comes."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The answer's tokens so far."""

    @property
    def logprobs(self) -> Sequence[TokenLogprobs] | None:
        """One entry a token, where they were asked for."""

    @property
    def worker(self) -> int:
        """The number of the worker that answered last."""


class ChatSampler(Protocol):
    """What the chat needs of a sampler; ``SyncSampler`` is one."""

    @property
    def last(self) -> Ending | None:
        """How this thread's latest ``generate`` ended, where it is known."""

    def generate(
        self, messages: Sequence[Message], tools: str | None = None, **options: Any
    ) -> Generator[str, None, None]:
        """Yield the answer's text as it comes; closing the generator stops the request."""

    def go_on(self, answer: Any, more_tokens: int, **changes: Any) -> Generator[str, None, None]:
        """Yield what comes behind an answer that was stopped or cut off."""

    def render(
        self,
        messages: Sequence[Message],
        tools: str | None = None,
        *,
        prefill: str = "",
        template_options: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt as the model reads it."""

    def pieces(self, token_ids: Sequence[int]) -> Sequence[str]:
        """What each token stands for."""

    def workers(self) -> Sequence[WorkerFacts]:
        """What is known of each worker."""


class OpenSampler(ChatSampler, Protocol):
    """A sampler that ``/attach`` has opened."""

    def close(self) -> None:
        """Let go of the pool, which goes on."""


class Attached:
    """The sampler that answers now, and the worker that alone is asked.

    Args:
        sampler: from the start; stays its owner's.
        connect: attaches to a pool, by name or connection file; None where that cannot be.

    ``worker`` is the number of that worker, or None for all.
    """

    def __init__(self, sampler: ChatSampler, connect: Callable[[str], OpenSampler] | None = None) -> None:
        self.sampler = sampler
        self.worker: int | None = None
        self._connect = connect
        self._opened: OpenSampler | None = None
        self._tags: Mapping[str, Sequence[str]] | None = None

    @property
    def answer_tags(self) -> Mapping[str, Sequence[str]] | None:
        """The tags around reasoning and tool calls in answers, as a worker told them; None where none has yet."""
        if self._tags is None:
            told = [facts.answer_tags for facts in self.sampler.workers() if facts.answered]
            self._tags = told[0] if told else None
        return self._tags

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The sampling parameters that the pool was started with, as a worker tells them; none where none does."""
        meant = [facts for facts in self.sampler.workers() if self.worker in (None, facts.index)]
        return next((facts.defaults for facts in meant if facts.defaults), {})

    @property
    def where(self) -> dict[str, int]:
        """As an argument of ``generate``: which worker is meant, if not any."""
        return {} if self.worker is None else {"worker": self.worker}

    def to_worker(self, index: int) -> None:
        """Ask only this worker from now on.

        Raises:
            UsageError: there is no such worker here.
        """
        self.check_worker(index)
        self.worker = index

    def to_all(self) -> None:
        """Ask any worker from now on."""
        self.worker = None

    def to_pool(self, name: str) -> None:
        """Ask the workers of another pool from now on.

        Raises:
            PoolNotFound, TransportError: it cannot be reached; nothing is changed then.
        """
        if self._connect is None:
            raise UsageError("This chat has one model only and cannot be attached to a pool.")
        opened = self._connect(name)
        self.close()
        self.sampler = self._opened = opened
        self.worker = self._tags = None

    def check_worker(self, index: int) -> None:
        """Refuse a number that no worker has.

        Raises:
            UsageError
        """
        known = [facts.index for facts in self.sampler.workers()]
        if index not in known:
            there = ", ".join(map(str, known)) or "none"
            raise UsageError(f"There is no worker {index} here, only {there}. /attach POOL leads to another pool.")

    def close(self) -> None:
        """Let go of a pool that ``to_pool`` attached to. The pool goes on."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
