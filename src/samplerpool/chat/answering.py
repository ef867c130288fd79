"""One turn: stream the answer, show it, and remember what came, however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.attached import Ending
from samplerpool.chat.context import Chat
from samplerpool.chat.probabilities import show_probabilities
from samplerpool.chat.turns import Turn
from samplerpool.config.sampling import PARAMS
from samplerpool.data.segments import ends_in_reasoning, message_of
from samplerpool.errors import WorkerDied
from samplerpool.types import Message

Stream = Generator[str, None, None]

KEEP_EVERY_S = 2.0
"""How much of an answer a killed terminal may cost."""


def answer(chat: Chat, **changes: Any) -> None:
    """Answer the question in progress.

    Args:
        **changes: sampling parameters of this turn alone; None takes one back.

    Raises:
        KeyboardInterrupt: Ctrl-C where nobody types; BrokenPipeError: nobody reads.
    """
    question = chat.transcript.question
    assert question is not None
    params = {name: value for name, value in {**chat.settings.params, **changes}.items() if value is not None}
    _Turn(chat).run(lambda: _asked(chat, question.prefill, params), question.prefill)


def go_on(chat: Chat) -> None:
    """Lengthen the last answer by as many tokens as an answer may have.

    Where the request is still known the text is what a larger limit would have given; a loaded answer is put in as
    the beginning of a new one.

    Raises: as ``answer``; UsageError: there is nothing to lengthen.
    """
    ending = chat.ending
    given = {**(chat.attached.defaults if ending else {}), **chat.settings.params}
    more = given.get("max_new_tokens", PARAMS["max_new_tokens"].default)
    turn = chat.transcript.go_on()
    behind = turn.text.removeprefix(turn.prefill)
    if ending is None:
        _Turn(chat, behind).run(lambda: _asked(chat, turn.text, chat.settings.params), "")
        return
    _Turn(chat, behind.removesuffix(ending.text), len(ending.token_ids)).run(
        lambda: chat.attached.sampler.go_on(ending, more, on_wait=chat.console.aside, **chat.attached.where), ""
    )


def _asked(chat: Chat, prefill: str, params: Mapping[str, Any]) -> Stream:
    return chat.attached.sampler.generate(
        chat.transcript.messages,
        chat.transcript.tools,
        prefill=prefill,
        template_options=dict(chat.settings.template),
        on_wait=chat.console.aside,
        **chat.attached.where,
        **params,
    )


class _Turn:
    """The course of one answer.

    Args:
        behind: what stands between the prefill and the text of the request.
        known: tokens of the request that had come before.
    """

    def __init__(self, chat: Chat, behind: str = "", known: int = 0) -> None:
        self._chat = chat
        self._known = known
        self._console = chat.console
        self._transcript = chat.transcript
        self._behind = behind
        self._tags: Mapping[str, Sequence[str]] | None = None
        self._began = time.monotonic()
        self._first_s: float | None = None
        self._before = chat.attached.sampler.last

    def run(self, begin: Callable[[], Stream], shown: str) -> None:
        """Show the answer, ``shown`` in front, and end the turn as it ended.

        Args:
            begin: makes the stream; may fail.
        """
        try:
            self._chat.keep()
            if self._console.interactive:
                self._tags = self._chat.attached.answer_tags
            self._console.begin_answer(tags=self._tags, tokens=self._tokens)
            self._receive(begin(), shown)
        except KeyboardInterrupt:
            self._stopped()
        except BrokenPipeError:
            raise
        except Exception as error:
            self._failed(error)
        else:
            self._completed()
        finally:
            self._console.leave_answer()  # where a second Ctrl-C came before its end
            self._chat.keep()

    def _receive(self, stream: Stream, shown: str) -> None:
        kept = self._began
        with closing(stream):
            for text in stream:
                now = time.monotonic()
                if self._first_s is None:
                    self._first_s = now - self._began
                    self._show_beginning(shown)
                self._transcript.receive(text)
                self._console.write(text)
                if now - kept > KEEP_EVERY_S:
                    self._chat.keep()
                    kept = now
        if self._first_s is None:
            self._show_beginning(shown)

    def _show_beginning(self, shown: str) -> None:
        """Whether the prompt has opened the reasoning is known when the first text is there; so what stands before
        that, and is to be shown, waits for it."""
        before, last = self._transcript.answer.removesuffix(shown), self._last
        if last and ends_in_reasoning(before, self._tags, begun=self._begun, reasoning_open=last.reasoning_open):
            self._console.begin_reasoning()
        if shown:
            self._console.write(shown)

    def _completed(self) -> None:
        last = self._last
        reason = last.finish_reason if last else None
        if last is not None:
            self._transcript.correct(self._behind + last.text)
        turn = self._transcript.complete(last.message if last else None, cut=reason == "length")
        self._end(turn, last, reason)

    def _stopped(self) -> None:
        last = self._last
        self._end(self._transcript.stop(self._message_so_far(last)), last, None)
        if not self._console.interactive:
            raise KeyboardInterrupt
        waiting = self._transcript.waiting is not None
        self._console.notice("(stopped) /retry asks again" if waiting else "(stopped) /continue goes on")

    def _message_so_far(self, last: Ending | None) -> Message | None:
        """What is stopped is parsed here, lest its reasoning become part of what the model is shown as its answer."""
        if last is None:
            return None
        begun = self._begun
        told = begun + last.text  # a piece may have come that was not taken any more, and is not told again
        if len(told) > len(self._transcript.answer):
            self._transcript.correct(self._behind + last.text)
        text = self._transcript.answer
        return message_of(text, self._tags, begun=begun, reasoning_open=last.reasoning_open)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, WorkerDied) and self._console.interactive:  # what came is as good as what Ctrl-C leaves
            last = self._last
            self._end(self._transcript.stop(self._message_so_far(last)), last, "error")
        else:
            self._transcript.fail()
            self._console.end_answer(None)
        self._chat.failed(error)
        reason = self._chat.gone()
        if reason is not None:
            self._console.error(f"The chat ends here: {reason}")
            self._chat.over = self._chat.gone_for_good = True

    def _end(self, turn: Turn | None, last: Ending | None, reason: str | None) -> None:
        if last is None:
            self._console.end_answer()
            return
        elapsed_s = time.monotonic() - self._began
        before = last.prompt_tokens + self._known if last.prompt_tokens else None
        stats = AnswerStats(reason, self._tokens(), before, self._first_s, elapsed_s)
        self._chat.stats.append(stats)
        if turn is not None:  # else the request is of no turn, least of all of the one before
            self._chat.ended = (turn, last)
        self._console.end_answer(stats)
        if last.logprobs and self._console.interactive:
            show_probabilities(self._chat, last)

    @property
    def _begun(self) -> str:
        """What the answer begins with that is not of this request."""
        question = self._transcript.question
        return (question.prefill if question else "") + self._behind

    @property
    def _last(self) -> Ending | None:
        """How this request goes; that of the turn before does not count."""
        last = self._chat.attached.sampler.last
        return None if last is self._before else last

    def _tokens(self) -> int:
        """How many have come in this turn."""
        return max(0, len(self._last.token_ids) - self._known) if self._last else 0
