"""Answered rows beside the columns of the Arrow table that they came in, with one schema for all of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samplerpool.data.answers import RowResult, output_row
from samplerpool.data.parquet_out import arrow_type
from samplerpool.data.table_rows import LOGPROBS, MESSAGE, MESSAGES
from samplerpool.errors import UsageError

_GENERATION = {
    "index": "int",
    "text": "text",
    "finish_reason": "text",
    "prompt_tokens": "int",
    "completion_tokens": "int",
    "seed": "int",
    "error": "text",
    "parse_error": "text",
    "sample": "int",
    "logprobs": LOGPROBS,
}
_ANSWERED = {"messages": MESSAGES, "reference": MESSAGE, "generation": _GENERATION}


def as_table(batch: Any) -> Any:
    """A batch of Ray Data's, in whichever of its formats, as an Arrow table.

    Raises:
        UsageError: it is none.
    """
    import pyarrow

    if isinstance(batch, pyarrow.Table):
        return batch
    if isinstance(batch, dict):
        return pyarrow.table({name: pyarrow.array(_plain(values)) for name, values in batch.items()})
    if hasattr(batch, "to_dict") and hasattr(batch, "columns"):
        return pyarrow.Table.from_pylist([_plain(row) for row in batch.to_dict("records")])
    raise UsageError(f"A batch must be an Arrow table, columns or a data frame, not {type(batch).__name__}.")


def _plain(value: Any) -> Any:
    """Without numpy's arrays and numbers, which nest in what Ray Data makes of lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def answered_table(table: Any, results: Sequence[RowResult], samples: int) -> Any:
    """The table's rows, each as often as it has samples, with ``messages``, ``reference`` and ``generation``.

    Other columns keep their type and their values. What a row's answer does not have is null.

    Args:
        results: of the table's rows, in their order.
    """
    import pyarrow

    repeated = table.take([at for at in range(table.num_rows) for _ in range(samples)])
    rows = [output_row(result, samples) for result in results]
    kept = [name for name in repeated.column_names if name not in _ANSWERED]
    columns = {name: repeated.column(name) for name in kept}
    for name, kind in _ANSWERED.items():
        cells = [_cell(name, row, result) for row, result in zip(rows, results, strict=True)]
        columns[name] = pyarrow.array(cells, arrow_type(kind))
    return pyarrow.table(columns)


def _cell(name: str, row: dict[str, Any], result: RowResult) -> Any:
    if name == "messages" and not result.row.messages:
        return None  # the row could not be read, and its error says why
    if name == "generation" and "logprobs" in row[name]:
        pair = ("token_id", "logprob")
        told = [{**e, "top": [dict(zip(pair, top, strict=True)) for top in e["top"]]} for e in row[name]["logprobs"]]
        return {**row[name], "logprobs": told}
    return row.get(name)
