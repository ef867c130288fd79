"""A console for programs: answers as JSON lines, one a turn, or one for each piece of an answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.attached import Ending
from samplerpool.chat.console import Console
from samplerpool.chat.styles import Line
from samplerpool.data.answers import Answer, RowResult, output_row
from samplerpool.data.json_text import to_json
from samplerpool.data.rows import Row
from samplerpool.errors import SamplerPoolError
from samplerpool.types import FinishReason, Message

RESULT, EVENTS = "result", "events"
FORMS = (RESULT, EVENTS)
"""One object a turn; or before it one at the start, and one each time that tokens have come."""


class JsonConsole(Console):
    """Writes to ``stdout`` one JSON object a line, and nothing else there.

    A result has the form of a row of ``samplerpool batch`` (``messages``, ``generation``), with the turn's number as
    its index, and ``timing`` beside it. An answer that was stopped has the finish reason ``aborted``.

    Args:
        read_line: as for ``Console``.
        form: one of ``FORMS``. ``events`` are objects with ``event``: ``start``, ``tokens`` (``index`` of the first of
            ``token_ids`` among all generated, and the ``text`` that has come, which may lag behind), and ``end``, which
            has the result in it.
        latest: the sampler's latest answer, or None.
        conversation: all messages so far; the question in progress is the last one.
    """

    def __init__(
        self,
        read_line: Callable[[str], str],
        stdout: TextIO,
        stderr: TextIO,
        *,
        form: str,
        latest: Callable[[], Ending | None],
        conversation: Callable[[], list[Message]],
    ) -> None:
        super().__init__(read_line, stdout, stderr, interactive=False)
        self._events = form == EVENTS
        self._latest = latest
        self._conversation = conversation
        self._turns = 0
        self._open = False

    def begin_answer(
        self,
        *,
        reasoning_open: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
        tokens: Callable[[], int] | None = None,
    ) -> None:
        """A turn begins: its question is the conversation's last message."""
        self._open = True
        self._question = self._conversation()
        self._before = self._latest()
        self._told = 0
        self._began = time.monotonic()
        self._first_s: float | None = None
        if self._events:
            self._put({"event": "start", "index": self._turns})

    def write(self, text: str) -> None:
        """A piece of the answer."""
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
        if self._events:
            token_ids = list(self._answer.token_ids) if self._answer else []
            self._put({"event": "tokens", "index": self._told, "token_ids": token_ids[self._told :], "text": text})
            self._told = len(token_ids)

    def end_answer(self, stats: AnswerStats | None = None) -> None:
        """The turn has ended. One that failed is told of by ``error``, which is called next."""
        answer = self._answer
        if answer is not None and answer.error is None:
            self._end(answer, None)

    def error(self, text: str) -> None:
        """Why the turn failed; outside of one, on ``stderr``."""
        if not self._open:
            super().error(text)
            return
        answer = self._answer
        given = answer.error if answer else None
        self._end(answer, given or SamplerPoolError(text))

    def show(self, lines: Iterable[Line]) -> None:
        """Lines that are no part of an answer: on ``stderr``."""
        for line in lines:
            super().error("".join(text for _, text in line))

    @property
    def _answer(self) -> Ending | None:
        latest = self._latest()
        return None if latest is self._before else latest

    def _end(self, answer: Ending | None, error: SamplerPoolError | None) -> None:
        self._open = False
        result = self._result(answer, error)
        self._put({"event": "end", **result} if self._events else result)
        self._turns += 1

    def _result(self, answer: Ending | None, error: SamplerPoolError | None) -> dict[str, Any]:
        row = RowResult(Row(self._turns, messages=self._question), 0, answer.seed if answer else None, error=error)
        if answer is not None and error is None:
            row.answer = Answer(
                answer.text,
                _finish_reason(answer),
                answer.prompt_tokens,
                len(answer.token_ids),
                answer.seed or 0,
                answer.message,
                answer.logprobs,
            )
        result = output_row(row)
        if error is not None and answer is not None:  # what came before it is not thrown away
            result["generation"]["text"] = answer.text
        timing = {"first_token_s": self._first_s, "elapsed_s": time.monotonic() - self._began}
        return {**result, "timing": timing}

    def _put(self, value: dict[str, Any]) -> None:
        self._stdout.write(to_json(value).decode() + "\n")
        self._stdout.flush()


def _finish_reason(answer: Ending) -> FinishReason:
    match answer.finish_reason:
        case "stop" | "length" as reason:
            return reason
        case _:
            return "aborted"
