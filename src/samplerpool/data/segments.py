"""What the parts of an answer are while it still comes: text, reasoning, tool calls. Pure.

The same reading as the worker's parser has of the whole answer (a test compares them), for a display that cannot wait
for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from samplerpool.types import Content, Message

Kind = Literal["text", "reasoning", "tool_call"]

DEFAULT_TAGS: Mapping[str, Sequence[str]] = {
    "think": ("<think>", "</think>"),
    "tool_call": ("<tool_call>", "</tool_call>"),
}
"""Of workers that do not say which tags their model writes."""


@dataclass(frozen=True)
class Segment:
    """A piece of an answer. The JSON of a tool call comes whole; text and reasoning come in pieces."""

    kind: Kind
    text: str


class Segmenter:
    """Splits an answer as it streams. Tags are never shown, not even halves of them.

    Whitespace beside a tag is dropped; other text is kept byte for byte. A tool call that is malformed or cut off is
    text, with its tags.

    Args:
        tags: an opening and a closing tag for ``think`` and for ``tool_call``.
        reasoning_open: the answer begins inside the reasoning.
    """

    def __init__(self, tags: Mapping[str, Sequence[str]] | None = None, *, reasoning_open: bool = False) -> None:
        given = {**DEFAULT_TAGS, **(tags or {})}
        self._think_open, self._think_close = given["think"]
        self._call_open, self._call_close = given["tool_call"]
        self._buffer = ""
        self._trim = reasoning_open  # a tag is just before what comes, so leading whitespace is to be dropped
        self._beginning = reasoning_open
        self._searched = 0
        self.inside: Kind = "reasoning" if reasoning_open else "text"
        """What is open at the end of what has come."""

    def feed(self, text: str) -> list[Segment]:
        """The answer goes on with this text; what can be told of it now."""
        self._buffer += text
        return self._advance(final=False)

    def end(self) -> list[Segment]:
        """The answer is over; the rest of it."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> list[Segment]:
        found: list[Segment] = []
        steps = {"text": self._text, "reasoning": self._reasoning, "tool_call": self._tool_call}
        while steps[self.inside](found, final):
            pass
        return found

    # Each step returns whether another one may follow at once.

    def _text(self, found: list[Segment], final: bool) -> bool:
        self._trim_left()
        tags = ((self._buffer.find(tag), kind, tag) for tag, kind in self._openings())
        at, kind, tag = min((each for each in tags if each[0] >= 0), default=(-1, self.inside, ""))
        if at < 0:
            self._give(found, "text", len(self._buffer) if final else self._safe_end([t for t, _ in self._openings()]))
            return False
        self._give(found, "text", len(self._buffer[:at].rstrip()))
        self.inside = kind
        if kind == "reasoning":
            self._skip_to(self._buffer.index(tag) + len(tag))
        else:
            self._searched = self._buffer.index(tag) + len(tag)
        return True

    def _reasoning(self, found: list[Segment], final: bool) -> bool:
        self._trim_left()
        if self._beginning and self._repeats_opening_tag(final):
            return False
        at = self._buffer.find(self._think_close)
        if at < 0:
            self._give(found, "reasoning", len(self._buffer.rstrip()) if final else self._safe_end([self._think_close]))
            return False
        self._give(found, "reasoning", len(self._buffer[:at].rstrip()))
        self._skip_to(self._buffer.index(self._think_close) + len(self._think_close))
        self.inside = "text"
        return True

    def _repeats_opening_tag(self, final: bool) -> bool:
        """The model may write the tag again that the prompt had opened; whether that cannot be told yet."""
        if self._think_open.startswith(self._buffer) and self._buffer != self._think_open and not final:
            return True
        self._beginning = False
        if self._buffer.startswith(self._think_open):
            self._skip_to(len(self._think_open))
            self._trim_left()
        return False

    def _tool_call(self, found: list[Segment], final: bool) -> bool:
        """The JSON says where it ends: a string in it may contain the closing tag."""
        start = self._buffer.index(self._call_open) + len(self._call_open)
        while (close := self._buffer.find(self._call_close, self._searched)) >= 0:
            verdict = _verdict(self._buffer[start:close])
            if verdict == "unfinished":
                self._searched = close + 1
                continue
            return self._call_ends(found, start, close, len(self._call_close), good=verdict == "good")
        if final:  # some models end their turn right behind the JSON
            good = _verdict(self._buffer[start:]) == "good"
            return self._call_ends(found, start, len(self._buffer), 0, good=good)
        self._searched = max(start, len(self._buffer) - len(self._call_close) + 1)
        return False

    def _call_ends(self, found: list[Segment], start: int, close: int, tag: int, *, good: bool) -> bool:
        self.inside = "text"
        if good:
            found.append(Segment("tool_call", self._buffer[start:close].strip()))
            self._skip_to(close + tag)
        else:
            self._give(found, "text", start - len(self._call_open) + 1)  # the rest of it may hold further tags
        return True

    def _openings(self) -> tuple[tuple[str, Kind], ...]:
        return (self._think_open, "reasoning"), (self._call_open, "tool_call")

    def _safe_end(self, tags: Sequence[str]) -> int:
        """Up to where the buffer can be shown: behind it may begin a tag, or whitespace beside one."""
        end = len(self._buffer)
        longest = max(map(len, tags)) - 1
        for start in range(max(0, end - longest), end):
            if any(tag.startswith(self._buffer[start:]) for tag in tags):
                end = start
                break
        return len(self._buffer[:end].rstrip())

    def _give(self, found: list[Segment], kind: Kind, end: int) -> None:
        if end > 0:
            found.append(Segment(kind, self._buffer[:end]))
            self._buffer = self._buffer[end:]
            self._trim = False

    def _skip_to(self, position: int) -> None:
        self._buffer = self._buffer[position:]
        self._trim = True

    def _trim_left(self) -> None:
        if self._trim:
            self._buffer = self._buffer.lstrip()
            self._trim = not self._buffer


