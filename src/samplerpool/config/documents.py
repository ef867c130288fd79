"""YAML and JSON as people write them: numbers like 1e-4 are numbers, and a name that stands twice is an error."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers with an exponent (PyYAML takes ``1e-4`` for text), and no name twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in sorted({name for name in names if names.count(name) > 1} - {"<<"}):
            raise yaml.constructor.ConstructorError(None, None, _twice(name), node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def yaml_document(text: str) -> Any:
    """What a YAML text says; None for an empty one.

    Raises:
        ValueError: it is no YAML, or names something twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def json_document(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, or names something twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(_twice(next(name for name in names if names.count(name) > 1)))
    return made


def _twice(name: str) -> str:
    return f"{name!r} stands there twice"
