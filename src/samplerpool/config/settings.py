"""What the fields of a group of arguments take: said once, beside each field, and checked here for every way in."""

from __future__ import annotations

import functools
import json
import operator
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, TypeVar

from samplerpool.config.sampling import MAX_INT32, ParamSpec, bounds_of, field_values, unknown_name
from samplerpool.errors import InvalidParameter

Group = TypeVar("Group")

_KINDS = {str: "a string", bool: "true or false", int: "an integer", float: "a number", dict: "a mapping"}
_SAMPLING_KINDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "strings": "a string or several",
    "ints": "an integer or several",
    "words": "words, or lists of token ids",
    "biases": "token ids with numbers",
}


def setting(
    default: Any = None,
    help: str = "",
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    named: bool = False,
    metavar: str | None = None,
) -> Any:
    """A field of a group of arguments.

    Args:
        help: one line for ``--help``.
        choices: the words that it takes.
        low: the least number.
        named: a mapping that has to say its ``name``.
        metavar: what ``--help`` shows as its value.
    """
    said = {"help": help, "choices": choices, "low": low, "named": named, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=said)
    return field(default=default, metadata=said)


@dataclass(frozen=True)
class Setting:
    """One field of one group.

    Args:
        types: that it takes, ``NoneType`` among them where it may be left open.
        item: type of the elements, where it takes several.
        spec: of a sampling parameter, which has rules of its own.
    """

    name: str
    types: tuple[Any, ...]
    default: Any
    item: type | None = None
    help: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    named: bool = False
    metavar: str | None = None
    spec: ParamSpec | None = None

    @property
    def takes_several(self) -> bool:
        """Whether it is a list."""
        return tuple in self.types

    @property
    def takes_names(self) -> bool:
        """Whether it is a mapping, so that ``setting.name`` means something."""
        return dict in self.types or (self.spec is not None and self.spec.kind == "biases")

    @property
    def expected(self) -> str:
        """What it takes, in words: ``auto, paged or scripted``."""
        if self.spec is not None:
            return " ".join(filter(None, [_SAMPLING_KINDS.get(self.spec.kind, "a string"), self.bounds]))
        kinds = [_KINDS[kind] for kind in self.types if kind in _KINDS and not (kind is str and self.choices)]
        if self.low is not None:
            kinds = [f"{kind} of at least {self.low:g}" for kind in kinds]
        if self.named:
            kinds = [f"{kind} with a name, like {{name: ...}}" for kind in kinds]
        *most, last = *kinds, *self.choices
        return f"{', '.join(most)} or {last}" if most else last

    @property
    def bounds(self) -> str:
        """Between which numbers it lies, in words; empty where any of its type will do."""
        if self.spec is not None:
            scalar = self.spec.kind in ("int", "float")
            unlimited = self.spec.high is not None and self.spec.high >= MAX_INT32
            return bounds_of(replace(self.spec, high=None) if unlimited else self.spec) if scalar else ""
        return "" if self.low is None else f"at least {self.low:g}"

    def checked(self, value: Any) -> Any:
        """The value as the field holds it: paths as text, JSON text where a mapping is meant as that.

        Raises:
            ValueError: it does not fit.
        """
        taken = os.fspath(value) if isinstance(value, os.PathLike) else value
        if dict in self.types:
            taken = mapping_of(taken)
        if not self._fits(taken):
            broken = broken_json(taken) if dict in self.types else ""
            raise ValueError(f"{self.name} must be {self.expected}, not {value!r}{broken}.")
        return float(taken) if float in self.types and type(taken) is int else taken

    def _fits(self, value: Any) -> bool:
        kind = float if type(value) is int and float in self.types else type(value)
        if kind not in self.types:
            return False
        if isinstance(value, str):
            return bool(value) and (not self.choices or value in self.choices)
        if isinstance(value, dict):
            return not self.named or (isinstance(value.get("name"), str) and bool(value["name"]))
        return self.low is None or bool(value >= self.low)


