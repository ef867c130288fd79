"""Output rows written as Parquet, some at a time (extra ``data``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from samplerpool.data.json_text import from_json
from samplerpool.data.table_rows import JSON, LOGPROBS, MESSAGE, MESSAGES, TableColumns
from samplerpool.errors import DataFileError

ROWS_AT_ONCE = 10_000
BYTES_AT_ONCE = 16 << 20
"""Of JSON text in a row group, so that memory stays flat."""

LAYOUT_KEY = b"samplerpool"


def write_parquet(lines: Callable[[], Iterator[bytes]], file: BinaryIO) -> None:
    """Write rows as row groups.

    Args:
        lines: gives the rows as JSON texts, the same ones each time: they are gone through twice, for the schema first.
        file: written to from here on, without going back.
    """
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    columns = TableColumns()
    for line in lines():
        columns.note(from_json(line))
    fields = [pyarrow.field(name, arrow_type(kind)) for name, kind in columns.kinds.items()]
    schema = pyarrow.schema(fields, metadata={LAYOUT_KEY: json.dumps(columns.layout())})
    sink = pyarrow.PythonFile(file, mode="w")
    with ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in _groups(lines()):
            cells = [columns.cells(from_json(line)) for line in group]
            writer.write_table(pyarrow.Table.from_pylist(cells, schema=schema))


def _groups(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if len(group) >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def arrow_type(kind: Any) -> Any:
    """The type of a column of one of ``TableColumns.kinds``."""
    import pyarrow as pa

    if isinstance(kind, dict):
        return pa.struct([(name, arrow_type(inner)) for name, inner in kind.items()])
    if kind.startswith("list:"):
        return pa.list_(arrow_type(kind[5:]))
    turn = [("role", pa.string()), ("content", pa.list_(pa.struct([("type", pa.string()), ("value", pa.string())])))]
    message = pa.struct([*turn, ("loss_weight", pa.float64())])
    entry = [("token_id", pa.int64()), ("logprob", pa.float64())]
    types = {
        "bool": pa.bool_(),
        "int": pa.int64(),
        "float": pa.float64(),
        "text": pa.string(),
        JSON: pa.string(),
        MESSAGE: message,
        MESSAGES: pa.list_(message),
        LOGPROBS: pa.list_(pa.struct([*entry, ("top", pa.list_(pa.struct(entry)))])),
    }
    return types[kind]


def check_parquet(path: Path) -> None:
    """See that it can be written, before there is something to write.

    Raises:
        DataFileError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataFileError(
            f"Writing {path} needs pyarrow; install it with: pip install 'samplerpool[data]'"
        ) from error
