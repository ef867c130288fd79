"""The fields of a request, sorted: what each means to us, and what is refused because it cannot be honoured. Pure.

Nothing is dropped in silence: a field is honoured, or said here to have no effect, or refused by name. Fields that are
null count as not given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from samplerpool.config.sampling import PARAMS, sampling_params, unknown_name
from samplerpool.data.openai_requests import OTHER_NAMES, WITHOUT_EFFECT
from samplerpool.errors import InvalidParameter

_BOTH = frozenset(("model", "stream", "stream_options", "logprobs", "n", "best_of"))
_CHAT = frozenset(
    ("messages", "tools", "tool_choice", "top_logprobs", "chat_template_kwargs", "template_options", "prefill")
)
_COMPLETION = frozenset(("prompt", "echo"))

ONLY: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
    "functions": ([],),
    "function_call": ("auto", "none"),
}
"""Fields of which some values alone can be honoured."""

_REFUSED = frozenset(
    ("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options", "moderation", "guided_json")
)
"""Fields of OpenAI's and others' that would change the answer, and cannot be honoured at all."""

_IGNORED = WITHOUT_EFFECT | {"prompt_cache_retention"}
"""They say nothing of how to answer."""


MOST_VALUES = 1024
"""Of a list or an object (stop, logit_bias, bad_words): each is looked at for each token, at the cost of all others."""


def given_fields(body: Any, *, chat: bool) -> dict[str, Any]:
    """The fields of a request's body that are to be honoured.

    Args:
        body: the JSON value.
        chat: of ``/v1/chat/completions``, or else of ``/v1/completions``.

    Raises:
        InvalidParameter: it is no object, or has a field that is not known or cannot be honoured; ``data["param"]`` is
            its name.
    """
    if not isinstance(body, Mapping):
        raise InvalidParameter("The body must be a JSON object with the request's fields.")
    given = {name: value for name, value in body.items() if value is not None}
    own = _BOTH | (_CHAT if chat else _COMPLETION)
    known = own | PARAMS.keys() | OTHER_NAMES.keys() | ONLY.keys() | _IGNORED
    for name in given:
        if name in _REFUSED or name in (_CHAT | _COMPLETION) - own:
            there = "" if name in _REFUSED else f" at {'/v1/chat/completions' if chat else '/v1/completions'}"
            refuse(name, f"{name} cannot be honoured{there}; leave it out.")
        if name not in known:
            refuse(name, unknown_name("field", name, sorted(known | _REFUSED)))
    for name, values in ONLY.items():
        if name in given and given[name] not in values and not (name == "best_of" and given[name] == given.get("n", 1)):
            choices = " or ".join(json.dumps(value) for value in values)
            refuse(name, f"{name} = {shown(given[name])} cannot be honoured, only {choices}.")
    return {name: value for name, value in given.items() if name not in _IGNORED or name == "model"}


def sampling_of(given: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """The sampling parameters among the fields, by our names, as plain values.

    Raises:
        InvalidParameter: a value is out of range, or two names of one parameter differ.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        ours = OTHER_NAMES.get(name, name)
        if ours not in PARAMS or name == "logprobs":
            continue
        if isinstance(value, list | dict) and len(value) > MOST_VALUES:
            refuse(name, f"{name} has {len(value):,} values, and may have {MOST_VALUES:,}.")
        _checked(name, ours, value)
        if found.setdefault(ours, value) != value:
            refuse(name, f"{name} and another name of {ours} differ; leave one out.")
    logprobs = _logprobs(given, chat=chat)
    if logprobs is not None:
        _checked("top_logprobs" if chat else "logprobs", "logprobs", logprobs)
        found["logprobs"] = logprobs
    return sampling_params(found).given()


def with_defaults(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says, over what the gateway was started with: a word on the temperature is one on sampling."""
    merged = {**defaults, **params}
    if "temperature" in params and "do_sample" not in params:
        merged["do_sample"] = params["temperature"] > 0
    return merged


def flag(given: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, and false where it is not given.

    Raises:
        InvalidParameter
    """
    value = given.get(name, False)
    if not isinstance(value, bool):
        refuse(name, f"{name} must be true or false, not {shown(value)}.")
    return value


def refuse(param: str, message: str) -> NoReturn:
    """Raise an error about a field."""
    raise InvalidParameter(message, param=param)


def shown(value: Any) -> str:
    """A value, not at length."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(name: str, ours: str, value: Any) -> None:
    try:
        sampling_params({ours: value})
    except InvalidParameter as error:
        raise InvalidParameter(name + error.message.removeprefix(ours), param=name) from None  # as the client calls it


def _logprobs(given: Mapping[str, Any], *, chat: bool) -> Any:
    """How many of the most probable tokens are wanted; None: no log-probabilities at all."""
    if not chat:
        return given.get("logprobs")
    wanted, top = flag(given, "logprobs"), given.get("top_logprobs")
    if top is not None and not wanted:
        refuse("top_logprobs", "top_logprobs needs logprobs to be true.")
    return (top or 0) if wanted else None
