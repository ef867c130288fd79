"""From a dict, command line strings or a config file to the four groups of arguments.

Everything here is derived from the fields of the dataclasses in ``config.arguments`` and ``config.sampling``: names,
types, choices and ranges are written down there and nowhere else.
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from samplerpool.config.arguments import MODEL_ALIASES, DataArguments, ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.command_line import WORDS, assignments, value_of
from samplerpool.config.documents import json_document, yaml_document
from samplerpool.config.sampling import ALIASES, unknown_name
from samplerpool.config.settings import Setting, check_values, given_twice, mapping_of, settings_of
from samplerpool.errors import DataFileError, InvalidParameter

EXTRA_KEYS_VARIABLE = "ALLOW_EXTRA_KEYS"
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
OPTION_ALIASES: Mapping[str, str] = {**MODEL_ALIASES, **ALIASES}

InputArgument = Mapping[str, Any] | Sequence[str] | None


class Arguments(NamedTuple):
    """The four groups, each checked."""

    model: ModelArguments
    data: DataArguments
    pool: PoolArguments
    sample: SampleArguments


def get_args(args: InputArgument = None, *, environ: Mapping[str, str] = os.environ) -> Arguments:
    """Read and check the arguments of all groups together.

    Args:
        args: a mapping of names to values; or command line strings: ``--name value``, ``--name=value``, ``--flag`` or
            ``name=value``, optionally behind the path of a ``.yaml``, ``.yml`` or ``.json`` file that they override;
            ``None`` means ``sys.argv[1:]``. A list is written as several values (``--stop A B``) or in YAML
            (``stop=[A, B]``), a mapping in YAML or JSON, one entry of a mapping as ``name.entry=value``, "not given" as
            ``null``.
        environ: with ``ALLOW_EXTRA_KEYS`` set to 1, unknown names are ignored.

    Returns:
        ``model, data, pool, sample``.

    Raises:
        InvalidParameter: one error that names everything that is wrong, wrong names with the nearest right one.
        DataFileError: the config file cannot be read.
    """
    reading = _Reading(ignore_extra=WORDS.get(environ.get(EXTRA_KEYS_VARIABLE, "").lower(), False))
    if isinstance(args, Mapping):
        reading.mapping(args)
    elif isinstance(args, str | bytes | os.PathLike):
        raise InvalidParameter(f"Arguments are a mapping, or a list of strings like [{str(args)!r}], not {args!r}.")
    else:
        reading.strings([str(each) for each in (sys.argv[1:] if args is None else args)])
    return _build(reading)


def describe_arguments() -> str:
    """For each argument its name and what it takes, and below that help, and its default where there is one."""
    lines = []
    for option in all_settings().values():
        default = "" if option.spec or option.default in (None, {}) else f" [default: {option.default}]"
        lines += [f"  --{option.name:<28} {option.expected}", f"      {option.help}{default}"]
    return "\n".join(lines)


@cache
def all_settings() -> Mapping[str, Setting]:
    """The fields of all four groups by name."""
    return {name: each for group in _groups().values() for name, each in settings_of(group).items()}


def _groups() -> dict[str, Any]:
    return typing.get_type_hints(Arguments)


def _canonical(name: str) -> str:
    head, dot, rest = name.partition(".")
    underscored = head.replace("-", "_")
    return OPTION_ALIASES.get(underscored, underscored) + dot + rest


@dataclass
class _Reading:
    """Canonical name to value as far as read, and what is wrong so far."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ignore_extra: bool = False

    def mapping(self, values: Mapping[Any, Any]) -> None:
        """Take all of them; entries of mappings go last, as they change what came as a whole."""
        seen: set[str] = set()
        for name in sorted(map(str, values), key=lambda name: "." in name):
            canonical = _canonical(name)
            if canonical in seen and canonical in all_settings():
                self.problems.append(given_twice(canonical, name))
            seen.add(canonical)
        for name, value in sorted(values.items(), key=lambda item: "." in str(item[0])):
            self.put(str(name), value)

    def strings(self, strings: Sequence[str]) -> None:
        """Take a command line: a config file first, if there is one, then what overrides it."""
        rest = list(strings)
        if rest and rest[0].lower().endswith(CONFIG_SUFFIXES) and not rest[0].startswith("--") and "=" not in rest[0]:
            self.mapping(_load_file(Path(rest.pop(0)).expanduser()))
        for name, texts in assignments(rest, lambda name: all_settings().get(_canonical(name)), self.problems):
            option = all_settings().get(_canonical(name).partition(".")[0])
            self.put(name, value_of(option, texts, entry="." in name) if option else texts)

    def put(self, name: str, value: Any) -> None:
        """Take one setting, or with a dot in its name one entry of one."""
        head, *path = _canonical(name).split(".")
        option = all_settings().get(head)
        if option is None:
            if not self.ignore_extra:
                self.problems.append(_unknown(name))
        elif not path:
            self.values[head] = value
        elif not option.takes_names:
            self.problems.append(f"{head} has no entries, so {name} means nothing; it takes {option.expected}.")
        else:
            self._put_entry(option, path, value)

    def _put_entry(self, option: Setting, path: Sequence[str], value: Any) -> None:
        whole = mapping_of(self.values.get(option.name, option.default) or {})
        self.values[option.name] = inner = whole
        for depth, name in enumerate(path):
            if not isinstance(inner, dict):
                place = ".".join((option.name, *path[:depth]))
                self.problems.append(f"{place} is {inner!r} and no mapping, so it has no entry {name!r}.")
                return
            if depth == len(path) - 1:
                inner[name] = value
            else:
                inner[name] = inner = mapping_of(inner.get(name) or {})


def _unknown(name: str) -> str:
    head, dot, rest = name.partition(".")
    known = [*all_settings(), *OPTION_ALIASES]
    entries = [f"{each.name}.{rest}" for each in all_settings().values() if each.takes_names]
    return unknown_name("argument", name if dot else head, [*known, *(entries if dot else ())])


def _load_file(path: Path) -> Mapping[Any, Any]:
    is_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = (json_document if is_json and text.strip() else yaml_document)(text)
    except OSError as error:
        raise DataFileError(f"The config file {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataFileError(f"The config file {path} is not valid {'JSON' if is_json else 'YAML'}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise DataFileError(f"The config file {path} must hold names and values, not {type(content).__name__}.")
    return content


def _build(reading: _Reading) -> Arguments:
    checked, problems = check_values(all_settings(), reading.values)
    if reading.problems or problems:
        raise InvalidParameter(" ".join([*reading.problems, *problems]))
    return Arguments(**{name: _build_group(group, checked) for name, group in _groups().items()})


def _build_group(group: Any, checked: Mapping[str, Any]) -> Any:
    return group(**{name: value for name, value in checked.items() if name in settings_of(group)})
