"""One request's life on the client's side. Pure: frames in, fields and a verdict out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samplerpool.errors import ProtocolError, SamplerPoolError
from samplerpool.types import Message, PromptCount, RenderedPrompt, TokenLogprobs
from samplerpool.wire.messages import (
    Accepted,
    Completed,
    Counted,
    Failed,
    Finished,
    Prompt,
    Purpose,
    Rendered,
    TokenPrompt,
    Tokens,
)

_FRAMES: Mapping[Purpose, frozenset[type]] = {
    "answer": frozenset({Accepted, Tokens, Finished, Completed, Failed}),
    "count": frozenset({Counted, Failed}),
    "render": frozenset({Rendered, Failed}),
}


def _ignore(call: Call) -> None:
    """Nobody is told."""


class Call:
    """A request to one worker, and what has come back of it.

    Args:
        prompt: what to answer.
        params: the sampling parameters given, by name.
        priority: 0 interactive, 1 batch.
        stream: text is wanted as it comes.
        parse: the parsed message is wanted at the end.
        purpose: whether an answer is wanted, or what its preparation tells, or the prompt's tokens; the last two are
            not to be streamed.
        on_update: called on the I/O thread, so it must be quick: after each arrival with ``stream``, else at the end.

    The fields fill up as frames come; ``done`` is set last, once, with ``error`` if the request failed. ``delta`` is
    the text of the latest arrival; ``logprobs`` is None unless the request asks for them. Without ``stream`` all comes
    at the end, but for ``prompt_ids`` and ``token_ids``, which stay empty; and ``message`` is None if it is but the
    text. For another purpose all that comes is ``count`` or ``rendered``, and ``prompt_tokens``.
    """

    __slots__ = (
        "accepted",
        "completion_tokens",
        "count",
        "delta",
        "done",
        "error",
        "finish_reason",
        "logprobs",
        "message",
        "on_update",
        "params",
        "parse",
        "priority",
        "prompt",
        "prompt_ids",
        "prompt_tokens",
        "purpose",
        "reasoning_open",
        "rendered",
        "request_id",
        "seed",
        "stream",
        "submitted_at",
        "texts",
        "token_ids",
        "worker",
    )

    def __init__(
        self,
        prompt: Prompt,
        params: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        stream: bool = True,
        parse: bool = False,
        purpose: Purpose = "answer",
        on_update: Callable[[Call], None] = _ignore,
    ) -> None:
        self.prompt = prompt
        self.params = params or {}
        self.priority = priority
        self.stream = stream
        self.parse = parse
        self.purpose: Purpose = purpose
        self.count: PromptCount | None = None
        self.rendered: RenderedPrompt | None = None
        self.on_update = on_update
        self.worker = -1
        self.request_id = 0
        self.submitted_at = 0.0
        self.accepted = False
        self.prompt_ids: Sequence[int] = ()
        self.seed: int | None = None
        self.reasoning_open = False
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None
        self.texts: list[str] = []
        self.delta = ""
        self.finish_reason: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.message: Message | None = None
        self.error: SamplerPoolError | None = None
        self.done = False

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.texts)

    @property
    def tokens_asked(self) -> int:
        """An upper bound of the answer's length, to balance by."""
        asked = self.params.get("max_new_tokens")
        return asked if isinstance(asked, int) else 128

    def feed(self, reply: Accepted | Tokens | Finished | Completed | Counted | Rendered | Failed) -> None:
        """Take one frame.

        Raises:
            ProtocolError: a gap, a repeat, or a frame out of order. The call is then over as far as it is concerned.
        """
        if type(reply) not in _FRAMES[self.purpose]:
            raise ProtocolError(f"Request {self.request_id} got a {type(reply).__name__} that it did not ask for.")
        if type(reply) is Tokens:
            self._tokens(reply)
        elif type(reply) is Completed:
            self._completed(reply)
        elif isinstance(reply, Accepted):
            if self.accepted:
                raise ProtocolError(f"Request {self.request_id} was accepted twice.")
            self.accepted, self.prompt_ids, self.seed = True, reply.prompt_ids, reply.seed
            self.reasoning_open = reply.reasoning_open
            self.delta = ""
        elif isinstance(reply, Finished):
            self._finished(reply)
        elif isinstance(reply, Counted):
            self.count, self.prompt_tokens = reply.count, reply.count.prompt_tokens
            self.finish_reason = "stop"
            self.done = True
        elif isinstance(reply, Rendered):
            self.rendered, self.prompt_tokens = reply.prompt, len(reply.prompt.token_ids)
            self.finish_reason = "stop"
            self.done = True
        else:
            assert isinstance(reply, Failed)
            self.fail(SamplerPoolError.from_wire(reply.error, reply.message, dict(reply.data)))

    def _tokens(self, reply: Tokens) -> None:
        expected = self._received()
        if reply.index != expected:
            raise ProtocolError(
                f"Request {self.request_id}: tokens from {reply.index} came where {expected} was expected."
            )
        self.token_ids.extend(reply.token_ids)
        if reply.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(reply.logprobs)
        self.delta = reply.text
        if reply.text:
            self.texts.append(reply.text)

    def _received(self) -> int:
        before = len(self.prompt.generated_ids) if isinstance(self.prompt, TokenPrompt) else 0
        return before + len(self.token_ids)

    def _finished(self, reply: Finished) -> None:
        if reply.completion_tokens != self._received():
            raise ProtocolError(
                f"Request {self.request_id} finished with {reply.completion_tokens} tokens; {self._received()} came."
            )
        self.finish_reason = reply.finish_reason
        self.prompt_tokens = reply.prompt_tokens
        self.completion_tokens = reply.completion_tokens
        self.message = reply.message
        self.delta = ""
        self.done = True

    def _completed(self, reply: Completed) -> None:
        if self.accepted:
            raise ProtocolError(f"Request {self.request_id} was accepted as a stream, and came as a whole.")
        self.seed = reply.seed
        self.texts = [reply.text]
        self.logprobs = None if reply.logprobs is None else list(reply.logprobs)
        self.finish_reason = reply.finish_reason
        self.prompt_tokens = reply.prompt_tokens
        self.completion_tokens = reply.completion_tokens
        self.message = reply.message
        self.done = True

    def cut_at(self, text: str) -> Call:
        """A copy as it is now, which nothing is added to any more.

        Args:
            text: the part of its text that counts.
        """
        copy = Call(self.prompt, self.params)
        copy.worker, copy.accepted, copy.reasoning_open = self.worker, self.accepted, self.reasoning_open
        copy.prompt_ids, copy.seed, copy.texts = self.prompt_ids, self.seed, [text]
        copy.token_ids = list(self.token_ids)
        copy.logprobs = None if self.logprobs is None else self.logprobs[: len(copy.token_ids)]
        copy.finish_reason, copy.done = "aborted", True
        return copy

    def fail(self, error: SamplerPoolError) -> None:
        """End the call with an error, unless it has ended."""
        if not self.done:
            self.error = error
            self.finish_reason = "error"
            self.delta = ""
            self.done = True
