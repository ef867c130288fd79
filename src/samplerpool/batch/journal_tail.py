"""A journal that somebody else writes, read as it grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from samplerpool.batch.journal import JournalRecord, read_records


class JournalTail:
    """The records of a journal, as they come. It needs no lock, and a record that is not whole is not there yet.

    Args:
        path: it may not be there yet.

    ``gone``: it was there, and is no more: its run is complete, and all of its records have been read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._offset = 0
        self.gone = False

    def new(self) -> Iterator[JournalRecord]:
        """Those that have come since the last call; of a journal that was begun anew, from its beginning.

        Raises:
            BatchError: it is no journal.
            OSError: it cannot be read.
        """
        while self._file is not None or self._open():
            replaced = self._replaced()  # before the last look: what the old one got until then is all there
            assert self._file is not None
            for record in read_records(self._file, self._path, self._offset):
                self._offset = record.end
                yield record
            if not replaced:
                return
            self.close()

    def _open(self) -> bool:
        try:
            self._file, self._offset, self.gone = open(self._path, "rb"), 0, False  # noqa: SIM115 - see close
        except FileNotFoundError:
            return False
        return True

    def _replaced(self) -> bool:
        assert self._file is not None
        mine = os.fstat(self._file.fileno())
        if mine.st_size < self._offset:
            self._offset = 0
        try:
            return os.stat(self._path).st_ino != mine.st_ino
        except FileNotFoundError:
            self.gone = True
            return True

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
