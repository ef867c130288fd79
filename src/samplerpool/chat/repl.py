"""The chat loop: read a message, stream the answer, remember both."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any, Protocol

from samplerpool.chat.commands import COMMANDS, Ask, Nothing, Refused, Run, interpret
from samplerpool.chat.console import Console, discard_output
from samplerpool.chat.transcript import Transcript
from samplerpool.errors import SamplerPoolError, log_hint
from samplerpool.types import Message

ANSWERED, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes."""

HOW_TO_LEAVE = "To leave, type exit or press Ctrl-D. (clear starts a new conversation.)"


class Ending(Protocol):
    """How a request ended: ``client.continuation.ContinuedAnswer`` has it."""

    finish_reason: str | None
    completion_tokens: int
    message: Message | None


class ChatSampler(Protocol):
    """What the chat needs of a sampler."""

    @property
    def last(self) -> Ending | None:
        """How this thread's latest ``generate`` ended, where it is known."""

    def generate(self, messages: list[Message], tools: str | None = None, **params: Any) -> Generator[str, None, None]:
        """Yield the answer's text as it comes; closing the generator stops the request."""


class Repl:
    """A conversation over one console with one sampler.

    Args:
        params: sampling parameters of every turn.
        gone: says, after a failed turn, why no further turn can succeed; ``None`` means that one can.
    """

    def __init__(
        self,
        sampler: ChatSampler,
        console: Console,
        transcript: Transcript,
        params: Mapping[str, Any],
        gone: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._sampler = sampler
        self._console = console
        self._transcript = transcript
        self._params = params
        self._gone = gone
        self._any_failed = False

    def run(self) -> int:
        """Read and answer until the end.

        Returns:
            The exit code: 0; 1 if the worker is gone for good, or piped input had a turn that failed; 130 if piped
            input was interrupted.
        """
        while True:
            try:
                code = self._step()
            except KeyboardInterrupt:
                if not self._console.interactive:
                    return INTERRUPTED
                self._console.notice(HOW_TO_LEAVE)
                continue
            except BrokenPipeError:
                discard_output()
                return FAILED
            if code is not None:
                return code

    def once(self, question: str) -> int:
        """Answer a single question; returns the exit code."""
        try:
            self._turn(question)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            discard_output()
            return FAILED
        return self._code()

    def _step(self) -> int | None:
        """One message; returns the exit code if it was the last."""
        try:
            command = interpret(self._console.read())
        except EOFError:
            command = Run("exit")
        match command:
            case Run("exit"):
                return self._code()
            case Run("clear"):
                self._transcript.clear()
                self._console.notice("The conversation starts anew.")
            case Run("help"):
                for spec in COMMANDS.values():
                    self._console.notice(f"{spec.usage}  {spec.help}")
            case Run(name):
                self._refuse(f"/{name} cannot be used here.")
            case Refused(why):
                self._refuse(why)
            case Ask(text):
                return self._turn(text)
            case Nothing():
                pass
        return None

    def _refuse(self, why: str) -> None:
        self._any_failed = True
        self._console.error(why)

    def _code(self) -> int:
        return FAILED if self._any_failed and not self._console.interactive else ANSWERED

    def _turn(self, question: str) -> int | None:
        """Ask, show the answer, remember what is to be remembered; returns an exit code if no turn can follow."""
        self._transcript.ask(question)
        self._console.begin_answer()
        try:
            self._stream()
        except KeyboardInterrupt:
            self._transcript.stop()
            self._console.end_answer()
            if not self._console.interactive:
                raise
            self._console.notice("(stopped)")
        except BrokenPipeError:
            raise
        except Exception as error:
            self._transcript.fail()
            self._console.end_answer()
            return self._failed(error)
        else:
            last = self._sampler.last
            self._transcript.complete(last.message if last else None)
            self._console.end_answer()
            if last and last.finish_reason == "length":
                self._console.notice(f"(cut off after {last.completion_tokens} tokens; max_new_tokens allows more)")
        return None

    def _stream(self) -> None:
        with closing(self._sampler.generate(self._transcript.messages, **self._params)) as stream:
            for text in stream:
                self._transcript.receive(text)
                self._console.write(text)

    def _failed(self, error: Exception) -> int | None:
        self._any_failed = True
        kind = "" if isinstance(error, SamplerPoolError) else f"{type(error).__name__}: "
        self._console.error(f"Error: {kind}{error}{log_hint(error)}")
        reason = self._gone()
        if reason is None:
            return None
        self._console.error(f"The chat ends here: {reason}")
        return FAILED