def message_of(
    text: str, tags: Mapping[str, Sequence[str]] | None, *, begun: str = "", reasoning_open: bool = False
) -> Message:
    """The message that an answer is which was stopped, and which therefore no worker has parsed.

    Args:
        text: all that has come, ``begun`` in front.
        tags: as for ``Segmenter``.
        begun: what stood there before the model went on.
        reasoning_open: the model went on inside the reasoning.
    """
    segmenter = _segmenter(tags, begun, reasoning_open)
    blocks: list[Content] = []
    for kind, value in ((each.kind, each.text) for each in [*segmenter.feed(text), *segmenter.end()]):
        if blocks and blocks[-1]["type"] == kind != "tool_call":
            value = blocks.pop()["value"] + value
        blocks.append({"type": kind, "value": value})
    return {"role": "assistant", "content": blocks or [{"type": "text", "value": ""}]}


def ends_in_reasoning(text: str, tags: Mapping[str, Sequence[str]] | None, *, begun: str, reasoning_open: bool) -> bool:
    """Whether what comes behind this much of an answer is reasoning. Arguments as for ``message_of``, but that
    ``text`` may also end before ``begun`` does."""
    segmenter = _segmenter(tags, begun, reasoning_open)
    segmenter.feed(text)
    return segmenter.inside == "reasoning"


def _segmenter(tags: Mapping[str, Sequence[str]] | None, begun: str, reasoning_open: bool) -> Segmenter:
    """For an answer from its very beginning: its first tag says where that was, if there is one."""
    think = {**DEFAULT_TAGS, **(tags or {})}["think"]
    first = min(((begun.find(tag), tag) for tag in think if tag in begun), default=None)
    return Segmenter(tags, reasoning_open=first[1] == think[1] if first else reasoning_open)


def _verdict(text: str) -> Literal["good", "bad", "unfinished"]:
    """Whether a text is the JSON of a tool call, or might still become it."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return "unfinished" if error.msg.startswith("Unterminated string") else "bad"
    except (ValueError, RecursionError):
        return "bad"
    call = isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)
    return "good" if call else "bad"
