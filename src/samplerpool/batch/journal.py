"""The journal of a batch: every finished row, on disk in the order in which rows finish, each record checksummed.

A file of records behind a line that says what it is::

    length u32 · row u64 · sample u32 · outcome u8 · hash of the input row, 8 bytes · the output row's line · crc32 u32

The checksum covers all that is before it. A record is believed if it is whole; what follows the first one that is not
is cut off, since a writer that was killed, or a machine that lost its power, can leave nothing else behind. Where a
row has several records, the last one counts.

What was handed to the system survives the end of the process; what was synced, the end of the machine.
"""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from samplerpool.data.json_text import to_json
from samplerpool.errors import BatchError, OutputExists

HEADER = b"samplerpool journal 1\n"
FLUSH_BYTES = 1 << 18
HASH_BYTES = 8
GROW_BY = 4096
_HEAD = struct.Struct(f"<IQIB{HASH_BYTES}s")
_CHECKSUM_BYTES = 4
_COPY_AT_ONCE = 1 << 20


class Outcome(enum.IntEnum):
    """What became of a row."""

    ANSWERED = 0
    ERROR = 1


def row_hash(columns: dict[str, Any]) -> bytes:
    """By which an input row is known again."""
    return hashlib.blake2b(to_json(columns), digest_size=HASH_BYTES).digest()


def _checksum(head: bytes, text: bytes) -> bytes:
    return zlib.crc32(text, zlib.crc32(head)).to_bytes(_CHECKSUM_BYTES, "little")


class JournalRecord(NamedTuple):
    """One finished row, as it stands in a journal. ``offset``: of its line; ``end``: where the next record begins."""

    row: int
    sample: int
    outcome: int
    hashed: bytes
    line: bytes
    offset: int
    end: int


