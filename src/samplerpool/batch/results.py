"""What a run has answered, so far or at its end, read beside whoever writes it: without a lock, changing nothing."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from samplerpool.batch.journal import HASH_BYTES, Finished, read_records
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import JOURNAL_SUFFIX, MANIFEST_SUFFIX, SPOOL_SUFFIX
from samplerpool.data.arrow import ParquetFile
from samplerpool.data.json_text import from_json
from samplerpool.data.jsonl import JsonLines
from samplerpool.data.opening import Opening
from samplerpool.data.records import Record, Records
from samplerpool.errors import BadRow, BatchError


class RunFiles:
    """The files of a run, by its output's name.

    Args:
        path: as it was given as ``--output``; a symbolic link is followed.

    ``path``, ``journal`` and ``spool`` are where they would be, whether they are there or not.

    Raises:
        BatchError: no run has left anything there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.journal, self._manifest, self.spool = (
            self.path.with_name(self.path.name + suffix) for suffix in (JOURNAL_SUFFIX, MANIFEST_SUFFIX, SPOOL_SUFFIX)
        )
        if not self._manifest.exists():
            there = f"{self.path} is there, but not" if self.path.exists() else "There is no"
            raise BatchError(
                f"{there} {self._manifest}, in which a batch says what run its output is of. Name the file as it was "
                "named to --output.",
                path=str(self._manifest),
            )
        self.manifest = Manifest.read(self._manifest)

    @property
    def finished(self) -> bool:
        """Whether the output is there, and this run's."""
        return bool(self.manifest.outputs) and self.path.exists()


class Results(Protocol):
    """Output rows, by number. They are as they stand there, and need not be whole."""

    def __len__(self) -> int: ...

    def records(self) -> Iterator[Record]:
        """All of them, in order, as a stream. One that cannot be read has its error.

        Raises:
            DataFileError: the file cannot be read on.
        """

    def __getitem__(self, place: int) -> dict[str, Any]:
        """One output row.

        Raises:
            BadRow, DataFileError: it cannot be read.
        """

    def input_hash(self, place: int) -> bytes | None:
        """Of the input row that it was made of, where that is known."""


class OutputFile:
    """The rows of a finished output. A compressed one is unpacked into a temporary file, as its rows are picked.

    Args:
        output_format: as the manifest has it.
    """

    def __init__(self, path: Path, output_format: str) -> None:
        form, _, compression = output_format.partition(".")
        self._unpacked = None
        if compression:
            self._unpacked = tempfile.NamedTemporaryFile(prefix=f"{path.name}-")  # noqa: SIM115 - goes with the object
            with Opening(path) as opening:
                self._unpacked.writelines(opening.chunks())
            self._unpacked.flush()
            path = Path(self._unpacked.name)
        self._records: Records = (ParquetFile if form == "parquet" else JsonLines)(path)

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> Iterator[Record]:
        """As they stand there."""
        return iter(self._records)

    def __getitem__(self, place: int) -> dict[str, Any]:
        record = self._records[place]
        if record.error is not None:
            raise record.error
        return record.columns

    def input_hash(self, place: int) -> bytes | None:
        """Not in the output."""
        return None


class JournalRows:
    """The rows of a journal, of each the latest, ordered by (row, sample), as far as it has been written now.

    Args:
        samples: answers per row.
    """

    def __init__(self, path: Path, samples: int) -> None:
        self._path = path
        self._finished = finished = Finished(samples)
        with open(path, "rb") as file:
            for record in read_records(file, path):
                own = (record.row, record.sample, record.outcome, record.hashed, record.offset, len(record.line))
                finished.add(*own)
        self._places = array("Q", (place for place, offset in enumerate(finished.offsets) if offset))

    def __len__(self) -> int:
        return len(self._places)

    def records(self) -> Iterator[Record]:
        """Each is read from its place."""
        with open(self._path, "rb", buffering=0) as file:
            for place in self._places:
                yield Record(self._path.name, self._read(file.fileno(), place))

    def __getitem__(self, place: int) -> dict[str, Any]:
        with open(self._path, "rb", buffering=0) as file:
            return self._read(file.fileno(), self._places[place])

    def _read(self, descriptor: int, place: int) -> dict[str, Any]:
        return output_columns(os.pread(descriptor, self._finished.lengths[place], self._finished.offsets[place]))

    def input_hash(self, place: int) -> bytes | None:
        """As the record has it."""
        return self._finished.hashes[self._places[place]].to_bytes(HASH_BYTES, "little")


def output_columns(line: bytes) -> dict[str, Any]:
    """An output row out of its line.

    Raises:
        BadRow: it is none.
    """
    try:
        columns = from_json(line)
    except ValueError as error:
        raise BadRow(f"An output row is not valid JSON: {error}.") from error
    if not isinstance(columns, dict):
        raise BadRow("An output row is no JSON object.")
    return columns


def generation_of(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """How an output row says that it was answered.

    Raises:
        BadRow: it does not say which row it is.
    """
    generation = columns.get("generation")
    if not isinstance(generation, Mapping) or not isinstance(generation.get("index"), int):
        raise BadRow('An output row has no "generation" with the row\'s "index".')
    return generation


def open_results(files: RunFiles) -> Results:
    """The finished output's rows; before there is one, the journal's.

    Raises:
        BatchError, DataFileError: there are none, or they cannot be read.
    """
    if files.finished and not files.manifest.output_format.startswith("openai"):
        return OutputFile(files.path, files.manifest.output_format)
    try:
        return JournalRows(files.journal, files.manifest.samples)
    except FileNotFoundError as error:
        if files.finished:
            raise BatchError(
                f"{files.path} is in OpenAI's form, which has no rows as the run knows them, and its journal is gone.",
                path=str(files.path),
            ) from error
        raise BatchError(f"There is neither {files.path} nor {files.journal}: nothing has been answered.") from error
    except OSError as error:
        raise BatchError(f"{files.journal} cannot be read: {error.strerror}.", path=str(files.journal)) from error
