"""From a dict, command line strings or a config file to the four groups of arguments.

Everything here is derived from the fields of the dataclasses in ``config.arguments`` and ``config.sampling``: names,
types, choices and ranges are written down there and nowhere else.
"""

from __future__ import annotations

import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from samplerpool.config.arguments import DataArguments, ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.sampling import ALIASES, PARAMS, field_values, unknown_name
from samplerpool.errors import DataFileError, InvalidParameter

EXTRA_KEYS_VARIABLE = "ALLOW_EXTRA_KEYS"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
OPTION_ALIASES: Mapping[str, str] = {"model": "model_name_or_path", **ALIASES}

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KINDS = {str: "a string", bool: "true or false", int: "an integer", float: "a number", dict: "a mapping"}


class Arguments(NamedTuple):
    """The four groups, each checked."""

    model: ModelArguments
    data: DataArguments
    sample: SampleArguments
    pool: PoolArguments


@dataclass(frozen=True)
class _Option:
    """One field of one group; ``item`` is the type of a list's elements."""

    name: str
    group: type
    types: tuple[Any, ...]
    item: type | None
    choices: tuple[str, ...]
    low: float | None
    default: Any

    @property
    def takes_several(self) -> bool:
        return tuple in self.types


@dataclass
class _Reading:
    """Canonical name to value as far as read, and what is wrong so far."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ignore_extra: bool = False

    def put(self, name: str, value: Any, *, unless: Mapping[str, Any] | None = None) -> None:
        """Take one setting; a name in ``unless`` has been given by the same source already."""
        canonical = _canonical(name)
        if canonical not in _options():
            if not self.ignore_extra:
                self.problems.append(unknown_name("argument", name, [*_options(), *OPTION_ALIASES]))
        elif unless is not None and canonical in unless:
            self.problems.append(f"{canonical} is given twice, once as {name}; leave one out.")
        else:
            self.values[canonical] = os.fspath(value) if isinstance(value, os.PathLike) else value


def get_args(
    args: Mapping[str, Any] | Sequence[str] | None = None, *, environ: Mapping[str, str] = os.environ
) -> Arguments:
    """Read and check the arguments of all groups together.

    Args:
        args: a mapping of names to values; or command line strings: ``--name value``, ``--name=value``, ``--flag`` or
            ``name=value``, optionally behind the path of a ``.yaml``, ``.yml`` or ``.json`` file that they override;
            ``None`` means ``sys.argv[1:]``. A list is written as several values (``--stop A B``) or in YAML
            (``stop=[A, B]``), a mapping in YAML, "not given" as ``null``.
        environ: with ``ALLOW_EXTRA_KEYS`` set to 1, unknown names are ignored.

    Raises:
        InvalidParameter: one error that names everything that is wrong.
        DataFileError: the config file cannot be read.
    """
    reading = _Reading(ignore_extra=_WORDS.get(environ.get(EXTRA_KEYS_VARIABLE, "").lower(), False))
    if isinstance(args, Mapping):
        _read_mapping(reading, args)
    else:
        _read_strings(reading, sys.argv[1:] if args is None else args)
    return _build(reading)


def describe_arguments() -> str:
    """One line for each argument: name, what it takes, default, and help where there is one."""
    lines = []
    for option in _options().values():
        spec = PARAMS.get(option.name)
        text = spec.help if spec else "" if option.default in (None, {}) else f"Default: {option.default}."
        lines.append(f"  --{option.name:<22} {_expected(option):<30} {text}".rstrip())
    return "\n".join(lines)


def _canonical(name: str) -> str:
    underscored = name.replace("-", "_")
    return OPTION_ALIASES.get(underscored, underscored)


@cache
def _options() -> dict[str, _Option]:
    return {
        each.name: _option(group, each, typing.get_type_hints(group)[each.name])
        for group in _groups().values()
        for each in fields(group)
    }


def _groups() -> dict[str, Any]:
    return typing.get_type_hints(Arguments)


def _option(group: type, each: Field[Any], hint: Any) -> _Option:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    default = each.default_factory() if each.default_factory is not MISSING else each.default
    return _Option(
        name=each.name,
        group=group,
        types=tuple(typing.get_origin(member) or member for member in members),
        item=next((typing.get_args(member)[0] for member in members if typing.get_origin(member) is tuple), None),
        choices=each.metadata.get("choices", ()),
        low=each.metadata.get("low"),
        default=default,
    )


def _read_mapping(reading: _Reading, values: Mapping[Any, Any]) -> None:
    seen: dict[str, Any] = {}
    for name, value in values.items():
        reading.put(str(name), value, unless=seen)
        seen[_canonical(str(name))] = value


def _read_strings(reading: _Reading, strings: Sequence[str]) -> None:
    rest = list(strings)
    if rest and rest[0].lower().endswith(CONFIG_SUFFIXES) and not rest[0].startswith("--") and "=" not in rest[0]:
        _read_mapping(reading, _load_file(Path(rest.pop(0)).expanduser()))
    for name, texts in _assignments(rest, reading.problems):
        option = _options().get(_canonical(name))
        reading.put(name, _from_texts(option, texts) if option else texts)


def _load_file(path: Path) -> Mapping[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML as well
    except OSError as error:
        raise DataFileError(f"The config file {path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFileError(f"The config file {path} is not valid YAML or JSON: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise DataFileError(f"The config file {path} must hold names and values, not {type(content).__name__}.")
    return content


def _assignments(strings: Sequence[str], problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and raw values of each setting on the command line; no value at all means a flag."""
    rest = list(strings)
    while rest:
        head = rest.pop(0)
        name, equals, value = head.removeprefix("--").partition("=")
        if equals:
            yield name, [value]
        elif head.startswith("--") and name:
            yield name, _take_values(_options().get(_canonical(name)), rest)
        else:
            problems.append(f"Unexpected argument {head!r}; write --name value or name=value.")


