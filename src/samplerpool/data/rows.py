"""One row of a data set, made ready for answering: from a table's columns, or from any dataset.

A row's columns become a conversation by a converter (``data.converters``); all columns are kept for the output. A row
that cannot be answered is not an exception but a row with an ``error``: the others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samplerpool.config.sampling import SAMPLING
from samplerpool.data.converters import AutoConverter, Converter, at_place, sample_of
from samplerpool.data.entries import to_answer
from samplerpool.errors import BadRow, RenderError, SamplerPoolError, UsageError
from samplerpool.types import Dataset, Message, Sample


@dataclass(slots=True)
class Row:
    """One row on its way to the model.

    Args:
        index: its place among the data set's rows, from 0; blank lines of a file are no rows.
        columns: what the row held, untouched; empty where it could not be read.
        messages: the conversation to answer in the v1 form, without the reference.
        tools: JSON text.
        reference: the assistant turn that the row ended with; the model never sees it.
        error: why it cannot be answered.
        folder: where relative paths of its images, videos and sounds begin; else in the working directory.
        finished: the samples of it that an earlier run has.
        params: sampling parameters that hold for it alone.
        expected_tokens: of its answer, where that is known beforehand; long ones are begun early.
        template_options: keyword arguments for the chat template.
    """

    index: int
    columns: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    tools: str | None = None
    reference: Message | None = None
    error: SamplerPoolError | None = None
    folder: str = field(default="", compare=False)
    finished: frozenset[int] = frozenset()
    params: Mapping[str, Any] | None = None
    expected_tokens: int | None = field(default=None, compare=False)
    template_options: Mapping[str, Any] = field(default_factory=dict)


_AUTO = AutoConverter()


def row_from(value: object, index: int, place: str, converter: Converter = _AUTO) -> Row:
    """A row out of whatever a data set holds: an object with columns, a list of messages, or a prompt.

    Args:
        place: where it stands, for the error's sentence, as in ``data.jsonl, line 7``.
    """
    if isinstance(value, str | list | tuple):
        value = {"prompt": value}
    if not isinstance(value, Mapping):
        return Row(index, error=BadRow(f"{place}: a row must be an object with columns, not {type(value).__name__}."))
    columns = value if type(value) is dict else dict(value)
    try:
        sample = sample_of(converter, columns)
    except (BadRow, RenderError) as error:
        return Row(index, columns, error=at_place(error, place))
    return row_of(sample, index, place, columns)


def row_of(sample: Sample, index: int, place: str, columns: dict[str, Any], folder: str = "") -> Row:
    """A row out of a sample in the v1 form.

    Args:
        columns: for the output.
        folder: of the file that it stands in.
    """
    try:
        messages, reference = to_answer(sample)
    except (BadRow, RenderError) as error:
        return Row(index, columns, error=at_place(error, place))
    return Row(index, columns, messages, sample.get("tools"), reference, folder=folder, params=sample.get(SAMPLING))


def rows_from_dataset(dataset: Dataset | str | Path) -> Iterator[Row]:
    """Rows of any dataset, one after the other, without loading it whole.

    Args:
        dataset: a list, a torch map-style or iterable dataset (``DataEngine`` too), a ``datasets.Dataset``, any
            iterable of rows, or what names a data set: a path, a dataset-info YAML, a hub id. A row is an object with
            columns, a list of messages, or a prompt string.

    Raises:
        UsageError: it cannot be gone through.
        DataFileError: a file cannot be read.
    """
    if isinstance(dataset, str | Path):
        return _named(dataset)
    if (rows := _own_rows(dataset)) is not None:
        return rows
    if isinstance(dataset, Mapping):
        names = ", ".join(map(repr, dataset))
        raise UsageError(f"This is a mapping of several data sets or columns ({names}), not one data set; pick one.")
    if hasattr(dataset, "iterrows"):  # going through a data frame gives the names of its columns
        raise UsageError("A data frame is gone through by columns; pass dataset.to_dict('records').")
    return _rows(_items(dataset))


def _own_rows(dataset: object) -> Iterator[Row] | None:
    """Of our own data sets, which give rows themselves: broken ones with their error, instead of raising at them."""
    from samplerpool.data.collection import DataCollection  # they build on this module
    from samplerpool.data.data_engine import DataEngine

    return dataset.rows() if isinstance(dataset, DataEngine | DataCollection) else None


def _named(dataset: str | Path) -> Iterator[Row]:
    from samplerpool.data.collection import DataCollection

    with DataCollection.open(dataset) as collection:
        yield from collection.rows()


def _rows(items: Iterable[object]) -> Iterator[Row]:
    for index, item in enumerate(items):
        yield row_from(item, index, f"Row {index}")


def _items(dataset: Any) -> Iterable[object]:
    if hasattr(dataset, "__iter__"):
        return dataset  # type: ignore[no-any-return]
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        # torch's map-style datasets need not end with IndexError, which Python's own iteration would wait for
        return (dataset[index] for index in range(len(dataset)))
    raise UsageError(
        f"A {type(dataset).__name__} is no data set: it needs __iter__, or __len__ and __getitem__ with integers."
    )


def with_template_options(rows: Iterable[Row], options: Mapping[str, Any]) -> Iterator[Row]:
    """The same rows, their prompts made with these keyword arguments for the chat template."""
    for row in rows:
        row.template_options = options
        yield row


def with_system(rows: Iterable[Row], text: str) -> Iterator[Row]:
    """Put a system turn before the conversations that have none."""
    system: Message = {"role": "system", "content": [{"type": "text", "value": text}]}
    for row in rows:
        if row.messages and row.messages[0]["role"] != "system":
            row.messages = [system, *row.messages]
        yield row


def with_expected_tokens(rows: Iterable[Row], column: str) -> Iterator[Row]:
    """Note how long a column says the rows' answers will be; where it holds no number, nothing is known.

    Args:
        column: with the number of tokens, or a text of it; ``a.b``: the entry b of column a.

    Raises:
        UsageError: the first row has no such column, or something else in it.
    """
    for number, row in enumerate(rows):
        value = _entry(row.columns, column)
        tokens = _tokens(value)
        if not number and row.columns and tokens is None:
            what = f"holds {value!r:.40}" if value is not None else f"is not there; they have: {', '.join(row.columns)}"
            raise UsageError(f"The rows' column {column!r} should tell lengths in tokens, and {what}.")
        row.expected_tokens = tokens
        yield row


def _entry(columns: Mapping[str, Any], name: str) -> Any:
    outer, _, inner = name.partition(".")
    if name in columns or not inner:
        return columns.get(name)
    found = columns.get(outer)
    return _entry(found, inner) if isinstance(found, Mapping) else None


def _tokens(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        tokens = float(value)
    except (ValueError, OverflowError):
        return None
    return int(tokens) if 0 <= tokens < float("inf") else None
