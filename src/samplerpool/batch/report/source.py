"""The rows that a report is of: a run's, finished or not, lines of an OpenAI batch output, another program's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.history import Session, history_path, read_history
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import JOURNAL_SUFFIX
from samplerpool.batch.progress_file import ProgressRead
from samplerpool.batch.report.openai_answers import is_openai, output_rows
from samplerpool.batch.results import OutputFile, Results, RunFiles, open_results
from samplerpool.data.records import Record
from samplerpool.errors import BadRow, BatchError


class ReportSource:
    """What there is to be reported.

    Args:
        path: as it was given as ``--output``; or a file with answers that no run of ours has written.

    Attributes:
        manifest: None where it is another program's file.
        unfinished: what is said of a run that is not complete, else empty; ``total``: how many rows it will have, where
            that is known.
        openai: its rows are lines of an OpenAI batch output file.

    Raises:
        BatchError, DataFileError: there are no rows, or they cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.manifest: Manifest | None = None
        self.sessions: list[Session] = []
        self.unfinished = ""
        self.total: int | None = None
        self.path = Path(path).resolve()
        files = self._run_files()
        self._results: Results = _foreign(self.path) if files is None else self._open(files)
        first = next(self._results.records(), None)
        self.openai = first is not None and is_openai(first.columns)

    def _run_files(self) -> RunFiles | None:
        try:
            return RunFiles(self.path)
        except BatchError:
            if not self.path.is_file() or self.path.with_name(self.path.name + JOURNAL_SUFFIX).exists():
                raise
            return None

    def _open(self, files: RunFiles) -> Results:
        self.manifest = files.manifest
        self.sessions = read_history(files.path)
        if files.finished and files.manifest.output_format.startswith("openai") and not files.journal.exists():
            return OutputFile(files.path, files.manifest.output_format)
        if not files.finished:
            progress = ProgressRead(files.path)
            self.unfinished = "the run goes on" if not progress.ended else "the run was ended before it was complete"
            total = progress.fields.get("total")
            self.total = total if isinstance(total, int) else None
        return open_results(files)

    @property
    def no_history(self) -> str:
        """Why nothing is known of the course of the run; empty if it is."""
        if any(session.points for session in self.sessions):
            return ""
        if self.manifest is None:
            return f"{self.path.name} was not written by a samplerpool batch, so its course is not known"
        there = history_path(self.path).exists()
        return f"{history_path(self.path).name} {'has no figures' if there else 'is not there'}: either it was " + (
            "a run of less than a moment, or the file cannot be read"
            if there
            else "removed or left behind, or the run was made before there were such files"
        )

    def __len__(self) -> int:
        """How many records there are, of which each is a row, or in OpenAI's form a request."""
        return len(self._results)

    def rows(self) -> Iterator[Record]:
        """All rows, as a stream.

        Raises:
            DataFileError: they cannot be read on.
        """
        if not self.openai:
            return self._results.records()
        return chain.from_iterable(output_rows(r, n) for n, r in enumerate(self._results.records()))

    def pick(self, places: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any] | None, str]]:
        """Rows by their places, which rise: the place, columns or None, and why they cannot be read.

        Raises:
            DataFileError
        """
        if self.openai:  # a line may be several rows
            wanted, last = frozenset(places), places[-1] if places else -1
            for place, record in enumerate(islice(self.rows(), last + 1)):
                if place in wanted:
                    yield place, None if record.error else record.columns, record.error.message if record.error else ""
            return
        for place in places:
            try:
                yield place, self._results[place], ""
            except BadRow as error:
                yield place, None, error.message


def _foreign(path: Path) -> Results:
    return OutputFile(path, OutputFormat.of(path).name)
