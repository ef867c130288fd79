"""The chat loop: read a message, do what it says, until the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from samplerpool.chat import answering
from samplerpool.chat.actions import ACTIONS
from samplerpool.chat.attached import Attached, ChatSampler, OpenSampler
from samplerpool.chat.autosave import Autosave
from samplerpool.chat.commands import Ask, Nothing, Refused, Run, interpret
from samplerpool.chat.console import Console, discard_output
from samplerpool.chat.context import Chat
from samplerpool.chat.editor import edit
from samplerpool.chat.settings import Settings
from samplerpool.chat.transcript import Transcript

ANSWERED, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes."""

HOW_TO_LEAVE = "To leave, type exit or press Ctrl-D. (clear starts a new conversation.)"


class Repl:
    """A conversation over one console.

    Args:
        sampler: answers until ``/attach`` leads elsewhere.
        params: sampling parameters at the start; and so ``template_options``, what the chat template is told.
        gone: says, after a failed turn, why ``sampler`` cannot answer any more; ``None`` means that it can.
        connect: attaches to a pool, by name or connection file; None where that cannot be.
        conversations: the folder where conversations are kept; None to keep none.
        edit: lets the user change a text.
    """

    def __init__(
        self,
        sampler: ChatSampler,
        console: Console,
        transcript: Transcript,
        params: Mapping[str, Any],
        gone: Callable[[], str | None] = lambda: None,
        *,
        connect: Callable[[str], OpenSampler] | None = None,
        conversations: Path | None = None,
        edit: Callable[[str], str] = edit,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        attached = Attached(sampler, connect)
        autosave = Autosave(conversations, console.notice)
        self._chat = Chat(
            console,
            transcript,
            Settings(params, template_options),
            attached,
            autosave,
            edit,
            lambda: gone() if attached.sampler is sampler else None,
        )

    @property
    def attached(self) -> Attached:
        """Who answers now."""
        return self._chat.attached

    def run(self) -> int:
        """Read and answer until the end.

        Returns:
            The exit code: 0; 1 if the worker is gone for good, or piped input had a turn or a command that failed; 130
            if piped input was interrupted.
        """
        with closing(self._chat.attached):
            return self._run()

    def _run(self) -> int:
        chat = self._chat
        while not chat.over:
            try:
                self._step()
            except KeyboardInterrupt:
                chat.transcript.stop()
                chat.console.leave_answer()
                if not chat.console.interactive:
                    return INTERRUPTED
                chat.console.notice(HOW_TO_LEAVE)
            except BrokenPipeError:
                discard_output()
                return FAILED
        self._say_what_is_kept()
        return self._code()

    def once(self, question: str) -> int:
        """Answer a single question; returns the exit code."""
        try:
            self._ask(question)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            discard_output()
            return FAILED
        return self._code()

    def _step(self) -> None:
        """One message."""
        try:
            command = interpret(self._chat.console.read())
        except EOFError:
            command = Run("exit")
        match command:
            case Run(name, argument):
                self._do(name, argument)
            case Refused(why):
                self._chat.any_failed = True
                self._chat.console.error(why)
            case Ask(text):
                self._ask(text)
            case Nothing():
                pass

    def _do(self, name: str, argument: str) -> None:
        """One command. What goes wrong costs the command alone."""
        try:
            ACTIONS[name](self._chat, argument)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            if not self._chat.console.interactive:
                raise
            self._chat.transcript.stop()
            self._chat.console.notice("(stopped)")
        except Exception as error:
            self._chat.failed(error)

    def _ask(self, question: str) -> None:
        self._chat.transcript.ask(question)
        answering.answer(self._chat)

    def _code(self) -> int:
        chat = self._chat
        return FAILED if chat.gone_for_good or (chat.any_failed and not chat.console.interactive) else ANSWERED

    def _say_what_is_kept(self) -> None:
        if self._chat.autosave.path is not None:
            self._chat.console.notice("This conversation is kept; /load in the next chat goes on with it.")
