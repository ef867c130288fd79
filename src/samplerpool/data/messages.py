"""Conversations as people write them, turned into the one form that the rest of the package knows (v1).

Taken are: the v1 form itself (``content`` a list of ``{"type", "value"}``), the common form (``content`` a string),
OpenAI's content parts (``{"type": "text", "text": ...}``, ``{"type": "image_url", "image_url": {"url": ...}}``), its
``tool_calls`` and ``reasoning_content``, and a plain string, which means one user turn. Keys of a message that v1 has
no place for (``name``, ``tool_call_id``, ...) are left out, and so is a key whose value is ``None``, because tables
fill the columns that a row does not have with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.types import CONTENT_TYPES, MEDIA_TYPES, ROLES, Content, Message
from samplerpool.wire.checks import MAX_DEPTH

_ROLE_ALIASES = {"developer": "system", "function": "tool"}
"""What OpenAI's interface called two of the roles at other times."""

_ROLE_OF = {**{role: role for role in ROLES}, **_ROLE_ALIASES}


def to_v1(messages: object) -> list[Message]:
    """Turn a conversation into the v1 form.

    Args:
        messages: a list of messages in any of the forms above (they may be mixed), or a string.

    Returns:
        New messages; nothing of the input is changed.

    Raises:
        RenderError: naming the message by its position, as in ``messages[2]``, and what is wrong with it.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": [{"type": "text", "value": _text(messages, "The prompt")}]}]
    if not isinstance(messages, list | tuple):
        raise RenderError(f"A conversation must be a list of messages or a string, not {_kind(messages)}.")
    if not messages:
        raise RenderError("The conversation has no messages; it needs at least one user turn.")
    return [_message(index, message) for index, message in enumerate(messages)]


def split_reference(messages: Sequence[Message]) -> tuple[list[Message], Message | None]:
    """Take a trailing assistant turn off, which is a reference answer and must not reach the model.

    Returns:
        The conversation to answer, and the reference or None.

    Raises:
        RenderError: nothing is left to answer.
    """
    if not messages or messages[-1]["role"] != "assistant":
        return list(messages), None
    if len(messages) == 1:
        raise RenderError("The conversation is one assistant turn alone; there is nothing to answer before it.")
    return list(messages[:-1]), messages[-1]


def prefill_text(prefill: Any) -> str:
    """The beginning of an answer, as it can travel.

    Raises:
        RenderError: it is no text, or holds half a character.
    """
    return _text(prefill, "prefill")


def tools_text(tools: Any) -> str | None:
    """Tools as JSON text; whether what the text says can be used is the renderer's matter.

    Args:
        tools: that text, or what it would say: a list of tools, or a single one. Empty means none.

    Raises:
        RenderError: it cannot be written as JSON.
    """
    if not tools:
        return None
    if not isinstance(tools, str):
        try:
            tools = json.dumps(tools, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise RenderError(f"tools cannot be written as JSON: {error}.") from None
    try:
        tools.encode()
    except UnicodeEncodeError:
        raise RenderError("tools hold half a surrogate pair, which is no character; remove it.") from None
    return str(tools)


NOW = "strftime_now"
"""What chat templates call for the date. As a template option: the date and time that they are told, in ISO form."""


def template_options_of(options: Any) -> dict[str, Any]:
    """Keyword arguments for a chat template; whether it can use them is the renderer's matter.

    Raises:
        InvalidParameter: no mapping of names, or a value that cannot be written as JSON.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InvalidParameter(
            "template_options must be a mapping of names to values, like {'enable_thinking': False}, not "
            f"{options!r}."
        )
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(options)))  # with all keys as text
        _check_plain(plain, MAX_DEPTH)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParameter(f"template_options cannot be written as JSON that a worker reads: {error}.") from None
    return plain


def _check_plain(value: Any, depth: int) -> None:
    if not depth:
        raise ValueError(f"they are nested deeper than {MAX_DEPTH} levels")
    match value:
        case dict():
            for item in (*value, *value.values()):
                _check_plain(item, depth - 1)
        case list():
            for item in value:
                _check_plain(item, depth - 1)
        case str():
            value.encode()  # half a surrogate pair is a ValueError
        case int() if not -(2**63) <= value < 2**64:
            raise ValueError("they hold a whole number of more than 64 bits")


