"""The output of a batch: a journal while it runs, the file when all rows are there.

Beside ``FILE`` stand ``FILE.journal``, to which each row goes as it finishes, and ``FILE.run.json``, which says what
run it is. When the last row is there, ``FILE`` is put together in input order as ``FILE.partial`` and put in place; the
journal goes (if no row failed, else those can be tried again), the manifest stays. Until then whatever ends the run
leaves a journal with which it can go on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from samplerpool.batch.advice import COMMAND_LINE, Advice
from samplerpool.batch.formats import Hashed, OutputFormat
from samplerpool.batch.history import history_path
from samplerpool.batch.journal import FLUSH_BYTES, Finished, Journal, Outcome, digest_of_rows, row_hash
from samplerpool.batch.manifest import Manifest, sync_folder
from samplerpool.batch.progress_file import progress_path
from samplerpool.data.answers import RowResult, output_row
from samplerpool.data.json_text import to_json
from samplerpool.data.rows import Row
from samplerpool.errors import BatchError, FingerprintMismatch, OutputExists

JOURNAL_SUFFIX, MANIFEST_SUFFIX, PARTIAL_SUFFIX, SPOOL_SUFFIX = ".journal", ".run.json", ".partial", ".input"
DIGEST_BYTES = 16
SYNC_INTERVAL_S = 1.0
"""What a power cut can cost: the rows of so many seconds, which are then answered again."""

_UNLINKABLE = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""What file systems without hard links answer."""


