"""From a model's answer back to a message: reasoning, tool calls and text. Pure, and free of torch and transformers."""

from __future__ import annotations

import json
from typing import Any

from samplerpool.types import Content, ContentType, Message

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"


def parse_message(text: str) -> Message:
    """The assistant's turn in the v1 form.

    ``<think>...</think>`` becomes reasoning, ``<tool_call>{json}</tool_call>`` a tool call (its value is the JSON as
    the model wrote it), the rest text, in order. Whitespace beside a tag is dropped, text without tags is kept byte for
    byte. Reasoning that was cut off is reasoning; a closing ``</think>`` without an opening one means that the prompt
    had opened it; a malformed or cut off tool call stays text, with its tags.
    """
    reasoning, rest = _reasoning_opened_by_prompt(text)
    blocks = [] if reasoning is None else [_content("reasoning", reasoning)]
    blocks += _blocks(rest)
    blocks = [block for block in blocks if block["value"]]
    return {"role": "assistant", "content": blocks or [_content("text", "")]}


def is_tool_call(value: Any) -> bool:
    """Whether a JSON value is a tool call: an object with a string ``name`` and an object ``arguments``."""
    return isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict)


def _content(kind: ContentType, value: str) -> Content:
    return {"type": kind, "value": value}


def _reasoning_opened_by_prompt(text: str) -> tuple[str | None, str]:
    """What stands before a ``</think>`` that nothing in the text opened, and what follows it."""
    position = 0
    while (close := text.find(THINK_CLOSE, position)) != -1:
        if THINK_OPEN in text[:close]:
            break
        call_end = _call_around(text, close)
        if call_end is None:
            return text[:close].strip(), text[close + len(THINK_CLOSE) :].lstrip()
        position = call_end
    return None, text


def _call_around(text: str, position: int) -> int | None:
    """End of the tool call in whose JSON ``position`` lies; there, a tag is just a part of a string."""
    start = text.rfind(CALL_OPEN, 0, position)
    while start != -1:
        call = _tool_call(text, start)
        if call is not None and call[1] > position:
            return call[1]
        start = text.rfind(CALL_OPEN, 0, start)
    return None


def _blocks(text: str) -> list[Content]:
    """Reasoning, tool calls and the text between them, in order; values may be empty."""
    blocks: list[Content] = []
    text_start = position = 0
    while (tag := _next_tag(text, position)) is not None:
        kind, start = tag
        found = _reasoning(text, start) if kind == "reasoning" else _tool_call(text, start)
        if found is None:
            position = start + 1
            continue
        value, end = found
        blocks.append(_text_between(text, text_start, start))
        blocks.append(_content(kind, value))
        text_start = position = end
    blocks.append(_text_between(text, text_start, len(text)))
    return blocks


def _next_tag(text: str, position: int) -> tuple[ContentType, int] | None:
    think, call = text.find(THINK_OPEN, position), text.find(CALL_OPEN, position)
    if think == -1 and call == -1:
        return None
    if call == -1 or -1 < think < call:
        return "reasoning", think
    return "tool_call", call


def _reasoning(text: str, start: int) -> tuple[str, int]:
    """The reasoning that opens at ``start`` and where it ends; without a closing tag it goes on to the end."""
    inner = start + len(THINK_OPEN)
    close = text.find(THINK_CLOSE, inner)
    if close == -1:
        return text[inner:].strip(), len(text)
    return text[inner:close].strip(), close + len(THINK_CLOSE)


def _tool_call(text: str, start: int) -> tuple[str, int] | None:
    """The JSON of the tool call that opens at ``start`` and where the call ends; ``None`` if it is malformed."""
    inner = _skip_whitespace(text, start + len(CALL_OPEN))
    try:
        # The JSON itself says where it ends: a string in it may contain the closing tag.
        value, json_end = json.JSONDecoder().raw_decode(text, inner)
    except (ValueError, RecursionError):
        return None
    if not is_tool_call(value):
        return None
    after = _skip_whitespace(text, json_end)
    if text.startswith(CALL_CLOSE, after):
        return text[inner:json_end], after + len(CALL_CLOSE)
    # Some models end their turn right behind the JSON.
    return (text[inner:json_end], after) if after == len(text) else None


def _skip_whitespace(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _text_between(text: str, start: int, end: int) -> Content:
    """The text of a gap, without the whitespace beside the tags that it borders on."""
    value = text[start:end]
    if start > 0:
        value = value.lstrip()
    if end < len(text):
        value = value.rstrip()
    return _content("text", value)
