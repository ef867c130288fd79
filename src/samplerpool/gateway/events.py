"""Answers as they come: the events (server-sent) of a response that is streamed. Pure: text in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samplerpool.data.answers import Answer
from samplerpool.data.json_text import to_json
from samplerpool.data.segments import Segment, Segmenter
from samplerpool.gateway.answers import Heading, finish_reason, tool_call, usage, values_of
from samplerpool.gateway.logprobs import Pieces, chat_logprobs, text_logprobs
from samplerpool.gateway.problems import Problem
from samplerpool.types import TokenLogprobs

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One event."""
    return b"data: %b\n\n" % to_json(value)


def broken_off(problem: Problem) -> bytes:
    """The last event of a stream that cannot go on; no ``[DONE]`` follows it."""
    return event(problem.body())


class Events:
    """The events of one response.

    Args:
        include_usage: all events have a field for it, and the last one the numbers.
    """

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        self._heading = heading
        self._head = {
            "id": heading.id,
            "object": "chat.completion.chunk" if heading.chat else "text_completion",
            "created": heading.created,
            "model": heading.model,
            "system_fingerprint": None,
        }
        # All events begin and end the same; writing that once saves half of what an event costs.
        self._begin = b"data: %b" % to_json({**self._head, "choices": [0]})[: -len("0]}")]
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage

    def begin(self, number: int, echo: str = "") -> bytes:
        """The first event of a choice, if there is something to begin with.

        Args:
            echo: with what a text that goes on begins.
        """
        if self._heading.chat:
            return self.choice(number, {"delta": {"role": "assistant", "content": ""}})
        return self.choice(number, {"text": echo}) if echo else b""

    def choice(self, number: int, value: dict[str, Any]) -> bytes:
        """An event with a part of one choice."""
        whole = {"index": number, "logprobs": None, "finish_reason": None, **value}
        return self._begin + to_json(whole) + self._end

    def last(self, answers: Sequence[Answer], prompts: int) -> bytes:
        """What follows when all choices have ended."""
        if not self._include_usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage(answers, prompts)}) + DONE


class ChatChoice:
    """One choice of a chat.

    Args:
        tags: around reasoning and tool calls in the text that comes.
        reasoning_open: it begins inside the reasoning.
        hidden: such parts cannot be told before the whole is there and parsed, so the text waits until then.
    """

    def __init__(
        self,
        events: Events,
        heading: Heading,
        number: int,
        *,
        tags: Mapping[str, Sequence[str]],
        reasoning_open: bool,
        hidden: bool = False,
    ) -> None:
        self._events, self._heading, self._number = events, heading, number
        self._segmenter = None if hidden else Segmenter(tags, reasoning_open=reasoning_open)
        self._calls: list[str] = []
        self._waiting: list[TokenLogprobs] = []

    def feed(self, text: str, entries: Iterable[TokenLogprobs] = (), pieces: Pieces | None = None) -> bytes:
        """Its text goes on.

        Args:
            entries: log-probabilities that have come with it.
            pieces: texts of their tokens.
        """
        self._waiting += entries
        return self._deltas(self._segmenter.feed(text) if self._segmenter else [], pieces)

    def end(self, answer: Answer, entries: Iterable[TokenLogprobs] = (), pieces: Pieces | None = None) -> bytes:
        """It has ended; the rest of it."""
        self._waiting += entries
        if self._segmenter is None:
            rest = [Segment("reasoning", value) for value in values_of(answer.message, "reasoning")]
            rest += [Segment("text", value) for value in values_of(answer.message, "text")]
        else:
            rest = self._segmenter.end()
        told = self._deltas(rest, pieces)
        parsed = values_of(answer.message, "tool_call")[len(self._calls) :]  # the parser may know more than tags
        told += self._deltas([Segment("tool_call", value) for value in parsed], pieces)
        reason = finish_reason(answer, self._calls)
        return told + self._event({}, pieces, finish_reason=reason, seed=answer.seed)

    def _deltas(self, segments: Iterable[Segment], pieces: Pieces | None) -> bytes:
        return b"".join(self._event(self._delta(segment), pieces) for segment in segments)

    def _delta(self, segment: Segment) -> dict[str, Any]:
        if segment.kind == "tool_call":
            number = len(self._calls)
            self._calls.append(segment.text)
            call = tool_call(segment.text, self._heading.call_id(self._number, number))
            return {"tool_calls": [{"index": number, **call}]}
        return {"content" if segment.kind == "text" else "reasoning_content": segment.text}

    def _event(self, delta: dict[str, Any], pieces: Pieces | None, **more: Any) -> bytes:
        value = {"delta": delta, **more}
        if self._waiting:
            value["logprobs"] = chat_logprobs(self._waiting, pieces or {})
            self._waiting = []
        return self._events.choice(self._number, value)


class TextChoice:
    """One choice of a text that goes on."""

    def __init__(self, events: Events, number: int) -> None:
        self._events, self._number = events, number
        self._offset = 0

    def feed(self, text: str, entries: Sequence[TokenLogprobs] = (), pieces: Pieces | None = None) -> bytes:
        """See ``ChatChoice.feed``."""
        return self._event(text, entries, pieces)

    def end(self, answer: Answer, entries: Sequence[TokenLogprobs] = (), pieces: Pieces | None = None) -> bytes:
        """See ``ChatChoice.end``."""
        return self._event("", entries, pieces, finish_reason=answer.finish_reason, seed=answer.seed)

    def _event(self, text: str, entries: Sequence[TokenLogprobs], pieces: Pieces | None, **more: Any) -> bytes:
        value = {"text": text, **more}
        if entries:
            value["logprobs"] = found = text_logprobs(entries, pieces or {}, self._offset)
            self._offset += sum(map(len, found["tokens"]))
        return self._events.choice(self._number, value)
