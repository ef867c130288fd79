"""A conversation as a v1 sample, as a preference pair, as Markdown; and back from what a file holds. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from samplerpool.chat.transcript import Transcript
from samplerpool.data.messages import to_v1, tools_text
from samplerpool.errors import UsageError
from samplerpool.types import Content, Message

_TITLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def to_sample(messages: Sequence[Message], tools: str | None) -> dict[str, Any]:
    """A v1 sample: ``messages``, and ``tools`` where there are any."""
    return {"messages": list(messages), **({"tools": tools} if tools else {})}


def finished_sample(transcript: Transcript) -> dict[str, Any]:
    """The conversation up to its last answer, to learn from.

    Raises:
        UsageError: there is no answer yet.
    """
    _ = transcript.last
    return to_sample(_up_to_last_answer(transcript), transcript.tools)


def preference(transcript: Transcript) -> dict[str, Any]:
    """The last answer as the chosen one, the earlier one as the rejected one: a v1 sample of a pair.

    Raises:
        UsageError: there is no earlier answer, or it is the same.
    """
    turn = transcript.last
    if turn.earlier is None:
        raise UsageError("There is no other answer to prefer this one to; /retry or /compare gives one.")
    if turn.earlier["content"] == turn.answer["content"]:
        raise UsageError("Both answers are the same; /retry with another seed, or a higher temperature.")
    before = _up_to_last_answer(transcript)[:-1]
    tools = {"tools": transcript.tools} if transcript.tools else {}
    return {"chosen_messages": [*before, turn.answer], "rejected_messages": [*before, turn.earlier], **tools}


def _up_to_last_answer(transcript: Transcript) -> list[Message]:
    waiting = len(transcript.question.asked) if transcript.question else 0
    messages = transcript.messages
    return messages[: len(messages) - waiting]


def conversation_in(text: str, name: str) -> tuple[list[Message], str | None]:
    """Messages and tools of a JSON text: a v1 sample, a row of the common form, or a list of messages.

    Args:
        name: of the file, for errors.

    Raises:
        UsageError: it is neither; RenderError: a message in it is not understood.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}.") from None
    row: Mapping[str, Any] = {"messages": value} if isinstance(value, list) else value
    if not isinstance(row, dict) or "messages" not in row:
        raise UsageError(f"{name} is no conversation; it needs the messages of one under the key messages.")
    return to_v1(row["messages"]), tools_text(row.get("tools"))


def tools_in(text: str, name: str) -> str:
    """The tools of a JSON text, as JSON text: a list of them, a single one, or an object with them as ``tools``.

    Raises:
        UsageError: it says no tools.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}.") from None
    if isinstance(value, dict) and "tools" in value:
        value = value["tools"]
    if isinstance(value, str):
        return tools_in(value, name)
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list) or not tools or not all(tool_name(tool) for tool in tools):
        raise UsageError(f'{name} holds no tools; each needs a name, like {{"name": ..., "parameters": ...}}.')
    return json.dumps(tools, ensure_ascii=False)


def tool_name(tool: Any) -> str:
    """The name of a tool, in OpenAI's form or the bare one; empty if it has none."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


# ---- Markdown -----------------------------------------------------------------------------------------------------


def to_markdown(messages: Sequence[Message], tools: str | None) -> str:
    """A conversation to read: a heading for each message, reasoning as a quotation, tool calls and tools as JSON."""
    parts = [f"## Tools\n\n{fenced(_pretty(tools), 'json')}"] if tools else []
    for message in messages:
        blocks = "\n\n".join(filter(None, map(_block, message["content"])))
        parts.append(f"## {_TITLES[message['role']]}\n\n{blocks}".rstrip())
    return "\n\n".join(parts) + "\n"


def _block(block: Content) -> str:
    match block["type"], block["value"].strip("\n"):
        case "text", value:
            return value
        case "reasoning", value:
            return "\n".join(f"> {line}".rstrip() for line in value.splitlines())
        case "tool_call", value:
            return fenced(_pretty(value), "json")
        case kind, value:
            what = kind.removesuffix("_url")
            return f"![{what}]({value})" if kind == "image_url" else f"[{what}]({value})"


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return text


def fenced(text: str, language: str = "") -> str:
    """A text as a Markdown code block, whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
