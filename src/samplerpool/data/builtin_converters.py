"""The converters that come with the package, and which of them a row's columns ask for. Pure.

What they give still goes through ``data.messages.to_v1``, so they need not check what that checks. Columns that a
converter has no use for stay in the sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from samplerpool.errors import BadRow

TURNS_COLUMNS = ("messages", "conversations", "conversation")
PAIR_COLUMNS = (("chosen_messages", "rejected_messages"), ("chosen", "rejected"))

COLUMNS: Mapping[str, frozenset[str]] = {
    "openai": frozenset((*TURNS_COLUMNS, "tools")),
    "prompt": frozenset(("prompt", "tools")),
    "alpaca": frozenset(("system", "instruction", "input", "output", "history", "tools")),
    "sharegpt": frozenset((*TURNS_COLUMNS, "system", "tools")),
    "pair": frozenset((*TURNS_COLUMNS, "prompt", "system", "instruction", "input", "tools", *sum(PAIR_COLUMNS, ()))),
}
"""What each of them reads."""

SHAREGPT_ROLES: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}

_BESIDE_AN_INSTRUCTION = frozenset(("instruction", "system", "history", "tools", "id"))


def detect(columns: Mapping[str, Any]) -> str | None:
    """The converter for a row with these columns; None if they might mean something else.

    A column whose value is null or an empty text counts as absent, for tables fill in what a row does not have.
    """
    if _pair_columns(columns):
        return "pair"
    turns = _turns_column(columns)
    if turns is not None:
        value = columns[turns]
        return "sharegpt" if _is_sharegpt(_from_json(value)) else "openai"
    if columns.get("prompt") is not None:
        return "prompt"
    if _has(columns, "instruction"):
        known = "output" in columns or "input" in columns or _BESIDE_AN_INSTRUCTION.issuperset(columns)
        return "alpaca" if known else None
    return None


# ---- the converters -----------------------------------------------------------------------------------------------


def turns_in(column: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A converter that finds the conversation in this column: messages, ShareGPT's turns, JSON text of either, or a
    text, which is one user turn."""

    def convert(columns: Mapping[str, Any]) -> dict[str, Any]:
        if not columns.get(column):
            what = f"holds nothing ({columns[column]!r})" if column in columns else "is not there"
            raise BadRow(
                f"the column {column}, which is to hold the messages, {what}; this row has: {_names(columns)}."
            )
        turns = _from_json(columns[column])
        if _is_sharegpt(turns):
            turns = _sharegpt_turns(column, turns)
        rest = {name: value for name, value in columns.items() if name not in (column, "messages", "tools")}
        return {**rest, "messages": turns, "tools": columns.get("tools")}

    return convert


