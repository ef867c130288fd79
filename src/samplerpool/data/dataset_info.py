"""Which data sets are meant: by a path or a hub id, or by a YAML file of several named ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from samplerpool.config.arguments import DataArguments
from samplerpool.config.sampling import unknown_name
from samplerpool.data.builtin_converters import turns_in
from samplerpool.data.converters import AUTO, AutoConverter, Converter, get_converter
from samplerpool.data.expressions import prompt_maker, template_text
from samplerpool.data.hub import download
from samplerpool.data.opening import missing, unreadable
from samplerpool.data.sources import SOURCES
from samplerpool.errors import DataFileError, InvalidParameter

YAML_SUFFIXES = (".yaml", ".yml")
DEFAULT_NAME = "default"
"""Of a data set that was given by its path alone."""

WAYS = ("converter", "messages_column", "prompt_template")
"""To say what rows mean."""

_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One data set.

    Args:
        name: goes into its samples as ``_dataset_name``.
        path: a file, a folder, or an id of the hub.
        source: ``local`` or ``hf_hub``; None: what is here, else the hub.
        split: of a data set that has several; None for ``train`` on the hub, for all files of a folder.
        converter: its name, see ``data.converters``; ``auto`` chooses by each row's columns.
        messages_column, prompt_template: instead of a converter, see ``data.expressions``.
        size: only so many of its first rows; None for all.
        weight: how often each row comes, see ``data.mixture``.
        streaming: read it as a stream only, without access by number.
    """

    name: str = DEFAULT_NAME
    path: str
    source: str | None = None
    split: str | None = None
    converter: str = AUTO
    messages_column: str | None = None
    prompt_template: str | None = None
    size: int | None = None
    weight: float = 1.0
    streaming: bool = False

    @property
    def says_what_rows_mean(self) -> bool:
        """Or else each row's columns do."""
        return self.converter != AUTO or self.messages_column is not None or self.prompt_template is not None

    def make_converter(self, note: Callable[[str], None] | None = None) -> Converter:
        """Of rows to samples.

        Args:
            note: gets a sentence when a row's columns have chosen.

        Raises:
            InvalidParameter: there is no such converter, or no such template.
        """
        if self.messages_column is not None:
            return turns_in(self.messages_column)
        if self.prompt_template is not None:
            return prompt_maker(self.prompt_template)
        return AutoConverter(note, self.path) if self.converter == AUTO else get_converter(self.converter)


_SETTINGS: Mapping[str, type] = {
    "path": str,
    "source": str,
    "split": str,
    "converter": str,
    "messages_column": str,
    "prompt_template": str,
    "size": int,
    "weight": float,
    "streaming": bool,
}

DatasetName = str | Path | DataArguments | Mapping[str, Any]


def dataset_infos(
    dataset: DatasetName,
    *,
    converter: str | None = None,
    messages_column: str | None = None,
    prompt_template: str | None = None,
) -> list[DatasetInfo]:
    """The data sets that are meant.

    Args:
        dataset: a path or a hub id; the path of a YAML file (here, or on the hub as ``owner/name/file.yaml``) of
            names to settings; such a mapping itself; or arguments, whose training data come before those for
            evaluation.
        converter, messages_column, prompt_template: one of them, for those that say nothing of what rows mean.

    Raises:
        InvalidParameter: one error that names everything that is wrong.
        DataFileError: the YAML file cannot be read.
    """
    if isinstance(dataset, DataArguments):
        names = [name for name in (dataset.train_dataset, dataset.eval_dataset) if name]
        if not names:
            raise InvalidParameter("The arguments name no data set; give train_dataset or eval_dataset.")
        if (converter, messages_column, prompt_template) == (None, None, None):
            converter, messages_column = dataset.converter, dataset.messages_column
            prompt_template = dataset.prompt_template and template_text(dataset.prompt_template)
        ways = {"converter": converter, "messages_column": messages_column, "prompt_template": prompt_template}
        return [info for name in names for info in dataset_infos(name, **ways)]
    default = {"converter": converter, "messages_column": messages_column, "prompt_template": prompt_template}
    given: dict[str, Any] = {name: value for name, value in default.items() if value is not None}
    if len(given) > 1:
        raise InvalidParameter(f"Give just one of {' and '.join(given)}: each says what rows mean.")
    infos = [info if info.says_what_rows_mean else replace(info, **given) for info in _infos(dataset)]
    for info in infos:
        info.make_converter()
    if len({info.streaming for info in infos}) > 1:
        raise InvalidParameter("Either all of the data sets are read as streams, or none; give streaming to all.")
    return infos


def _infos(dataset: str | Path | Mapping[str, Any]) -> list[DatasetInfo]:
    if isinstance(dataset, Mapping):
        return _from_mapping(dataset, "The data sets", None)
    path = Path(dataset).expanduser()
    if path.suffix.lower() not in YAML_SUFFIXES:
        return [DatasetInfo(path=str(dataset))]
    if path.exists():
        return _from_mapping(_read_yaml(path), str(path), path.parent)
    parts = str(dataset).split("/")
    if len(parts) != 3 or "." in parts[0]:
        raise missing(path)
    infos = _from_mapping(_read_yaml(download("/".join(parts[:2]), parts[2])), str(dataset), None)
    if any("." in info.converter or ":" in info.converter for info in infos):
        raise InvalidParameter(f"{dataset} comes from the hub and may not name functions to import as converters.")
    return infos


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} is not valid YAML: {error}", path=str(path)) from error


def _from_mapping(content: Any, where: str, folder: Path | None) -> list[DatasetInfo]:
    if not isinstance(content, Mapping) or not content:
        raise InvalidParameter(f"{where} must be names of data sets, each with its path and other settings.")
    problems = [problem for name, settings in content.items() for problem in _problems(name, settings)]
    if problems:
        raise InvalidParameter(f"{where}: {' '.join(problems)}")
    return [_info(str(name), settings, folder) for name, settings in content.items()]


def _info(name: str, settings: Mapping[str, Any], folder: Path | None) -> DatasetInfo:
    given = {key: value for key, value in settings.items() if value is not None}
    beside = folder / Path(given["path"]).expanduser() if folder else None
    if beside is not None and beside.exists() and given.get("source") != "hf_hub":
        given["path"] = str(beside)
    return DatasetInfo(name=name, **given)


def _problems(name: Any, settings: Any) -> Iterator[str]:
    if not isinstance(settings, Mapping):
        yield f"{name}: path and other settings expected, not {settings!r}."
        return
    if settings.get("path") is None:
        yield f"{name}: path is missing."
    ways = [name for name in WAYS if settings.get(name) is not None]
    if len(ways) > 1:
        yield f"{name}: just one of {' and '.join(ways)} may be given, as each says what rows mean."
    for key, value in settings.items():
        kind = _SETTINGS.get(key)
        if kind is None:
            yield f"{name}: {unknown_name('setting', str(key), list(_SETTINGS))}"
        elif value is not None and not _fits(value, kind):
            yield f"{name}: {key} must be {_KINDS[kind]}, not {value!r}."
        elif key in ("size", "weight") and value is not None and not 0 < value < float("inf"):
            yield f"{name}: {key} must be above 0, not {value!r}."
        elif key == "source" and value not in (None, *SOURCES):
            yield f"{name}: source must be one of {', '.join(SOURCES)}, not {value!r}."


def _fits(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)
