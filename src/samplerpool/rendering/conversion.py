"""From the v1 form of messages and tools to the form that chat templates take. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from samplerpool.data.messages import NOW
from samplerpool.errors import RenderError
from samplerpool.rendering.escaping import map_strings
from samplerpool.rendering.parsing import is_tool_call
from samplerpool.types import CONTENT_TYPES, MEDIA_TYPES, ROLES, Content, Message

KIND_OF = {name: name.removesuffix("_url") for name in MEDIA_TYPES}
"""What templates call the media, by their block's type."""


class TextGuard(Protocol):
    """What every user-controlled string goes through on its way into a template."""

    def message_text(self, place: str, text: str) -> str: ...

    def structure_text(self, place: str, text: str, *, key: bool) -> str: ...


@dataclass(frozen=True)
class TemplateInput:
    """What a chat template is given, all user-controlled strings guarded.

    Args:
        messages: their ``content`` is a text, or a list of parts for a template that takes media.
        now: the date and time that the template is told; None: the clock's.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    options: dict[str, Any]
    now: datetime | None = None


def template_input(
    messages: Sequence[Any],
    tools: str | None,
    options: Mapping[str, Any],
    guard: TextGuard,
    kinds: Set[str] | None = None,
) -> TemplateInput:
    """Check everything and bring it into the template's form.

    Args:
        kinds: of media that the model and its template take (``image``, ``video``, ``audio``); ``None``: text alone,
            and the template wants it as one string a message.
        messages: in the v1 form.
        tools: JSON text of a list of tools, or of a single one.
        options: further variables of the template (``enable_thinking``, ...); ``strftime_now`` is the date and time
            that it is for the template, in ISO form.

    Raises:
        RenderError: names the message (counted from 1) or says that the tools or an option are wrong.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RenderError("There are no messages to render; give a list with at least one message.")
    return TemplateInput(
        [_template_message(message, number, guard, kinds) for number, message in enumerate(messages, 1)],
        _template_tools(tools, guard),
        {name: _guarded_json(value, f"option {name!r}", guard) for name, value in options.items() if name != NOW},
        _date(options[NOW]) if NOW in options else None,
    )


def _date(value: object) -> datetime:
    try:
        return datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise RenderError(
            f"The template option {NOW!r} must be a date and time in ISO form, like 2026-01-31T09:30:00, not "
            f"{_short(value)}."
        ) from None


def v1_form(given: TemplateInput) -> tuple[list[Message], str | None]:
    """The same messages and tools in the v1 form: guarded, and with their blocks joined."""
    tools = None if given.tools is None else json.dumps(given.tools, ensure_ascii=False)
    return [_v1_message(message) for message in given.messages], tools


def _v1_message(message: Mapping[str, Any]) -> Message:
    content: list[Content] = []
    if reasoning := message.get("reasoning_content"):
        content.append({"type": "reasoning", "value": reasoning})
    calls = message.get("tool_calls", [])
    if message["content"] or not (reasoning or calls):
        content.append({"type": "text", "value": message["content"]})
    content += [{"type": "tool_call", "value": json.dumps(call["function"], ensure_ascii=False)} for call in calls]
    return {"role": message["role"], "content": content}


def _template_message(message: Any, number: int, guard: TextGuard, kinds: Set[str] | None) -> dict[str, Any]:
    role, blocks = _checked_message(message, number, kinds)
    place = f"message {number} ({role})"

    def joined(kind: str) -> str:
        # Joined first: a special token could otherwise be cut in two by a block's end.
        return guard.message_text(place, "".join(block["value"] for block in blocks if block["type"] == kind))

    content: Any = joined("text") if kinds is None else _parts(place, blocks, guard)
    converted: dict[str, Any] = {"role": role, "content": content}
    if reasoning := joined("reasoning"):
        converted["reasoning_content"] = reasoning
    if calls := [block["value"] for block in blocks if block["type"] == "tool_call"]:
        converted["tool_calls"] = [_template_call(call, place, guard) for call in calls]
    return converted


def _parts(place: str, blocks: Sequence[Mapping[str, str]], guard: TextGuard) -> list[dict[str, str]]:
    """Texts and media in their order, texts that follow one another joined."""
    shown = [block for block in blocks if block["type"] == "text" or block["type"] in KIND_OF]
    parts: list[dict[str, str]] = []
    for kind, group in itertools.groupby(shown, key=lambda block: block["type"]):
        if kind == "text":
            parts.append({"type": "text", "text": guard.message_text(place, "".join(b["value"] for b in group))})
        else:
            parts += [{"type": KIND_OF[kind]} for _ in group]
    return parts


def _checked_message(message: Any, number: int, kinds: Set[str] | None) -> tuple[str, list[Mapping[str, str]]]:
    if not isinstance(message, Mapping):
        raise RenderError(f"Message {number} is not an object with a role and content, but {_short(message)}.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RenderError(f"Message {number} has the role {_short(role)}; it must be one of {', '.join(ROLES)}.")
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise RenderError(f"The content of message {number} ({role}) must be a list of blocks, not {_short(content)}.")
    for block in content:
        _check_block(block, f"message {number} ({role})", kinds)
    return role, list(content)


def _check_block(block: Any, place: str, kinds: Set[str] | None) -> None:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind not in CONTENT_TYPES or not isinstance(block.get("value"), str):
        known = ", ".join(CONTENT_TYPES)
        raise RenderError(
            f"A content block of {place} must have a type ({known}) and a string value; this one is {_short(block)}."
        )
    if kind in KIND_OF and KIND_OF[kind] not in (kinds or ()):
        takes = f"text and {', '.join(sorted(kinds))}, nothing else" if kinds else "text only"
        raise RenderError(f"There is a block of type {kind} in {place}, but this model takes {takes}; leave it out.")


def _template_call(value: str, place: str, guard: TextGuard) -> dict[str, Any]:
    call = _parsed_json(value, f"A tool_call in {place}")
    if not is_tool_call(call):
        raise RenderError(
            f"A tool_call in {place} must be an object with a string 'name' and an object 'arguments', "
            f"not {_short(value)}."
        )
    safe = _guarded_json({"name": call["name"], "arguments": call["arguments"]}, place, guard)
    return {"type": "function", "function": safe}


def _template_tools(tools: str | None, guard: TextGuard) -> list[dict[str, Any]] | None:
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, str):
        raise RenderError(f"The tools must be JSON text, not {_short(tools)}.")
    parsed = _parsed_json(tools, "The tools text")
    listed = [parsed] if isinstance(parsed, dict) else parsed
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise RenderError(f"The tools must be a JSON object or a list of objects, not {_short(tools)}.")
    # Guarded after parsing: JSON can spell a special token with escapes that the raw text does not show.
    guarded: list[dict[str, Any]] = _guarded_json(listed, "tools", guard)
    return guarded or None


def _guarded_json(value: Any, place: str, guard: TextGuard) -> Any:
    try:
        return map_strings(
            value,
            lambda text: guard.structure_text(place, text, key=False),
            lambda text: guard.structure_text(place, text, key=True),
        )
    except (ValueError, RecursionError) as error:
        raise RenderError(f"The JSON in {place} cannot be used: {error}.") from error


def _parsed_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RenderError(f"{what} is not valid JSON ({error}): {_short(text)}.") from error


def _short(value: Any, limit: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