def _take_values(option: _Option | None, rest: list[str]) -> list[str]:
    """Remove from ``rest`` what belongs to an option, a flag taking a value only where it is a word for yes or no."""
    taken: list[str] = []
    most = len(rest) if option and option.takes_several else 1
    while rest and len(taken) < most and not rest[0].startswith("--"):
        if option and bool in option.types and rest[0].lower() not in _WORDS:
            break
        taken.append(rest.pop(0))
    return taken


def _from_texts(option: _Option, texts: list[str]) -> Any:
    if not texts:
        return True if bool in option.types else ""
    values = [_from_text(option, text) for text in texts]
    return values[0] if len(values) == 1 else values


def _from_text(option: _Option, text: str) -> Any:
    """The value that a text means for this option; a text that means none comes back as it is, for the check."""
    word = text.strip().lower()
    if types.NoneType in option.types and word == "null":
        return None
    if bool in option.types:
        return _WORDS.get(word, text)
    kind = PARAMS[option.name].kind if option.name in PARAMS else None
    if dict in option.types or kind == "biases" or (option.takes_several and text.startswith("[")):
        return _yaml_value(text)
    number = next((kind for kind in (float, int) if kind in (*option.types, option.item)), None)
    try:
        return number(text) if number else text
    except ValueError:
        return text


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _build(reading: _Reading) -> Arguments:
    problems = list(reading.problems)
    given = {name: value for name, value in reading.values.items() if value is not None}
    sampling = {name: given.pop(name) for name in list(given) if name in PARAMS}
    try:
        given.update(field_values(sampling))
    except InvalidParameter as error:
        problems.append(error.message)
    for name, value in given.items():
        if name not in PARAMS and not _fits(_options()[name], value):
            problems.append(f"{name} must be {_expected(_options()[name])}, not {value!r}.")
    if problems:
        raise InvalidParameter(" ".join(problems))
    return Arguments(**{name: _build_group(group, given) for name, group in _groups().items()})


def _build_group(group: Any, given: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in given.items() if _options()[name].group is group}
    return group(**own)


def _fits(option: _Option, value: Any) -> bool:
    kind = type(value)
    if kind is int and float in option.types:
        kind = float
    if kind not in option.types:
        return False
    if isinstance(value, str):
        return bool(value) and (not option.choices or value in option.choices)
    return option.low is None or value >= option.low


def _expected(option: _Option) -> str:
    """What an option takes, in words: ``auto, paged or scripted``."""
    spec = PARAMS.get(option.name)
    if spec is not None:
        return spec.kind
    kinds = [_KINDS[kind] for kind in option.types if kind in _KINDS and not (kind is str and option.choices)]
    if option.low is not None:
        kinds = [f"{kind} of at least {option.low:g}" for kind in kinds]
    *most, last = *kinds, *option.choices
    return f"{', '.join(most)} or {last}" if most else last