class BatchOutput:
    """A run's output in the making. Everything that would spoil the end of the run is checked at once.

    Args:
        path: the file's final name; a symbolic link is followed.
        samples: answers per row.
        advice: what errors say is to be done.
        resume: go on with what an earlier run left, if it left anything.
        overwrite: forget that, and replace what stands at ``path``.
        retry_errors: like ``resume``, and error rows count as not answered.
        output_format: None: by the file's name.

    ``finished`` are the rows that are there; ``complete`` says that ``path`` is. ``spool_path`` is for an input that
    can be read only once; it goes when the journal goes. ``cut_bytes``: of the journal, behind the last whole
    record, as a crash leaves them; they are forgotten.

    Raises:
        OutputExists: the output, or what an earlier run left of it, is there already, or is being written.
        UsageError: its name means a format that is not written, or a library for it is missing.
        BatchError: it cannot be written there; the manifest cannot be read.
    """

    def __init__(
        self,
        path: Path,
        samples: int = 1,
        *,
        resume: bool = False,
        overwrite: bool = False,
        retry_errors: bool = False,
        output_format: OutputFormat | None = None,
        advice: Advice = COMMAND_LINE,
    ) -> None:
        self.advice = advice
        self.format = output_format or OutputFormat.of(path)
        self.path = Path(os.path.realpath(path))
        self.journal_path, self._manifest_path, self.partial, self.spool_path = (
            self.path.with_name(self.path.name + suffix)
            for suffix in (JOURNAL_SUFFIX, MANIFEST_SUFFIX, PARTIAL_SUFFIX, SPOOL_SUFFIX)
        )
        self.complete = False
        self.unanswered = self.cut_bytes = 0
        self.manifest: Manifest | None = None
        self.finished = Finished(samples)
        self._open: Journal | None = None
        self._samples = samples
        self._overwrite = overwrite
        self._retry_errors = retry_errors
        resume |= retry_errors
        self._synced_at = time.monotonic()
        self._check_folder()
        begun = self.journal_path.exists() and not overwrite
        there = self._output_is_there()
        if there and not overwrite and not begun:
            if resume and self._manifest_path.exists():
                self.manifest = Manifest.read(self._manifest_path)
            if self.manifest is None or not self.manifest.outputs:
                raise self._exists()
            self.complete = True
            return
        if begun and not resume:
            raise OutputExists(
                f"{self.journal_path} is there already: an interrupted run left it, or another one is writing it. "
                f"To go on with it, {advice.go_on}; to begin anew, {advice.begin_anew}.",
                path=str(self.journal_path),
            )
        if begun:
            self.manifest = Manifest.read(self._manifest_path)
            self._overwrite = self.manifest.overwrite
            if there and not retry_errors and self.manifest.outputs and self._digest() == self.manifest.outputs[-1]:
                self._find_complete()
                return
        if self.manifest is not None and self.manifest.samples != samples:
            raise BatchError(
                f"The run that is to go on has {self.manifest.samples} answers a row, not {samples} ({advice.samples})."
            )
        self._open = Journal(self.journal_path, samples, fresh=not begun)
        self.finished, self.cut_bytes = self._open.finished, self._open.cut_bytes
        if not begun:
            self.spool_path.unlink(missing_ok=True)  # another run's, until the journal is ours

    def _find_complete(self) -> None:
        """The output is there; the journal stays only as long as it holds errors."""
        self.complete = True
        with Journal(self.journal_path, self._samples) as journal:
            self.finished = journal.finished
            self._tidy()

    def _tidy(self) -> None:
        if not self.finished.errors:
            self.spool_path.unlink(missing_ok=True)
            self.journal_path.unlink()

    def _check_folder(self) -> None:
        folder = self.path.parent
        if not folder.is_dir():
            raise BatchError(f"The output folder {folder} does not exist; make it, or {self.advice.go_elsewhere}.")

    def _output_is_there(self) -> bool:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unwritable(error) from error
        if not stat.S_ISREG(mode):
            raise BatchError(f"The output {self.path} is not a regular file; {self.advice.go_elsewhere}.")
        return True

    def _exists(self) -> OutputExists:
        return OutputExists(
            f"The output file {self.path} is there already. To replace it, {self.advice.begin_anew}; or "
            f"{self.advice.go_elsewhere}.",
            path=str(self.path),
        )

    @property
    def _journal(self) -> Journal:
        assert self._open is not None, "the output is complete"
        return self._open

    def begin(self, manifest: Manifest, *, accept_changes: bool = False) -> Manifest:
        """Note what run this is, or see that it is still the same one.

        Args:
            accept_changes: go on with what is different now.

        Returns:
            The run's manifest, whose seed holds.

        Raises:
            FingerprintMismatch: it is another run, and what is different.
            BatchError: it cannot be written.
        """
        if self.manifest is not None:
            if not accept_changes:
                self._check_same(manifest, self.advice.accept_changes)
            return self.manifest
        try:
            manifest.write(self._manifest_path)
        except OSError as error:
            raise self._unwritable(error) from error
        self.manifest = manifest
        return manifest

    def check_settings(self, *, params: Mapping[str, Any] | None = None, **settings: Any) -> None:
        """Of an output that is complete: that it is what would be made with these fields of the manifest.

        Args:
            params: among them, as nowhere else, the ``seed`` that was given.

        Raises:
            FingerprintMismatch: it is another run, and what is different.
        """
        assert self.manifest is not None, "only a complete output has a manifest before it begins"
        if params is not None:
            self.check_seed(params.get("seed"))
            settings["params"] = {name: value for name, value in params.items() if name != "seed"}
        now = replace(self.manifest, **settings, output_format=self.format.name)
        advice = self.advice
        self._check_same(now, f"{advice.go_elsewhere}, or {advice.begin_anew} to begin anew; this one is complete")

    def check_input(self, rows: Iterable[Row]) -> None:
        """Of an output that is complete: that it is of these rows.

        Raises:
            FingerprintMismatch: it is not.
        """
        assert self.manifest is not None, "only a complete output has a manifest before it begins"
        if self.manifest.input_digest is None:
            return
        hashes = sorted((row.index, int.from_bytes(row_hash(row.columns), "little")) for row in rows)
        if digest_of_rows(hashes) != self.manifest.input_digest:
            raise FingerprintMismatch(
                f"The input is not the one that {self.path} was made of. Bring that back, or "
                f"{self.advice.go_elsewhere}, or {self.advice.begin_anew} to begin anew."
            )

    def check_seed(self, seed: int | None) -> None:
        """That a seed, if one is given, is the run's.

        Raises:
            FingerprintMismatch: it is not.
        """
        assert self.manifest is not None, "begin comes first"
        if seed is not None and seed != self.manifest.run_seed:
            raise FingerprintMismatch(
                f"The run of {self.path} has the seed {self.manifest.run_seed}, not {seed}; leave {self.advice.seed} "
                "out."
            )

    def _check_same(self, now: Manifest, otherwise: str) -> None:
        assert self.manifest is not None
        if changes := self.manifest.changes(now):
            raise FingerprintMismatch(
                f"This is not the run that {self.path} is of any more. {'; '.join(changes)}. Undo that, or {otherwise}."
            )

    # ---- rows -----------------------------------------------------------------------------------------------------

    def missing(self, rows: Iterable[Row], *, whole: bool = True) -> Iterator[Row]:
        """The rows that are still to be answered; of those that are there, that they are the same as they were.

        Args:
            whole: these are all rows of the input.

        Raises:
            FingerprintMismatch: they are not.
        """
        finished, rows_before, highest = self.finished, self.finished.rows, -1
        for row in rows:
            highest = max(highest, row.index)
            done = frozenset(
                sample
                for sample in range(self._samples)
                if finished.has(row.index, sample, errors=not self._retry_errors)
            )
            if done and not finished.same_input(row.index, done, row_hash(row.columns)):
                raise FingerprintMismatch(
                    f"Row {row.index} of the input is not what it was when it was answered, so what is left of "
                    f"it may not be the rest. Bring the input back; or {self.advice.begin_anew} to begin anew.",
                    row=row.index,
                )
            if len(done) < self._samples:
                row.finished = done
                yield row
        if whole and highest + 1 < rows_before:
            raise FingerprintMismatch(
                f"The input has {highest + 1:,} rows, and there were at least {rows_before:,} when the run began. "
                f"Bring them back; or {self.advice.begin_anew} to begin anew."
            )

    def write(self, result: RowResult) -> None:
        """Note a finished row. What failed for no fault of its own is not finished, and only counted.

        Raises:
            BatchError: it cannot be written; what was written before stays.
        """
        if result.transient:
            self.unanswered += 1
            return
        outcome = Outcome.ANSWERED if result.error is None else Outcome.ERROR
        line = to_json(output_row(result, self._samples)) + b"\n"
        self._journal.append(result.row.index, result.sample, outcome, row_hash(result.row.columns), line)

    def keep_safe(self) -> None:
        """Hand what there is to the system, and every second to the disk. To be called a few times a second.

        Raises:
            BatchError: as for ``write``.
        """
        self._journal.flush()
        if time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
            self._journal.sync()
            self._synced_at = time.monotonic()

    def lines(self) -> Iterator[bytes]:
        """The output rows that are finished, ordered by (row, sample), each with the end of its line.

        Raises:
            BatchError: the disk gives back something else than was written.
        """
        return self._journal.lines()

    # ---- the end --------------------------------------------------------------------------------------------------

    def assemble(self) -> None:
        """All rows are there: put the file together, put it in its place, and remove the journal if no row failed.

        If it is interrupted, it can be done again.

        Raises:
            OutputExists: somebody else made the output meanwhile.
            BatchError: it cannot be written; the journal stays.
        """
        assert self.manifest is not None, "begin comes first"
        self._journal.sync()
        self._check_room()
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        try:
            with open(self.partial, "wb", buffering=FLUSH_BYTES) as file:
                self.format.write(self._journal.lines, cast(BinaryIO, Hashed(file, digest)), self.manifest)
                file.flush()
                os.fsync(file.fileno())
            self._note_output(digest.hexdigest())
            self._put_in_place()
            sync_folder(self.path.parent)
            self._tidy()
        except FileExistsError as error:
            raise OutputExists(
                f"The output file {self.path} appeared while the batch ran; this run's rows are in {self.partial}, and "
                f"in its journal. Move one of them away, and {self.advice.go_on}.",
                path=str(self.path),
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        except (ValueError, TypeError) as error:  # a table's
            raise BatchError(
                f"The rows cannot be written as {self.format.name} ({error}). They stay in {self.journal_path}, which "
                "samplerpool batch tail --json shows.",
                path=str(self.path),
            ) from error
        self.complete = True

    def _note_output(self, digest: str) -> None:
        """Note what the output will be, so that it is known as this run's own if it has to be replaced."""
        assert self.manifest is not None
        outputs = (*(known for known in self.manifest.outputs if known != digest), digest)
        self.manifest = replace(self.manifest, outputs=outputs, input_digest=self.finished.input_digest())
        self.manifest.write(self._manifest_path)

    def _check_room(self) -> None:
        system = os.statvfs(self.path.parent)
        room = system.f_bavail * system.f_frsize
        needed = self.format.most_bytes(self.finished.text_bytes, self.finished.count)
        if room < needed:
            raise BatchError(
                f"All rows are answered, but there is no room to put {self.path} together: it takes {needed:,} bytes "
                f"beside the journal, and {room:,} are free. Make room, and {self.advice.go_on}.",
                path=str(self.path),
            )

    def _put_in_place(self) -> None:
        if not self._overwrite:
            try:
                os.link(self.partial, self.path)  # unlike a rename, never replaces anything
                os.unlink(self.partial)
                return
            except FileExistsError:
                if not self._is_ours():
                    raise
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                if self.path.exists() and not self._is_ours():
                    raise FileExistsError(self.path) from error
        os.replace(self.partial, self.path)

    def _is_ours(self) -> bool:
        """Whether what stands there is what this run has put there."""
        return self.manifest is not None and self._digest() in self.manifest.outputs

    def _digest(self) -> str:
        """Of what stands there."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with open(self.path, "rb") as file:
            while some := file.read(FLUSH_BYTES):
                digest.update(some)
        return digest.hexdigest()

    def _unwritable(self, error: OSError) -> BatchError:
        return BatchError(f"The output {self.path} cannot be written: {error.strerror}.", path=str(self.path))

    def close(self) -> None:
        """Leave what is finished in the journal; without a row, leave nothing. Idempotent."""
        if self._open is None:
            return
        journal, self._open = self._open, None
        try:
            if not self.complete:
                journal.sync()
        finally:
            journal.close()
            if not self.complete and not journal.finished.count:
                told = (progress_path(self.path), history_path(self.path))
                for path in (self.journal_path, self._manifest_path, self.spool_path, *told):
                    path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