def mapping_of(value: Any) -> Any:
    """A mapping, or its JSON text, as a dict of its own; anything else as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    return dict(value) if isinstance(value, Mapping) else value


def broken_json(value: Any) -> str:
    """What is wrong with a text that was meant as JSON of a mapping, to end a sentence about it with; else nothing."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return ""
    try:
        json.loads(value)
    except ValueError as error:
        return f", which is broken JSON ({error})"
    return ""


@functools.cache
def settings_of(group: type) -> Mapping[str, Setting]:
    """The fields of a group by name, in their order."""
    hints = typing.get_type_hints(group)
    return {each.name: _setting_of(each, hints[each.name]) for each in fields(group)}


def _setting_of(each: Field[Any], hint: Any) -> Setting:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    said = {
        name: each.metadata[name] for name in ("help", "choices", "low", "named", "metavar") if name in each.metadata
    }
    spec = each.metadata.get("spec")
    if spec is not None:
        said["help"] = spec.help
    return Setting(
        name=each.name,
        types=tuple(typing.get_origin(member) or member for member in members),
        default=each.default_factory() if each.default_factory is not MISSING else each.default,
        item=next((typing.get_args(member)[0] for member in members if typing.get_origin(member) is tuple), None),
        spec=spec,
        **said,
    )


def check_values(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Check values of known names; None counts as not given.

    Returns:
        What was given, as the fields hold it; and a sentence about each value that does not fit.
    """
    given = {name: value for name, value in values.items() if value is not None}
    checked: dict[str, Any] = {}
    problems: list[str] = []
    try:
        checked.update(field_values({name: given.pop(name) for name in list(given) if settings[name].spec}))
    except InvalidParameter as error:
        problems.append(error.message)
    for name, value in given.items():
        try:
            checked[name] = settings[name].checked(value)
        except ValueError as error:
            problems.append(str(error))
    return checked, problems


def checked_group(aliases: Mapping[str, str] | None = None) -> Callable[[type[Group]], type[Group]]:
    """Class decorator for a group: whoever makes one, its names, types and ranges are checked, all together.

    Args:
        aliases: further names of fields, as keywords and as attributes.
    """
    others = dict(aliases or {})

    def decorate(group: type[Group]) -> type[Group]:
        plain: Any = group.__init__

        @functools.wraps(plain)
        def __init__(self: Group, **values: Any) -> None:
            plain(self, **_checked_keywords(group, others, values))

        group.__init__ = __init__  # type: ignore[assignment, method-assign]
        for alias, name in others.items():
            setattr(group, alias, property(operator.attrgetter(name)))
        return group

    return decorate


def restored(group: type[Group], values: Mapping[str, Any]) -> Group:
    """A group from the values of one that was checked when it was made."""
    made = object.__new__(group)
    plain: Any = group.__init__
    plain.__wrapped__(made, **values)
    return made


def _checked_keywords(group: type, aliases: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    settings = settings_of(group)
    known: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in values.items():
        canonical = aliases.get(name, name)
        if canonical not in settings:
            problems.append(unknown_name("argument", name, [*settings, *aliases]))
        elif known.get(canonical) is not None and value is not None:
            problems.append(given_twice(canonical, name if name != canonical else _alias_in(values, aliases, name)))
        elif value is not None:
            known[canonical] = value
    checked, unfit = check_values(settings, known)
    if problems or unfit:
        raise InvalidParameter(" ".join([*problems, *unfit]))
    return checked


def _alias_in(values: Mapping[str, Any], aliases: Mapping[str, str], name: str) -> str:
    return next(alias for alias, canonical in aliases.items() if canonical == name and alias in values)


def given_twice(name: str, again: str) -> str:
    """A sentence about one setting that came under two names."""
    return f"{name} is given twice, once as {again}; leave one out."
