"""Lines of an OpenAI batch output file, ours or a provider's, as output rows. Pure; nothing is expected of a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from samplerpool.data.json_text import to_json
from samplerpool.data.records import Record


def is_openai(columns: Mapping[str, Any]) -> bool:
    """Whether a row is such a line."""
    return "custom_id" in columns and "response" in columns


def output_rows(record: Record, number: int) -> Iterator[Record]:
    """One row an answer, or one with the error.

    Args:
        number: of the line.
    """
    if record.error is not None or not is_openai(record.columns):
        yield record
        return
    line = record.columns
    response = _mapping(line.get("response"))
    body = _mapping(response.get("body"))
    choices = [choice for choice in _list(body.get("choices")) if isinstance(choice, Mapping)]
    own = {"custom_id": line.get("custom_id")}
    if not choices:
        error = _mapping(line.get("error") or body.get("error"))
        kind = str(error.get("code") or error.get("type") or response.get("status_code") or "error").replace(" ", "_")
        sentence = error.get("message") or "the line has neither an answer nor an error"
        generation = {"index": number, "finish_reason": "error", "error": f"{kind}: {sentence}"}
        yield Record(record.place, {**own, "generation": generation})
        return
    usage = _mapping(body.get("usage"))
    for sample, choice in enumerate(choices):
        message = _mapping(choice.get("message"))
        content, text = _content(message), message.get("content", choice.get("text"))
        if isinstance(choice.get("text"), str) and not content:
            content = [{"type": "text", "value": choice["text"]}]
        generation = {
            "index": number,
            "finish_reason": choice.get("finish_reason"),
            "prompt_tokens": usage.get("prompt_tokens"),
            "error": None,
        }
        if isinstance(text, str) and text:  # else it is told by the blocks
            generation["text"] = text
        if len(choices) > 1:
            generation["sample"] = sample
        else:
            generation["completion_tokens"] = usage.get("completion_tokens")
        yield Record(
            record.place, {**own, "messages": [{"role": "assistant", "content": content}], "generation": generation}
        )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(message: Mapping[str, Any]) -> list[dict[str, str]]:
    blocks = [
        {"type": kind, "value": message[name]}
        for kind, name in (("reasoning", "reasoning_content"), ("text", "content"))
        if isinstance(message.get(name), str)
    ]
    for call in _list(message.get("tool_calls")):
        function = _mapping(_mapping(call).get("function"))
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and isinstance(arguments, str):
            value = f'{{"name": {_text(name)}, "arguments": {arguments}}}'
            blocks.append({"type": "tool_call", "value": value})
    return blocks


def _text(value: str) -> str:
    return to_json(value).decode()