def openai(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``messages`` (or ``conversations``): messages with role and content, in OpenAI's, the common or the v1 form."""
    name = _turns_column(columns)
    if name is None:
        raise BadRow(f"a row needs a column messages; this one has: {_names(columns)}.")
    return {**_others(columns, "openai"), "messages": _from_json(columns[name]), "tools": columns.get("tools")}


def prompt(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``prompt``: a text, which is one user turn, or messages."""
    if columns.get("prompt") is None:
        raise BadRow(f"a row needs a column prompt; this one has: {_names(columns)}.")
    return {**_others(columns, "prompt"), "messages": columns["prompt"], "tools": columns.get("tools")}


def alpaca(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``instruction`` and ``input``, joined by a line break, are the question; ``output``, if there is one, the answer.

    Before them go ``system`` and ``history``, a list of question and answer.
    """
    messages = _alpaca_question(columns)
    if (answer := _text(columns, "output")) is not None:
        messages.append({"role": "assistant", "content": answer})
    return {**_others(columns, "alpaca"), "messages": messages, "tools": columns.get("tools")}


def sharegpt(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``conversations``: turns of ``from`` (human, gpt, system, function_call, observation) and ``value``.

    Before them goes ``system``. A function call's value is JSON text: an object with name and arguments, or several.
    """
    name = _turns_column(columns)
    if name is None:
        raise BadRow(f"a row needs a column conversations; this one has: {_names(columns)}.")
    messages = _system(columns) + _sharegpt_turns(name, _from_json(columns[name]))
    return {**_others(columns, "sharegpt"), "messages": messages, "tools": columns.get("tools")}


def pair(columns: Mapping[str, Any]) -> dict[str, Any]:
    """``chosen`` and ``rejected`` (or ``chosen_messages`` and ``rejected_messages``): two ends of a conversation.

    Each is a whole conversation; or an answer (a text or one message), and then the question stands in ``prompt``,
    ``messages``, ``conversations`` or ``instruction``.
    """
    names = _pair_columns(columns)
    if names is None:
        raise BadRow(f"a row needs columns chosen and rejected; this one has: {_names(columns)}.")
    made = {**_others(columns, "pair"), "tools": columns.get("tools")}
    for name, target in zip(names, PAIR_COLUMNS[0], strict=True):
        made[target] = _ending(columns, name)
    return made


# ---- their parts --------------------------------------------------------------------------------------------------


def _alpaca_question(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts = [text for name in ("instruction", "input") if (text := _text(columns, name))]
    if not parts:
        raise BadRow(f"a row needs an instruction; this one has: {_names(columns)}.")
    messages = _system(columns)
    for place, turns in enumerate(columns.get("history") or ()):
        if not isinstance(turns, Sequence) or isinstance(turns, str) or len(turns) != 2:
            raise BadRow(f"history[{place}] must be a question and its answer.")
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=True)]
    return [*messages, {"role": "user", "content": "\n".join(parts)}]


def _sharegpt_turns(name: str, turns: Any) -> list[dict[str, Any]]:
    if not isinstance(turns, list | tuple):
        raise BadRow(f"{name} must be a list of turns, not {type(turns).__name__}.")
    return [_sharegpt_turn(f"{name}[{place}]", turn) for place, turn in enumerate(turns)]


def _sharegpt_turn(where: str, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where} must be an object with from and value, not {type(turn).__name__}.")
    speaker, value = turn.get("from"), turn.get("value")
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(f"{where}.from must be one of {', '.join(SHAREGPT_ROLES)}, not {speaker!r}.")
    if speaker == "function_call":
        return {"role": role, "tool_calls": _calls(f"{where}.value", value)}
    if not isinstance(value, str):
        raise BadRow(f"{where}.value must be a text, not {type(value).__name__}.")
    return {"role": role, "content": value}


def _calls(where: str, value: Any) -> list[Any]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise BadRow(f"{where}: a function call must be JSON with name and arguments.") from None
    return calls if isinstance(calls, list) else [calls]


def _ending(columns: Mapping[str, Any], name: str) -> list[Any]:
    """The conversation that ends as ``name`` says."""
    value = _from_json(columns[name])
    if isinstance(value, str):
        return [*_question(columns, name), {"role": "assistant", "content": value}]
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRow(f"{name} must be an answer or a conversation, not {value!r}: so it is no preference pair.")
    if _is_sharegpt(turns):
        turns = _sharegpt_turns(name, turns)
    last = turns[-1]
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise BadRow(f"{name} must end with the assistant's answer: so it is no preference pair.")
    return [*_question(columns, name), *turns] if len(turns) == 1 else list(turns)


def _question(columns: Mapping[str, Any], name: str) -> list[Any]:
    turns = _turns_column(columns)
    if _has(columns, "prompt"):
        asked = columns["prompt"]
        return [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    if turns is not None:
        chat = _from_json(columns[turns])
        return _system(columns) + _sharegpt_turns(turns, chat) if _is_sharegpt(chat) else list(chat)
    if _has(columns, "instruction"):
        return _alpaca_question(columns)
    raise BadRow(f"{name} is an answer alone; its question is looked for in prompt, messages and instruction.")


def _system(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = _text(columns, "system")
    return [{"role": "system", "content": text}] if text else []


def _text(columns: Mapping[str, Any], name: str) -> str | None:
    value = columns.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{name} must be a text, not {type(value).__name__}.")
    return value


# ---- looking at columns -------------------------------------------------------------------------------------------


def _has(columns: Mapping[str, Any], name: str) -> bool:
    value = columns.get(name)
    return value is not None and value != ""


def _turns_column(columns: Mapping[str, Any]) -> str | None:
    for name in TURNS_COLUMNS:
        if name in columns and _has(columns, name):
            return name
    return None


def _pair_columns(columns: Mapping[str, Any]) -> tuple[str, str] | None:
    for chosen, rejected in PAIR_COLUMNS:
        if chosen in columns and _has(columns, chosen) and _has(columns, rejected):
            return chosen, rejected
    return None


def _is_sharegpt(turns: Any) -> bool:
    return isinstance(turns, list | tuple) and bool(turns) and isinstance(turns[0], Mapping) and "from" in turns[0]


def _from_json(value: Any) -> Any:
    """Tables of texts hold conversations as JSON; any other text stays what it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns: Iterable[Any] = parsed if isinstance(parsed, list) else [parsed]
    is_chat = bool(parsed) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    return parsed if is_chat else value


def _others(columns: Mapping[str, Any], converter: str) -> dict[str, Any]:
    used = COLUMNS[converter]
    return {name: value for name, value in columns.items() if name not in used}


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(map(str, columns)) or "none"
