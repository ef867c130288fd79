"""What strings of a command line mean: which setting, and which value for its type."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from samplerpool.config.settings import Setting

WORDS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def assignments(
    strings: Sequence[str], setting: Callable[[str], Setting | None], problems: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Name and raw values of each setting; no value at all means a flag.

    Args:
        setting: the one of a name, if there is one.
        problems: gets a sentence about each string that is no assignment.
    """
    rest = list(strings)
    while rest:
        head = rest.pop(0)
        name, equals, value = head.removeprefix("--").partition("=")
        if equals:
            yield name, [value]
        elif head.startswith("--") and name:
            yield name, _take_values(setting(name), rest)
        else:
            problems.append(f"Unexpected argument {head!r}; write --name value or name=value.")


def _take_values(setting: Setting | None, rest: list[str]) -> list[str]:
    """Remove from ``rest`` what belongs to a setting, a flag taking a value only where it is a word for yes or no."""
    taken: list[str] = []
    most = len(rest) if setting and setting.takes_several else 1
    while rest and len(taken) < most and not rest[0].startswith("--"):
        if setting and bool in setting.types and rest[0].lower() not in WORDS:
            break
        taken.append(rest.pop(0))
    return taken


def value_of(setting: Setting, texts: Sequence[str], *, entry: bool = False) -> Any:
    """The value that texts mean for this setting, or for one entry of it; what means none comes back as it is."""
    if not texts:
        return True if bool in setting.types else ""
    values = [_yaml_value(text) if entry else _from_text(setting, text) for text in texts]
    return values[0] if len(values) == 1 else values


def _from_text(setting: Setting, text: str) -> Any:
    word = text.strip().lower()
    if types.NoneType in setting.types and word == "null":
        return None
    if bool in setting.types:
        return WORDS.get(word, text)
    if setting.takes_names or (setting.takes_several and text.startswith("[")):
        return _yaml_value(text)
    number = next((kind for kind in (float, int) if kind in (*setting.types, setting.item)), None)
    try:
        return number(text) if number else text
    except ValueError:
        return text


def _yaml_value(text: str) -> Any:
    from samplerpool.config.documents import yaml_document  # PyYAML is needed for few options

    try:
        return yaml_document(text)
    except ValueError:
        return text
