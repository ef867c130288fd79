"""Parquet and Arrow files, through pyarrow (extra ``data``): memory-mapped, a batch of rows at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from samplerpool.data.opening import Opening
from samplerpool.data.parquet_out import LAYOUT_KEY
from samplerpool.data.records import Record
from samplerpool.data.table_rows import restored
from samplerpool.errors import DataFileError

ROWS_AT_ONCE = 1024
MAX_CACHED_BYTES = 256 * 2**20
"""Of decoded batches, which are kept for access by number."""


class BatchedFile(ABC):
    """A table that falls into batches of rows.

    Rows come in order at full speed. For access by number, batches are kept as far as memory allows.

    Raises:
        DataFileError: it is missing, unreadable or of another format, or pyarrow is not installed.
    """

    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = path.name
        Opening(path).close()  # says what is wrong with it in our words
        self._table: Any = None
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._ends = list(accumulate(self._open()))

    @abstractmethod
    def load(self, pyarrow: Any) -> tuple[Any, list[int]]:
        """Open the file: whatever ``batch`` needs, and the number of rows of each batch."""

    @abstractmethod
    def batch(self, table: Any, number: int) -> Any:
        """One batch, as a pyarrow table or record batch."""

    def slices(self, table: Any) -> Iterator[Any]:
        """All rows in order, some at a time."""
        for number in range(len(self._ends)):
            batch = self.batch(table, number)
            for begin in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield batch.slice(begin, ROWS_AT_ONCE)

    @property
    def paths(self) -> Sequence[Path]:
        return (self.path,)

    def __iter__(self) -> Iterator[Record]:
        number = 0
        for rows in self._guarded(self.slices(self._open_table())):
            for columns in rows.to_pylist():
                number += 1
                yield self._record(number, columns)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        (columns,) = self._cached(number).slice(index - first, 1).to_pylist()
        return self._record(index + 1, columns)

    def count(self) -> int | None:
        return len(self)

    @property
    def can_pick(self) -> bool:
        return True

    def close(self) -> None:
        self._table = None
        self._cache.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_cache": OrderedDict()}

    def _record(self, number: int, columns: dict[str, Any]) -> Record:
        return Record(f"{self._name}, row {number}", columns)

    def _cached(self, number: int) -> Any:
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            (self._cache[number],) = self._guarded(iter([self.batch(self._open_table(), number)]))
            while len(self._cache) > 1 and sum(each.nbytes for each in self._cache.values()) > MAX_CACHED_BYTES:
                self._cache.popitem(last=False)
        return self._cache[number]

    def _open(self) -> list[int]:
        pyarrow = _pyarrow(self.path)
        try:
            self._table, sizes = self.load(pyarrow)
        except (pyarrow.ArrowException, OSError) as error:
            raise self._broken(error) from error
        return sizes

    def _open_table(self) -> Any:
        if self._table is None:
            self._open()
        return self._table

    def _guarded(self, batches: Iterator[Any]) -> Iterator[Any]:
        pyarrow = _pyarrow(self.path)
        try:
            yield from batches
        except (pyarrow.ArrowException, OSError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> DataFileError:
        reason = " ".join(str(error).split())
        return DataFileError(
            f"The data file {self.path} cannot be read as {self.kind}: {reason.rstrip('.')}.", path=str(self.path)
        )


class ParquetFile(BatchedFile):
    """Its batches are row groups. Of a batch's output the rows are as they were before they became a table's."""

    kind = "Parquet"
    _layout: dict[str, Any] | None = None

    def load(self, pyarrow: Any) -> tuple[Any, list[int]]:
        from pyarrow.parquet import ParquetFile as Reader

        file = Reader(self.path, memory_map=True)
        layout = (file.schema_arrow.metadata or {}).get(LAYOUT_KEY)
        self._layout = None if layout is None else json.loads(layout)
        return file, [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]

    def _record(self, number: int, columns: dict[str, Any]) -> Record:
        return super()._record(number, columns if self._layout is None else restored(columns, self._layout))

    def batch(self, table: Any, number: int) -> Any:
        # Without threads: a process that was forked, as a data loader's workers are, has none of pyarrow's.
        return table.read_row_group(number, use_threads=False)

    def slices(self, table: Any) -> Iterator[Any]:
        yield from table.iter_batches(ROWS_AT_ONCE, use_threads=False)


class ArrowFile(BatchedFile):
    """Arrow's file format (Feather version 2), or its stream format, as ``datasets`` writes it."""

    kind = "Arrow"

    def load(self, pyarrow: Any) -> tuple[Any, list[int]]:
        source = pyarrow.memory_map(str(self.path))
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            batches = pyarrow.ipc.open_stream(source).read_all().to_batches()
            return batches, [batch.num_rows for batch in batches]
        return file, [file.get_batch(number).num_rows for number in range(file.num_record_batches)]

    def batch(self, table: Any, number: int) -> Any:
        return table[number] if isinstance(table, list) else table.get_batch(number)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataFileError(
            f"Reading {path} needs pyarrow; install it with: pip install 'samplerpool[data]'", path=str(path)
        ) from error
    return pyarrow
