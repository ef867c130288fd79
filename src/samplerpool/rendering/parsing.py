"""From a model's answer back to a message: reasoning, tool calls and text. Pure, and free of torch and transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from samplerpool.types import Content, ContentType, Message


@dataclass(frozen=True)
class AnswerTags:
    """What a model writes around parts of its answers: an opening and a closing tag each.

    Args:
        think: around its reasoning.
        tool_call: around the JSON of a tool call.
    """

    think: tuple[str, str] = ("<think>", "</think>")
    tool_call: tuple[str, str] = ("<tool_call>", "</tool_call>")


DEFAULT_TAGS = AnswerTags()


def parse_message(text: str, tags: AnswerTags = DEFAULT_TAGS, *, reasoning_is_open: bool = False) -> Message:
    """The assistant's turn in the v1 form.

    What stands between the tags of ``think`` becomes reasoning, JSON between those of ``tool_call`` a tool call (its
    value is the JSON as the model wrote it), the rest text, in order. Whitespace beside a tag is dropped, text without
    tags is kept byte for byte. Reasoning that was cut off is reasoning; a closing tag of reasoning without an opening
    one means that the prompt had opened it. A malformed or cut off tool call stays text, with its tags, and the message
    gets a ``parse_error`` that says what is wrong with it.

    Args:
        reasoning_is_open: the prompt ended with the opening tag, so the text begins inside the reasoning.
    """
    return _Reader(text, tags).message(reasoning_is_open and not text.lstrip().startswith(tags.think[0]))


def inside_reasoning(text: str, think: tuple[str, str], *, is_open: bool) -> bool:
    """Whether what follows ``text`` is reasoning.

    Args:
        think: the tags around it.
        is_open: whether it was so before ``text``.
    """
    opened, closed = text.rfind(think[0]), text.rfind(think[1])
    return is_open if opened == closed else opened > closed


def is_tool_call(value: Any) -> bool:
    """Whether a JSON value is a tool call: an object with a string ``name`` and an object ``arguments``."""
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def assistant_message(blocks: list[Content], parse_error: str | None = None) -> Message:
    """An answer of these blocks without the empty ones; of nothing, a message with an empty text."""
    kept = [block for block in blocks if block["value"]]
    message: Message = {"role": "assistant", "content": kept or [{"type": "text", "value": ""}]}
    if parse_error is not None:
        message["parse_error"] = parse_error
    return message


class _Reader:
    """Reads one text."""

    def __init__(self, text: str, tags: AnswerTags) -> None:
        self._text = text
        self._think_open, self._think_close = tags.think
        self._call_open, self._call_close = tags.tool_call
        self._problems: list[str] = []

    def message(self, reasoning_is_open: bool) -> Message:
        if reasoning_is_open:
            reasoning, rest = self._reasoning(0)
        else:
            reasoning, rest = self._reasoning_opened_by_prompt()
        blocks = [_content("reasoning", reasoning), *self._blocks(rest)]
        more = len(self._problems) - 1
        problem = f"{self._problems[0]}{f' (and {more} more)' if more else ''}" if self._problems else None
        return assistant_message(blocks, problem)

    def _reasoning_opened_by_prompt(self) -> tuple[str, int]:
        """What stands before a closing tag of reasoning that nothing in the text opened, and where that ends."""
        text, position = self._text, 0
        while (close := text.find(self._think_close, position)) != -1:
            if self._think_open in text[:close]:
                break
            call_end = self._call_around(close)
            if call_end is None:
                return text[:close].strip(), close + len(self._think_close)
            position = call_end
        return "", 0

    def _call_around(self, position: int) -> int | None:
        """End of the tool call in whose JSON ``position`` lies; there, a tag is just a part of a string."""
        start = self._text.rfind(self._call_open, 0, position)
        while start != -1:
            call = self._tool_call(start)
            if not isinstance(call, str) and call[1] > position:
                return call[1]
            start = self._text.rfind(self._call_open, 0, start)
        return None

    def _blocks(self, start: int) -> list[Content]:
        """Reasoning, tool calls and the text between them, in order; values may be empty."""
        blocks: list[Content] = []
        text_start = position = start
        while (tag := self._next_tag(position)) is not None:
            kind, at = tag
            found = self._reasoning(at + len(self._think_open)) if kind == "reasoning" else self._tool_call(at)
            if isinstance(found, str):
                self._problems.append(f"The tool call at character {at} {found}; it was kept as text.")
                position = at + 1
                continue
            value, end = found
            blocks.append(self._text_between(text_start, at))
            blocks.append(_content(kind, value))
            text_start = position = end
        blocks.append(self._text_between(text_start, len(self._text)))
        return blocks

    def _next_tag(self, position: int) -> tuple[ContentType, int] | None:
        think, call = self._text.find(self._think_open, position), self._text.find(self._call_open, position)
        if think == -1 and call == -1:
            return None
        if call == -1 or -1 < think < call:
            return "reasoning", think
        return "tool_call", call

    def _reasoning(self, inner: int) -> tuple[str, int]:
        """The reasoning that begins at ``inner`` and where it ends; without a closing tag it goes on to the end."""
        close = self._text.find(self._think_close, inner)
        if close == -1:
            return self._text[inner:].strip(), len(self._text)
        return self._text[inner:close].strip(), close + len(self._think_close)

    def _tool_call(self, start: int) -> tuple[str, int] | str:
        """The JSON of the tool call that opens at ``start`` and where the call ends, or what is wrong with it."""
        inner = self._skip_whitespace(start + len(self._call_open))
        try:
            # The JSON itself says where it ends: a string in it may contain the closing tag.
            value, json_end = json.JSONDecoder().raw_decode(self._text, inner)
        except (ValueError, RecursionError) as error:
            if self._text.find(self._call_close, inner) == -1:
                return "was cut off, or is not valid JSON"
            return f"is not valid JSON ({getattr(error, 'msg', error)})"
        if not is_tool_call(value):
            return "is not an object with a string 'name' and an object 'arguments'"
        after = self._skip_whitespace(json_end)
        if self._text.startswith(self._call_close, after):
            return self._text[inner:json_end], after + len(self._call_close)
        if after == len(self._text):  # some models end their turn right behind the JSON
            return self._text[inner:json_end], after
        return f"has more than one JSON object before its {self._call_close}"

    def _skip_whitespace(self, position: int) -> int:
        while position < len(self._text) and self._text[position].isspace():
            position += 1
        return position

    def _text_between(self, start: int, end: int) -> Content:
        """The text of a gap, without the whitespace beside the tags that it borders on."""
        value = self._text[start:end]
        if start > 0:
            value = value.lstrip()
        if end < len(self._text):
            value = value.rstrip()
        return _content("text", value)


def _content(kind: ContentType, value: str) -> Content:
    return {"type": kind, "value": value}
