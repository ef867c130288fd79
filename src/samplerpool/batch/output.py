"""The output file of a batch: written beside its final name, complete rows only, and put in place at the end.

Rows go to ``FILE.partial``, so that whatever ends a run early, even SIGKILL, leaves what was finished under a name that
cannot be mistaken for the whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from samplerpool.data.json_text import to_json
from samplerpool.errors import BatchError, OutputExists

FLUSH_BYTES = 1 << 18
PARTIAL_SUFFIX = ".partial"
_UNLINKABLE = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""What file systems without hard links answer."""


class OutputFile:
    """A JSONL file in the making. Everything that would spoil the end of the run is checked at once.

    Args:
        path: the final name; a symbolic link is followed.
        overwrite: replace what stands there.

    Raises:
        OutputExists: the output, or what an earlier run left of it, is there already, or is being written.
        BatchError: it cannot be written there.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self.partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self.rows = 0
        self._overwrite = overwrite
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._good_bytes = 0
        self._check_place()
        self._handle = self._open()

    def _check_place(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            raise BatchError(f"The output folder {folder} does not exist; make it, or choose another --output.")
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        if not stat.S_ISREG(mode):
            raise BatchError(f"The output {self.path} is not a regular file; choose another --output.")
        if not self._overwrite:
            raise self._exists()

    def _exists(self) -> OutputExists:
        return OutputExists(
            f"The output file {self.path} is there already. Give --overwrite to replace it, or another --output.",
            path=str(self.path),
        )

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if self._overwrite else os.O_EXCL)
        try:
            handle = os.open(self.partial, flags, 0o666)
        except FileExistsError as error:
            raise OutputExists(
                f"{self.partial} is there already: an interrupted run left it, or another one is writing it. "
                "Move it away, or give --overwrite to replace it.",
                path=str(self.partial),
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
        except BlockingIOError as error:
            os.close(handle)
            raise OutputExists(
                f"Another batch is writing {self.partial}; wait for it, or choose another --output.",
                path=str(self.partial),
            ) from error
        except OSError as error:
            os.close(handle)
            raise self._unwritable(error) from error
        return handle

    def write(self, row: dict[str, Any]) -> None:
        """Append a row.

        Raises:
            BatchError: it cannot be written; the complete rows before it are kept.
        """
        line = to_json(row) + b"\n"
        self._pending.append(line)
        self._pending_bytes += len(line)
        self.rows += 1
        if self._pending_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what was written to the system.

        Raises:
            BatchError
        """
        data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        written = 0
        try:
            while written < len(data):
                written += os.write(self._handle, data[written:] if written else data)
        except OSError as error:
            self._keep_complete_rows(data, written)
            raise self._unwritable(error) from error
        self._good_bytes += len(data)

    def _keep_complete_rows(self, data: bytes, written: int) -> None:
        complete = data.rfind(b"\n", 0, written) + 1
        self._good_bytes += complete
        self.rows -= data.count(b"\n", complete)
        os.ftruncate(self._handle, self._good_bytes)
        os.lseek(self._handle, self._good_bytes, os.SEEK_SET)

    def _unwritable(self, error: OSError) -> BatchError:
        kept = f" {self.rows} complete rows are kept in {self.partial}." if self.rows else ""
        return BatchError(f"The output {self.path} cannot be written: {error.strerror}.{kept}", path=str(self.path))

    def finish(self) -> None:
        """Put the file in its place: all rows are there.

        Raises:
            OutputExists: somebody else made the output meanwhile; this one stays in ``partial``.
            BatchError: it cannot be written.
        """
        self.flush()
        try:
            os.fsync(self._handle)
            self._put_in_place()
        except FileExistsError as error:
            raise OutputExists(
                f"The output file {self.path} appeared while the batch ran; this run's rows are in {self.partial}.",
                path=str(self.path),
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._close()

    def _put_in_place(self) -> None:
        if not self._overwrite:
            try:
                os.link(self.partial, self.path)  # unlike a rename, never replaces anything
                os.unlink(self.partial)
                return
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
            if self.path.exists():
                raise FileExistsError(self.path)
        os.replace(self.partial, self.path)

    def keep_partial(self) -> Path | None:
        """End early and leave the rows in ``partial``; without a row, leave nothing.

        Returns:
            Where the rows are, or None.
        """
        try:
            self.flush()
        finally:
            self._close()
            if not self.rows:
                self.partial.unlink(missing_ok=True)
        return self.partial if self.rows else None

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle >= 0:
            self.keep_partial()
