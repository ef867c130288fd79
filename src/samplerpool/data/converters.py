"""Converters by name: functions from a row's columns to a sample, and how one is chosen for a row.

Built in are ``openai``, ``prompt``, ``alpaca``, ``sharegpt``, ``pair`` and ``openai_batch``. ``register_converter``
adds others; a name with a dot in it, ``package.module.function``, is imported. ``auto`` chooses by each row's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, cast

from samplerpool.config.sampling import SAMPLING, sampling_params
from samplerpool.data import builtin_converters as builtin
from samplerpool.data.messages import to_v1, tools_text
from samplerpool.data.openai_requests import COLUMNS as REQUEST_COLUMNS
from samplerpool.data.openai_requests import is_request, openai_batch
from samplerpool.errors import BadRow, InvalidParameter, RenderError, SamplerPoolError
from samplerpool.types import Sample

Converter = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From a row's columns to a sample: ``messages``, or ``chosen_messages`` and ``rejected_messages``, each in any form
that ``data.messages.to_v1`` takes; ``tools`` and whatever else may go with it. ``_sampling`` are sampling parameters
of this row."""

AUTO = "auto"

_converters: dict[str, Converter] = {
    "openai": builtin.openai,
    "prompt": builtin.prompt,
    "alpaca": builtin.alpaca,
    "sharegpt": builtin.sharegpt,
    "pair": builtin.pair,
    "openai_batch": openai_batch,
}


def register_converter(name: str, converter: Converter, *, replace: bool = False) -> None:
    """Make a converter known by a name, to the end of the process.

    Args:
        name: to be given as ``converter``; without a dot.
        converter: from a row's columns to a sample. It may raise ``BadRow``, with a sentence that names the column.
        replace: take the place of a converter of that name; otherwise that is an error.

    Raises:
        InvalidParameter: the name is taken, or is none.
    """
    if not name or "." in name or ":" in name:
        raise InvalidParameter(f"A converter's name is a word without dots and colons, not {name!r}.")
    if name == AUTO or (not replace and _converters.get(name, converter) is not converter):
        raise InvalidParameter(f"There is a converter {name!r} already; choose another name, or give replace=True.")
    _converters[name] = converter


def converter_names() -> list[str]:
    """Those that are known now, and ``auto``."""
    return [AUTO, *_converters]


def get_converter(name: str) -> Converter:
    """The converter of a name, or the function that a dotted name leads to.

    Raises:
        InvalidParameter: there is none.
    """
    if name in _converters:
        return _converters[name]
    if "." in name or ":" in name:
        return _imported(name)
    near = get_close_matches(name, converter_names(), 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InvalidParameter(
        f"There is no converter {name!r}.{hint} Known: {', '.join(converter_names())}; "
        "one of your own is named package.module.function."
    )


def _imported(name: str) -> Converter:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the module raises
        raise InvalidParameter(f"The converter {name} cannot be imported: {type(error).__name__}: {error}.") from error
    if not callable(found):
        raise InvalidParameter(f"The converter {name} is no function, but {type(found).__name__}.")
    return cast(Converter, found)


class AutoConverter:
    """Chooses for each row by its columns, and says so when it is anything but messages or a prompt.

    Args:
        note: gets a sentence for each converter that is chosen, once.
        where: what is being read, for the sentence.
    """

    def __init__(self, note: Callable[[str], None] | None = None, where: str = "") -> None:
        self._note = note
        self._where = where
        self._noted: set[str] = set()

    def __call__(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        name = "openai_batch" if is_request(columns) else builtin.detect(columns)
        if name is None:
            names = ", ".join(map(str, columns)) or "none"
            raise BadRow(
                f"a row needs a messages or a prompt column, or columns that a converter knows; this one has: {names}."
            )
        if name not in self._noted:
            self._noted.add(name)
            if self._note is not None and columns.get("messages" if name == "openai" else name) is None:
                read = REQUEST_COLUMNS if name == "openai_batch" else builtin.COLUMNS[name]
                used = ", ".join(str(column) for column in columns if column in read)
                model = "; the pool's model answers, whatever their body.model" if read is REQUEST_COLUMNS else ""
                self._note(f"{self._where}: converter {name}, chosen by the columns {used}{model}")
        return _converters[name](columns)


def sample_of(converter: Converter, columns: Mapping[str, Any]) -> Sample:
    """The sample that a converter makes of a row, checked and in the v1 form.

    Raises:
        BadRow, RenderError: saying which column, and what is wrong.
    """
    try:
        return _checked(converter(columns), columns)
    except SamplerPoolError as error:
        if isinstance(error, BadRow | RenderError):
            raise
        raise BadRow(error.message) from error
    except Exception as error:  # a user's converter is foreign code
        name = getattr(converter, "__name__", type(converter).__name__)
        raise BadRow(f"the converter {name} failed: {type(error).__name__}: {error}.") from error


def at_place(error: BadRow | RenderError, place: str) -> BadRow | RenderError:
    """The same error, saying where it happened."""
    return type(error)(f"{place}: {error.message}", **error.data)


def _checked(made: Mapping[str, Any], columns: Mapping[str, Any]) -> Sample:
    if not isinstance(made, Mapping):
        raise BadRow(f"the converter made {type(made).__name__} of it, not a sample.")
    sample = dict(made)
    if "messages" in sample:
        sample["messages"] = to_v1(sample["messages"])
    elif "chosen_messages" in sample and "rejected_messages" in sample:
        for name in ("chosen_messages", "rejected_messages"):
            try:
                sample[name] = to_v1(sample[name])
            except RenderError as error:
                raise RenderError(f"{name}: {error.message}") from None
    else:
        names = ", ".join(map(str, sample)) or "nothing"
        raise BadRow(f"the converter made no messages of it, and no pair of them; it made: {names}.")
    sampling = sample.pop(SAMPLING, None)
    if sampling is not None and sampling is not columns.get(SAMPLING):  # which was only passed on
        sample[SAMPLING] = sampling_params(sampling).given()
    tools = tools_text(sample.pop("tools", None))
    if tools is not None:
        sample["tools"] = tools
    return cast(Sample, sample)