def read_records(file: BinaryIO, path: Path, offset: int = 0) -> Iterator[JournalRecord]:
    """The records of a journal up to the first that is not whole, which may be because it is being written.

    Args:
        file: of that path, opened for reading. It is the caller's to close.
        offset: 0, or a record's ``end``, to go on behind it.

    Raises:
        BatchError: it is no journal.
        OSError
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(offset)
    if not offset:
        header = file.read(len(HEADER))
        if header != HEADER[: len(header)]:
            raise BatchError(f"{path} is no journal of a batch; move it away, or choose another output.")
        offset = len(HEADER)
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, row, sample, outcome, hashed = _HEAD.unpack(head)
        begin, end = offset + _HEAD.size, offset + _HEAD.size + length + _CHECKSUM_BYTES
        if end > size:  # torn, and perhaps gigabytes that nobody wrote
            return
        line, checksum = file.read(length), file.read(_CHECKSUM_BYTES)
        if _checksum(head, line) != checksum:
            return
        yield JournalRecord(row, sample, outcome, hashed, line, begin, end)
        offset = end


def digest_of_rows(hashes: Iterable[tuple[int, int]]) -> str:
    """One hash of many rows'.

    Args:
        hashes: number and hash of each row, in rising order of numbers.
    """
    digest = hashlib.blake2b(digest_size=16)
    for row, value in hashes:
        digest.update(row.to_bytes(8, "little") + value.to_bytes(8, "little"))
    return digest.hexdigest()


@dataclass(slots=True)
class Finished:
    """What a journal holds, 21 bytes a row in memory.

    Args:
        samples: answers per row; rows and samples are counted through.
        offsets: of each one's latest record, 0 where there is none.
        hashes: of the input rows.
        outcomes: of each one, where there is a record.
        places: up to the highest that has one; what is beyond is room to grow.
    """

    samples: int
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    outcomes: bytearray = field(default_factory=bytearray)
    count: int = 0
    errors: int = 0
    text_bytes: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    places: int = 0

    def add(self, row: int, sample: int, outcome: int, hashed: bytes, offset: int, length: int) -> None:
        """A record."""
        place = row * self.samples + sample
        if place >= self.places:
            self.places = place + 1
            if place >= len(self.offsets):
                self._grow(place + GROW_BY)
        if self.offsets[place]:
            self.errors -= self.outcomes[place] == Outcome.ERROR
            self.text_bytes -= self.lengths[place]
        else:
            self.count += 1
        self.errors += outcome == Outcome.ERROR
        self.text_bytes += length
        self.offsets[place], self.hashes[place] = offset, int.from_bytes(hashed, "little")
        self.outcomes[place], self.lengths[place] = outcome, length

    def clear(self) -> None:
        """Forget all of it."""
        for numbers in (self.offsets, self.hashes, self.lengths, self.outcomes):
            del numbers[:]
        self.count = self.errors = self.text_bytes = self.places = 0

    def _grow(self, places: int) -> None:
        more = places - len(self.offsets)
        self.outcomes.extend(bytes(more))
        for numbers in (self.offsets, self.hashes, self.lengths):
            numbers.frombytes(bytes(more * numbers.itemsize))

    def input_digest(self) -> str:
        """Of the input rows that all of this was made of."""
        return digest_of_rows(
            (row, value)
            for row in range(self.rows)
            if (value := next((h for h in self.hashes[row * self.samples : (row + 1) * self.samples] if h), None))
        )

    @property
    def rows(self) -> int:
        """One more than the highest row that is there."""
        return -(-self.places // self.samples)

    def has(self, row: int, sample: int, *, errors: bool = True) -> bool:
        """Whether a sample of a row is there; ``errors``: an error row counts as well."""
        place = row * self.samples + sample
        there = place < self.places and self.offsets[place] != 0
        return there and (errors or self.outcomes[place] != Outcome.ERROR)

    def same_input(self, row: int, samples: Iterable[int], hashed: bytes) -> bool:
        """Whether these samples of a row, which are there, were made of this input row."""
        value = int.from_bytes(hashed, "little")
        return all(self.hashes[row * self.samples + sample] == value for sample in samples)


class Journal:
    """A journal, open for one process alone, its end cut off where it is not whole.

    Args:
        path: made if it is not there.
        samples: answers per row.
        fresh: forget what is in it.

    Raises:
        OutputExists: another process has it open.
        BatchError: it cannot be written, or is something else.
    """

    def __init__(self, path: Path, samples: int, *, fresh: bool = False) -> None:
        self.path = path
        self.finished = Finished(samples)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._unsynced = False
        self.cut_bytes = 0
        self._file = self._open(fresh)
        try:
            self._end = self._begin()
        except BaseException:
            self.close()
            raise

    def _open(self, fresh: bool) -> BinaryIO:
        try:
            file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise self.unwritable(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fresh:
                file.truncate(0)
        except BlockingIOError as error:
            file.close()
            raise OutputExists(
                f"Another batch is writing {self.path}; wait for it, or choose another output.", path=str(self.path)
            ) from error
        except OSError as error:
            file.close()
            raise self.unwritable(error) from error
        return file

    def _begin(self) -> int:
        """Read what is there, and cut off what is not whole; where the next record goes."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            if size < len(HEADER):
                self._file.truncate(0)
                os.pwrite(self._file.fileno(), HEADER, 0)
                return len(HEADER)
            end = self._read()
            if end < size:
                self.cut_bytes = size - end
                self._file.truncate(end)
            return end
        except OSError as error:
            raise self.unwritable(error) from error

    def _read(self) -> int:
        """Note the records; where the last whole one ends."""
        whole = len(HEADER)
        with open(self.path, "rb", buffering=_COPY_AT_ONCE) as file:
            for row, sample, outcome, hashed, line, offset, end in read_records(file, self.path):
                self.finished.add(row, sample, outcome, hashed, offset, len(line))
                whole = end
        return whole

    # ---- writing --------------------------------------------------------------------------------------------------

    def append(self, row: int, sample: int, outcome: Outcome, hashed: bytes, line: bytes) -> None:
        """Note a finished row. It counts as finished once ``flush`` or ``sync`` has been called, or has called itself.

        Args:
            line: the output row, with the line's end.

        Raises:
            BatchError: it cannot be written; all whole records before it are kept.
        """
        length = len(line)
        head = _HEAD.pack(length, row, sample, outcome, hashed)
        self.finished.add(row, sample, outcome, hashed, self._end + self._pending_bytes + _HEAD.size, length)
        self._pending += (head, line, _checksum(head, line))
        self._pending_bytes += _HEAD.size + length + _CHECKSUM_BYTES
        if self._pending_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what was appended to the system.

        Raises:
            BatchError: as for ``append``. ``finished`` is then what has been written as a whole.
        """
        data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:] if written else data, self._end + written)
        except OSError as error:
            self.finished.clear()
            self._end = self._read()
            raise self.unwritable(error) from error
        self._end += len(data)
        self._unsynced |= bool(data)

    def sync(self) -> None:
        """Have the disk hold all of it, whatever happens to the machine.

        Raises:
            BatchError
        """
        self.flush()
        if self._unsynced:
            try:
                os.fdatasync(self._file.fileno())
            except OSError as error:
                raise self.unwritable(error) from error
            self._unsynced = False

    # ---- reading --------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[bytes]:
        """The output rows, ordered by (row, sample), each once.

        Raises:
            BatchError: the disk gives back something else than was written.
        """
        self.flush()
        descriptor = self._file.fileno()
        for offset, length in zip(self.finished.offsets, self.finished.lengths, strict=True):
            if offset:
                # not mapped into memory, where each page would stay and count as this process's
                record = os.pread(descriptor, _HEAD.size + length + _CHECKSUM_BYTES, offset - _HEAD.size)
                head, line = record[: _HEAD.size], record[_HEAD.size : _HEAD.size + length]
                if _checksum(head, line) != record[_HEAD.size + length :]:
                    raise BatchError(f"{self.path} is damaged at byte {offset:,}: this disk cannot be trusted.")
                yield line

    def unwritable(self, error: OSError) -> BatchError:
        """The error for a journal that cannot be written."""
        return BatchError(f"{self.path} cannot be written: {error.strerror}.", path=str(self.path))

    def close(self) -> None:
        """Idempotent. What was not flushed is lost."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
