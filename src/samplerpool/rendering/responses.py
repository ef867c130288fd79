"""Answers read with a tokenizer's own response template, as transformers' ``parse_response`` does, but losing nothing.

The library returns a dictionary, which holds neither the order of the parts nor two texts, and drops text for which the
template has no field. So its parser's events are read instead, and a template without a place for text is given one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from samplerpool.rendering.parsing import assistant_message, is_tool_call
from samplerpool.types import Content, Message

_REASONING = ("reasoning_content", "reasoning", "thinking")
_TOOL_CALLS = ("tool_calls", "tool_call")
_KINDS = {"think": _REASONING, "tool_call": _TOOL_CALLS}
_REST = "_rest"


class ResponseReader:
    """Reads answers with a response template.

    Args:
        tokenizer: of transformers, with a ``response_template``.

    Raises:
        Exception: the template is not valid.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = _with_place_for_text(tokenizer.response_template)
        tokenizer.get_response_parser(self._template, prefix="")

    def message(self, text: str, prompt: str) -> Message:
        """The answer in the v1 form.

        Args:
            text: what the model wrote, special tokens included.
            prompt: what it answers, or the end of that; may have begun the answer.

        Raises:
            Exception: the text does not fit the template.
        """
        parser = self._tokenizer.get_response_parser(self._template, prefix=self._begun(prompt))
        events = parser.feed(text)
        events += parser.finalize()[1]
        closed = [event for event in events if event["type"] == "region_close"]
        return assistant_message([block for event in closed for block in _blocks(event["field"], event["value"])])

    def tags(self) -> dict[str, tuple[str, str]]:
        """The opening and the closing tag of reasoning (``think``) and of tool calls (``tool_call``), where each is one
        text that the template names."""
        found: dict[str, tuple[str, str]] = {}
        for kind, names in _KINDS.items():
            for spec in (self._template["fields"].get(name, {}) for name in names):
                pair = spec.get("open"), spec.get("close")
                if isinstance(pair[0], str) and isinstance(pair[1], str):
                    found.setdefault(kind, (pair[0], pair[1]))
        return found

    def kinds(self) -> list[str]:
        """Which of these kinds it knows at all."""
        return [kind for kind, names in _KINDS.items() if any(name in self._template["fields"] for name in names)]

    def begins_in(self, prompt: str) -> bool:
        """Whether the place where the answer's turn begins is in this part of the prompt."""
        return self._anchor_end(prompt) is not None

    def _begun(self, prompt: str) -> str:
        """What the prompt holds of the answer. Without an anchor the parser would take all of it for that."""
        end = self._anchor_end(prompt)
        return "" if end is None else prompt[end:]

    def _anchor_end(self, prompt: str) -> int | None:
        literals = self._template.get("start_anchor", [])
        listed = [literals] if isinstance(literals, str) else list(literals)
        pattern = self._template.get("start_anchor_pattern") or "|".join(map(re.escape, listed))
        ends = [found.end() for found in re.finditer(pattern, prompt, re.DOTALL)] if pattern else []
        return ends[-1] if ends else None


def _with_place_for_text(template: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(template["fields"])
    if all("open" in spec or "open_pattern" in spec for spec in fields.values()):
        fields[_REST] = {"content": "text"}
    return {**template, "fields": fields}


def _blocks(field: str, value: Any) -> Iterator[Content]:
    if field in _TOOL_CALLS:
        for call in value if isinstance(value, list) else [value]:
            yield {"type": "tool_call", "value": json.dumps(_function(call), ensure_ascii=False)}
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield {"type": "reasoning" if field in _REASONING else "text", "value": text}


def _function(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        function = {**function, "arguments": json.loads(function["arguments"])}
    if not is_tool_call(function):
        raise ValueError(f"a tool call without a name and arguments: {call!r:.200}")
    assert isinstance(function, dict)
    return {"name": function["name"], "arguments": function["arguments"]}
