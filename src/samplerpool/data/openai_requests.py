"""Requests of an OpenAI batch file, made into conversations with sampling parameters of their own. Pure.

A line is ``{"custom_id", "method", "url", "body"}``; ``url`` says what ``body`` is: of ``/v1/chat/completions`` with
``messages``, of ``/v1/completions`` with ``prompt``. https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from samplerpool.config.sampling import PARAMS, SAMPLING, sampling_params
from samplerpool.errors import BadRow, InvalidParameter

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
COLUMNS = frozenset(("custom_id", "method", "url", "body"))

WITHOUT_EFFECT = frozenset(
    ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
)
"""Say nothing of how to answer. The pool's model answers, whichever is named."""

_ONLY: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
}
"""Parameters of which some values alone can be honoured."""

OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
}
"""OpenAI's names, and vLLM's beside them, of parameters that are ours; those that are called the same go through."""

_HANDLED = frozenset(("messages", "prompt", "tools", "logprobs", "top_logprobs"))


def is_request(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a line of a batch file, and no answered one, which has its conversation in ``messages``."""
    return "messages" not in columns and isinstance(columns.get("url"), str) and _body(columns) is not None


def openai_batch(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``custom_id``, ``url`` and ``body``: a request of an OpenAI batch file, with its own sampling parameters."""
    body = _body(columns)
    if body is None:
        raise BadRow("body must be an object with the request's parameters.")
    if columns.get("method", "POST") != "POST":
        raise BadRow(f"method must be POST, not {columns['method']!r}.")
    url = columns.get("url")
    if url not in (CHAT, COMPLETION):
        raise BadRow(f"url must be {CHAT} or {COMPLETION}, not {url!r}.")
    given = {name: value for name, value in body.items() if value is not None}
    _check_values(given)
    rest = {name: value for name, value in columns.items() if name not in COLUMNS or name == "custom_id"}
    tools = None if given.get("tool_choice") == "none" else given.get("tools")
    messages = _messages(given) if url == CHAT else _prompt(given)
    return {**rest, "messages": messages, "tools": tools, SAMPLING: _sampling(given, chat=url == CHAT)}


def _body(columns: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A table of texts holds it as JSON."""
    body = columns.get("body")
    if isinstance(body, str) and body.startswith("{"):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return body if isinstance(body, Mapping) else None


def _check_values(given: Mapping[str, Any]) -> None:
    known = {*PARAMS, *OTHER_NAMES, *_ONLY, *WITHOUT_EFFECT, *_HANDLED}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise BadRow(f"body.{', body.'.join(unknown)} cannot be honoured.")
    for name, values in _ONLY.items():
        if name in given and given[name] not in values:
            only = f", only {' or '.join(json.dumps(value) for value in values)}" if values else ""
            raise BadRow(f"body.{name} = {_shown(given[name])} cannot be honoured{only}.")


def _messages(given: Mapping[str, Any]) -> Any:
    if "prompt" in given or "messages" not in given:
        raise BadRow(f"the body of {CHAT} needs messages, and no prompt.")
    return given["messages"]


def _prompt(given: Mapping[str, Any]) -> str:
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str) or "messages" in given or "tools" in given:
        raise BadRow(f"the body of {COMPLETION} needs prompt, one text, and neither messages nor tools.")
    return prompt


def _sampling(given: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        ours = OTHER_NAMES.get(name, name)
        if ours not in PARAMS or name == "logprobs":
            continue
        if found.setdefault(ours, value) != value:
            raise BadRow(f"body.{name} and another name of {ours} differ.")
    logprobs = _logprobs(given, chat=chat)
    if logprobs is not None:
        found["logprobs"] = logprobs
    if "temperature" in found and "do_sample" not in found and isinstance(found["temperature"], int | float):
        found["do_sample"] = found["temperature"] > 0  # whatever the run says for rows that do not
    try:
        return sampling_params(found).given()
    except InvalidParameter as error:
        raise BadRow(f"body: {error.message}", **error.data) from None


def _logprobs(given: Mapping[str, Any], *, chat: bool) -> Any:
    """How many of the most probable tokens are wanted; None: no log-probabilities at all."""
    wanted, top = given.get("logprobs"), given.get("top_logprobs")
    if not chat:
        if top is not None:
            raise BadRow(f"body.top_logprobs is not a parameter of {COMPLETION}.")
        return wanted
    if wanted not in (None, False, True):
        raise BadRow(f"body.logprobs must be true or false, not {_shown(wanted)}.")
    if top is not None and not wanted:
        raise BadRow("body.top_logprobs needs body.logprobs to be true.")
    return (top or 0) if wanted else None


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
