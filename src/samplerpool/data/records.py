"""Records: the rows of a file as they stand in it, before anything is made of them.

A record that cannot be read is not an exception but a record with an ``error``: the others go on. Files are gone
through as a stream; for access by number a text file's offsets are noted in one pass, 12 bytes a row, and each row is
read from its place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from samplerpool.data.opening import Opening, unreadable
from samplerpool.errors import BadRow, DataFileError


@dataclass(slots=True)
class Record:
    """One row of a file.

    Args:
        place: where it stands, for sentences: ``data.jsonl, line 7``.
        columns: what it holds; empty where it could not be read.
        error: why it could not be read.
        folder: of its file, where that lies in a folder of several.
    """

    place: str
    columns: dict[str, Any] = field(default_factory=dict)
    error: BadRow | None = None
    folder: str = ""


class Records(Protocol):
    """The records of one file, or of whatever else has rows."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that they are read from."""

    def __iter__(self) -> Iterator[Record]:
        """As a stream.

        Raises:
            DataFileError: the file cannot be read on.
        """

    def __len__(self) -> int:
        """How many; the first call may go through the file.

        Raises:
            DataFileError: they can be read only once.
        """

    def __getitem__(self, index: int) -> Record:
        """One of them, by its number from 0."""

    def count(self) -> int | None:
        """``len``, or None where that is not known before all have been read."""

    @property
    def can_pick(self) -> bool:
        """Whether they can be had by number."""

    def close(self) -> None:
        """Free what is held. Idempotent."""


class Piece(NamedTuple):
    """One record's part of a text file.

    Args:
        offset: where it begins, in bytes; it ends where the next one begins.
        number: its line or row, from 1, as messages name it.
        content: for ``TextFile.parse``; anything that the format finds handy.
    """

    offset: int
    number: int
    content: Any


class TextFile(ABC):
    """The records of a text file; a format says how it falls into pieces, and what a piece means.

    Args:
        path: the file or pipe.
        opening: if it has been opened already.

    Raises:
        DataFileError: it is missing, unreadable, empty, or plainly something else.
    """

    unit: ClassVar[str] = "line"

    def __init__(self, path: Path, opening: Opening | None = None) -> None:
        self.path = path
        self._name = path.name
        self._count: int | None = None
        self._index: tuple[array[int], array[int]] | None = None
        self._pipe: Opening | None = opening or Opening(path)
        self._is_file, self._is_compressed = self._pipe.is_file, self._pipe.is_compressed
        try:
            self.check(self._pipe.start)
        except BaseException:
            self._pipe.close()
            raise
        if self._is_file:
            self.close()

    def check(self, start: bytes) -> None:  # noqa: B027 - most formats have nothing to refuse
        """Look at the beginning.

        Raises:
            DataFileError: the file is not of this format.
        """

    def pieces(self, opening: Opening) -> Iterator[Piece]:
        """The file's records, in order: lines that are not blank, unless a format says otherwise.

        Raises:
            DataFileError: there is no way to go on.
        """
        offset = opening.offset
        for number, line in enumerate(opening.lines(), 1):
            if not line.isspace():
                yield Piece(offset, number, line)
            offset += len(line)

    def _pieces(self, opening: Opening) -> Iterator[Piece]:
        try:
            yield from self.pieces(opening)
        except OSError as error:
            raise unreadable(self.path, error) from error

    @abstractmethod
    def parse(self, content: Any) -> dict[str, Any]:
        """The columns of a piece's content, or of its bytes (with what lies between it and the next one).

        Raises:
            BadRow: what is wrong with it.
        """

    @property
    def paths(self) -> Sequence[Path]:
        return (self.path,)

    def __iter__(self) -> Iterator[Record]:
        with self._reopen() as opening:
            for _, number, content in self._pieces(opening):
                yield self._record(number, content)

    def __len__(self) -> int:
        if not self._is_compressed:
            return len(self._places()[0])
        if self._count is None:
            with self._reopen() as opening:
                self._count = sum(1 for _ in self._pieces(opening))
        return self._count

    def __getitem__(self, index: int) -> Record:
        if self._is_compressed:
            raise DataFileError(
                f"{self.path} is compressed: its rows can be gone through, but not picked; unpack it.",
                path=str(self.path),
            )
        offsets, numbers = self._places()
        begin = offsets[index]
        length = offsets[index + 1] - begin if index + 1 < len(offsets) else -1
        try:
            # Opened each time, so that nothing is shared with the processes that a data loader forks.
            with open(self.path, "rb", buffering=0) as file:
                file.seek(begin)
                content = file.read(length)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return self._record(numbers[index], content)

    def count(self) -> int | None:
        return len(self) if self._is_file else None

    @property
    def can_pick(self) -> bool:
        return self._is_file and not self._is_compressed

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _reopen(self) -> Opening:
        if self._is_file:
            return Opening(self.path)
        opening, self._pipe = self._pipe, None
        if opening is None:
            raise DataFileError(f"{self.path} is a pipe, which can be read only once.", path=str(self.path))
        return opening

    def _places(self) -> tuple[array[int], array[int]]:
        if self._index is None:
            if not self._is_file:
                raise DataFileError(
                    f"{self.path} is a pipe: its rows can be gone through once, but not counted or picked.",
                    path=str(self.path),
                )
            offsets, numbers = array("Q"), array("I")
            with self._reopen() as opening:
                for offset, number, _ in self._pieces(opening):
                    offsets.append(offset)
                    numbers.append(number)
            self._index = offsets, numbers
        return self._index

    def _record(self, number: int, content: Any) -> Record:
        place = f"{self._name}, {self.unit} {number}"
        try:
            return Record(place, self.parse(content))
        except BadRow as error:
            return Record(place, error=BadRow(f"{place}: {error.message}"))


class JoinedRecords:
    """Several files' records, one file after the other."""

    def __init__(self, parts: Sequence[Records]) -> None:
        self._parts = parts
        self._ends: list[int] | None = None

    @property
    def paths(self) -> Sequence[Path]:
        return [path for part in self._parts for path in part.paths]

    def __iter__(self) -> Iterator[Record]:
        for part in self._parts:
            for record in part:
                yield _in_folder(record, part)

    def __len__(self) -> int:
        return self._bounds()[-1]

    def __getitem__(self, index: int) -> Record:
        ends = self._bounds()
        number = bisect_right(ends, index)
        return _in_folder(self._parts[number][index - (ends[number - 1] if number else 0)], self._parts[number])

    def count(self) -> int | None:
        counts = [part.count() for part in self._parts]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def can_pick(self) -> bool:
        return all(part.can_pick for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _bounds(self) -> list[int]:
        if self._ends is None:
            self._ends = list(accumulate(len(part) for part in self._parts))
        return self._ends


def _in_folder(record: Record, part: Records) -> Record:
    return replace(record, folder=str(part.paths[0].parent)) if part.paths else record
