"""One row of a data set, made ready for answering: from a table's columns, or from any dataset.

A row may have ``messages`` (any form that ``data.messages`` takes) or ``prompt`` (a string or a list of messages), and
``tools`` (JSON text, or the list itself). All columns are kept for the output. A row that cannot be answered is not an
exception but a row with an ``error``: the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samplerpool.data.messages import split_reference, to_v1
from samplerpool.errors import BadRow, RenderError, SamplerPoolError, UsageError
from samplerpool.types import Dataset, Message

PREFERENCE_COLUMNS = ("chosen_messages", "rejected_messages")


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
    """

    index: int
    columns: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    tools: str | None = None
    reference: Message | None = None
    error: SamplerPoolError | None = None


def row_from(value: object, index: int, place: str) -> Row:
    """A row out of whatever a data set holds: an object with columns, a list of messages, or a prompt.

    Args:
        place: where it stands, for the error's sentence, as in ``Line 7``.
    """
    if isinstance(value, str | list | tuple):
        value = {"prompt": value}
    if not isinstance(value, Mapping):
        return Row(index, error=BadRow(f"{place}: a row must be an object with columns, not {type(value).__name__}."))
    columns = value if type(value) is dict else dict(value)
    try:
        messages, reference = split_reference(to_v1(_conversation(columns)))
        return Row(index, columns, messages, _tools(columns.get("tools")), reference)
    except (BadRow, RenderError) as error:
        return Row(index, columns, error=type(error)(f"{place}: {error.message}", **error.data))


def _conversation(columns: Mapping[str, Any]) -> Any:
    messages = columns.get("messages")
    if messages is not None:
        return messages
    prompt = columns.get("prompt")
    if prompt is not None:
        return prompt
    if any(columns.get(name) is not None for name in PREFERENCE_COLUMNS):
        raise BadRow("a preference pair (chosen_messages, rejected_messages) is no conversation to answer.")
    names = ", ".join(map(str, columns)) or "none"
    raise BadRow(f"a row needs a messages or a prompt column; this one has: {names}.")


def _tools(tools: Any) -> str | None:
    """Tools as JSON text; whether the text is valid is the renderer's matter."""
    if not tools:
        return None
    if not isinstance(tools, str):
        try:
            tools = json.dumps(tools, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise BadRow(f"tools cannot be written as JSON: {error}.") from None
    try:
        tools.encode()
    except UnicodeEncodeError:
        raise BadRow("tools hold half a surrogate pair, which is no character; remove it.") from None
    return str(tools)


def rows_from_dataset(dataset: Dataset | str | Path) -> Iterator[Row]:
    """Rows of any dataset, one after the other, without loading it whole.

    Args:
        dataset: a list, a torch map-style or iterable dataset, a ``datasets.Dataset``, any iterable of rows, or the
            path of a JSONL file. A row is an object with columns, a list of messages, or a prompt string.

    Raises:
        UsageError: it cannot be gone through.
        DataFileError: the file cannot be read (when the first row is asked for).
    """
    if isinstance(dataset, str | Path):
        return _file_rows(Path(dataset))
    if isinstance(dataset, Mapping):
        names = ", ".join(map(repr, dataset))
        raise UsageError(f"This is a mapping of several data sets or columns ({names}), not one data set; pick one.")
    return _rows(_items(dataset))


def _file_rows(path: Path) -> Iterator[Row]:
    from samplerpool.data.jsonl import JsonlFile  # it builds on this module

    with JsonlFile(path) as file:
        yield from file


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


def with_system(rows: Iterable[Row], text: str) -> Iterator[Row]:
    """Put a system turn before the conversations that have none."""
    system: Message = {"role": "system", "content": [{"type": "text", "value": text}]}
    for row in rows:
        if row.messages and row.messages[0]["role"] != "system":
            row.messages = [system, *row.messages]
        yield row
