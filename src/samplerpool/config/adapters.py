"""What ``peft_config`` asks for. Free of torch and peft: a wrong one is noticed before a worker starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samplerpool.config.sampling import BASE_ADAPTER, unknown_name
from samplerpool.config.settings import broken_json, mapping_of
from samplerpool.errors import InvalidParameter

KEYS = ("name", "adapter_name_or_path", "merge")
NAMES = ("lora", "peft")
OF_TRAINING = frozenset(
    (
        *("r", "rank", "lora_alpha", "lora_dropout", "lora_bias", "target_modules", "target_parameters", "bias"),
        *("modules_to_save", "exclude_modules", "task_type", "init_lora_weights", "use_dora", "use_rslora"),
        *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    )
)
"""How an adapter is made: taken, and left to the adapter's own ``adapter_config.json``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What PEFT can call an adapter, and what is no path."""


@dataclass(frozen=True)
class AdapterPlan:
    """Which PEFT adapters are loaded, and how.

    Args:
        merged: folders or hub ids, added to the weights for good, in this order; or
        attached: name to folder or hub id, beside the weights.
        active: the attached one that answers requests which name none; None: the model without any does.
    """

    merged: tuple[str, ...] = ()
    attached: Mapping[str, str] = field(default_factory=dict)
    active: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all of them."""
        return (*self.merged, *self.attached.values())


def adapter_plan(peft_config: Mapping[str, Any] | str | None) -> AdapterPlan:
    """What a ``peft_config`` means.

    Args:
        peft_config: ``adapter_name_or_path`` is a path (or hub id), several of them, or a mapping of names to paths.
            Paths alone are merged into the weights, in order; those with names are attached, for requests to choose
            by ``adapter``. With ``merge`` false one path is attached under its folder's name and answers all requests
            that choose none; with ``merge`` true those with names are merged. ``name`` is ``lora`` (or ``peft``: what
            kind an adapter is, it says itself). Settings of training are left to the adapter. A text is JSON.

    Raises:
        InvalidParameter: something else.
    """
    if peft_config is None:
        return AdapterPlan()
    config = named_config("peft_config", peft_config)
    for key in config:
        if key not in KEYS and key not in OF_TRAINING:
            raise InvalidParameter(unknown_name("key of peft_config", str(key), list(KEYS)))
    if config.get("name", NAMES[0]) not in NAMES:
        raise InvalidParameter(f"peft_config's name must be {' or '.join(NAMES)}, not {config['name']!r}.")
    merge = config.get("merge")
    if merge is not None and not isinstance(merge, bool):
        raise InvalidParameter(f"peft_config's merge must be true or false, not {merge!r}.")
    where = config.get("adapter_name_or_path")
    if isinstance(where, Mapping):
        return _named(where, merge is True)
    paths = [where] if isinstance(where, str | Path) else where
    if not isinstance(paths, list | tuple) or not paths or not all(_is_path(path) for path in paths):
        raise InvalidParameter(
            "peft_config needs adapter_name_or_path: a path, a list of paths, or a mapping of names to paths, not "
            f"{where!r}."
        )
    texts = tuple(str(path) for path in paths)
    return AdapterPlan(merged=texts) if merge is not False else _attached_alone(texts)


def lora_config(texts: Iterable[str]) -> dict[str, Any] | None:
    """The ``peft_config`` that ``--lora [NAME=]PATH``, given so often, stands for.

    Raises:
        InvalidParameter: some have a name and some have none, or a name comes twice.
    """
    pairs = [_name_and_path(text) for text in texts]
    if not pairs:
        return None
    names = [name for name, _ in pairs if name is not None]
    if not names:
        return {"name": NAMES[0], "adapter_name_or_path": [path for _, path in pairs]}
    if len(names) < len(pairs):
        raise InvalidParameter(
            "Give all adapters a name (--lora NAME=PATH), for requests to choose one, or none (--lora PATH), to merge "
            "them into the model."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidParameter(f"The adapter's name {twice[0]!r} is given twice; choose another one.")
    return {"name": NAMES[0], "adapter_name_or_path": {name: path for name, path in pairs if name is not None}}


def named_config(what: str, value: Mapping[str, Any] | str) -> dict[str, Any]:
    """A mapping, also out of its JSON text.

    Raises:
        InvalidParameter: ``value`` is neither.
    """
    read = mapping_of(value)
    if not isinstance(read, dict):
        broken = broken_json(read)
        raise InvalidParameter(f'{what} must be a mapping, or one as JSON ({{"name": ...}}), not {value!r}{broken}.')
    return read


def _named(where: Mapping[Any, Any], merge: bool) -> AdapterPlan:
    for name, path in where.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == BASE_ADAPTER:
            raise InvalidParameter(
                f"An adapter's name must consist of letters, digits, - and _, and not be {BASE_ADAPTER!r}, which "
                f"means the model without any; not {name!r}."
            )
        if not _is_path(path):
            raise InvalidParameter(f"The adapter {name!r} needs a path or a hub id, not {path!r}.")
    if not where:
        raise InvalidParameter("peft_config's adapter_name_or_path names no adapter.")
    named = {name: str(path) for name, path in where.items()}
    return AdapterPlan(merged=tuple(named.values())) if merge else AdapterPlan(attached=named)


def _attached_alone(paths: tuple[str, ...]) -> AdapterPlan:
    if len(paths) > 1:
        raise InvalidParameter(
            "Several adapters that are not merged need names, for requests to choose one: "
            'adapter_name_or_path={"NAME": PATH, ...}.'
        )
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(paths[0]).name).strip("-_")
    name = f"adapter-{name}" if name in ("", BASE_ADAPTER) else name
    return AdapterPlan(attached={name: paths[0]}, active=name)


def _name_and_path(text: str) -> tuple[str | None, str]:
    name, equals, path = text.partition("=")
    if equals and _NAME.fullmatch(name):
        return name, path
    return None, text


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and bool(str(value).strip())