def _message(index: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        _fail(index, f"a message must be an object with role and content, not {_kind(message)}")
    role = message.get("role")
    known = _ROLE_OF.get(role) if isinstance(role, str) else None
    if known is None:
        _fail(index, f"the role must be one of {', '.join(ROLES)}, not {_short(role)}")
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:  # by far the most frequent form
        return cast(Message, {"role": known, "content": [{"type": "text", "value": _checked(index, content)}]})
    result: dict[str, Any] = {"role": known, "content": _blocks(index, known, content, message)}
    weight = message.get("loss_weight")
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            _fail(index, f"loss_weight must be a number, not {_short(weight)}")
        result["loss_weight"] = weight
    return cast(Message, result)


def _blocks(index: int, role: str, content: Any, message: Mapping[str, Any]) -> list[Content]:
    reasoning = message.get("reasoning_content")
    calls = message.get("tool_calls")
    if (reasoning or calls) and role != "assistant":
        _fail(index, f"only an assistant turn has reasoning_content or tool_calls, this one is the {role}'s")
    blocks: list[Content] = []
    if reasoning:
        blocks.append({"type": "reasoning", "value": _checked(index, reasoning)})
    blocks += _content(index, content, optional=bool(reasoning or calls))
    if calls:
        if not isinstance(calls, list | tuple):
            _fail(index, f"tool_calls must be a list, not {_kind(calls)}")
        blocks += [{"type": "tool_call", "value": _tool_call(index, call)} for call in calls]
    return blocks


def _content(index: int, content: Any, *, optional: bool) -> list[Content]:
    if optional and not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "value": _checked(index, content)}]
    if content is None:
        _fail(index, "it has no content")
    if not isinstance(content, list | tuple):
        _fail(index, f"content must be a string or a list of blocks, not {_kind(content)}")
    return [_block(index, place, block) for place, block in enumerate(content)]


def _block(index: int, place: int, block: Any) -> Content:
    where = f"content[{place}]"
    if not isinstance(block, Mapping):
        _fail(index, f"{where} must be an object with type and value, not {_kind(block)}")
    kind = block.get("type")
    if kind not in CONTENT_TYPES:
        _fail(index, f"{where} has the unknown type {_short(kind)}; known: {', '.join(CONTENT_TYPES)}")
    value = block.get("value")
    if value is None and kind == "text":
        value = block.get("text")
    if value is None and kind in MEDIA_TYPES:
        media = block.get(kind)
        value = media.get("url") if isinstance(media, Mapping) else media
    if not isinstance(value, str):
        _fail(index, f"{where}, of type {kind}, needs a string as its value, not {_kind(value)}")
    return {"type": kind, "value": _checked(index, value)}


def _tool_call(index: int, call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        _fail(index, f"a tool call needs a function with a name, not {_short(call)}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            _fail(index, f"the arguments of the tool call {function['name']!r} are not JSON: {_short(arguments)}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        _fail(index, f"the arguments of the tool call {function['name']!r} must be an object, not {_kind(arguments)}")
    try:
        text = json.dumps({"name": function["name"], "arguments": dict(arguments)}, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        _fail(index, f"the arguments of the tool call {function['name']!r} cannot be written as JSON: {error}")
    return _checked(index, text)


def _checked(index: int, value: Any) -> str:
    return _text(value, f"messages[{index}]") if type(value) is not str or not value.isascii() else value


def _text(value: Any, where: str) -> str:
    """A string that can travel: JSON's escapes can spell half a surrogate pair, which UTF-8 cannot hold."""
    if not isinstance(value, str):
        raise RenderError(f"{where}: text expected, not {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RenderError(
            f"{where}: character {error.start} of the text is half a surrogate pair ({value[error.start]!r}), "
            "which is no character; remove it."
        ) from None
    return value


def _fail(index: int, what: str) -> NoReturn:
    raise RenderError(f"messages[{index}]: {what}.")


def _kind(value: object) -> str:
    names = {type(None): "nothing", dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), f"{type(value).__name__} {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
