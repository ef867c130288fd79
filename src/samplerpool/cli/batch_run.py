"""The run of ``samplerpool batch``: from what the command line said to the output, with all that is said meanwhile."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import click

from samplerpool.batch.durable import run_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.runner import StopSwitch
from samplerpool.batch.spool import is_stream, spool
from samplerpool.batch.tally import BatchSummary, Progress
from samplerpool.cli.batch_detach import Begun
from samplerpool.cli.batch_process import rare_collection, stop_switch
from samplerpool.cli.batch_view import View, summary_lines, view_for
from samplerpool.cli.main import EXIT_INTERRUPTED, EXIT_ROW_ERRORS
from samplerpool.client.connection import PoolConnection
from samplerpool.data.answers import RowResult, error_text
from samplerpool.data.collection import DataCollection
from samplerpool.data.rows import Row, with_expected_tokens
from samplerpool.data.selection import Selection
from samplerpool.errors import BatchError, FingerprintMismatch, UsageError

BEGUN_AFTER_S = 1.0
"""What is wrong with every row, a parameter that the engine does not take say, has shown by then."""


@dataclass(frozen=True)
class Job:
    """What is to be done, as the command line said it."""

    source: str
    selection: Selection
    output: Path
    overwrite: bool
    accept_changes: bool
    stop_on_error: bool
    fetch_media: bool
    length_column: str | None
    sampling: dict[str, Any]

    @property
    def samples(self) -> int:
        """Answers per row."""
        return int(self.sampling.get("num_return_sequences") or 1)


def open_data(job: Job, output: BatchOutput) -> DataCollection:
    """The rows to be answered; what can be read only once is copied first.

    Raises:
        UsageError: there is no such input, or it is the output.
        BatchError: it cannot be copied.
    """
    source = str(spool(job.source, output.spool_path)) if is_stream(job.source) else job.source
    data = job.selection.open(source, note=lambda sentence: click.echo(sentence, err=True))
    try:
        check_not_input(data, job.output)
    except UsageError:
        data.close()
        raise
    return data


def check_not_input(data: DataCollection, output: Path) -> None:
    """That the output is none of the files that are read.

    Raises:
        UsageError
    """
    for path in data.paths if output.exists() else ():
        if os.path.samefile(path, output):
            raise UsageError(f"Input and output are the same file, {path}; choose another --output.")


def check_input(job: Job, output: BatchOutput) -> None:
    """Of an output that is complete: that it is of this input, if that can be read again.

    Raises:
        FingerprintMismatch: it is not.
        UsageError: there is no such input.
    """
    if not is_stream(job.source):
        with open_data(job, output) as data:
            output.check_input(job.selection.rows(data))


def run(job: Job, data: DataCollection, output: BatchOutput, connection: PoolConnection, begun: Begun) -> BatchSummary:
    """Answer what is missing in the output, and show how it goes.

    Raises:
        BatchError: a row failed that must not; else as for ``run_durably``.
    """

    def check(result: RowResult) -> BatchError | None:
        if result.error is None or not job.stop_on_error:
            return None
        return BatchError(f"Row {result.row.index} failed, and --on-error is stop: {error_text(result.error)}")

    rows: Iterable[Row] = job.selection.rows(data)
    if job.length_column is not None:
        rows = with_expected_tokens(rows, job.length_column)
    with (
        stop_switch() as stop,
        view_for(sys.stderr) as view,
        _rows_kept_on_failure(output, view),
        rare_collection(),
    ):
        progress = _ProgressShell(view, stop, begun)
        return run_durably(
            connection,
            rows,
            output,
            source=job.source,
            input_bytes=_size(data),
            selection=job.selection,
            params=job.sampling,
            overwrite=job.overwrite,
            accept_changes=job.accept_changes,
            check=check,
            on_progress=progress.update,
            on_note=view.say,
            stop=stop,
            total=job.selection.count(data),
            fetch_media=job.fetch_media,
        )


def _size(data: DataCollection) -> int | None:
    """Bytes of the input's files together, if they are files."""
    try:
        states = [os.stat(path) for path in data.paths]
    except OSError:
        return None
    return sum(state.st_size for state in states) if states and all(S_ISREG(s.st_mode) for s in states) else None


class _ProgressShell:
    """What happens a few times a second: the view, an answer to Ctrl-C, a word to whoever waits for the beginning."""

    def __init__(self, view: View, stop: StopSwitch, begun: Begun) -> None:
        self._view, self._stop, self._begun = view, stop, begun
        self._heard = 0

    def update(self, progress: Progress) -> None:
        """Show the figures."""
        if self._stop.pressed > self._heard:
            self._heard = self._stop.pressed
            running = sum(worker.running for worker in progress.workers)
            if self._heard == 1 and running:
                self._view.say(f"Stopping: the {running} rows that are being answered are finished. Ctrl-C: at once.")
        if progress.elapsed_s >= BEGUN_AFTER_S:
            self._begun.tell()
        self._view.update(progress)


@contextmanager
def _rows_kept_on_failure(output: BatchOutput, view: View) -> Iterator[None]:
    """When the run fails, say how it can go on."""
    try:
        yield
    except BaseException as error:
        if output.finished.count and not isinstance(error, FingerprintMismatch):
            view.say(_left(output))
        raise


def _left(output: BatchOutput) -> str:
    return f"{output.finished.count:,} answers are in {output.journal_path}; to go on: {command_with('--resume')}"


def command_with(option: str) -> str:
    """What the user has typed, for going on."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume", "--retry-errors")]
    return shlex.join(["samplerpool", *words, option])


def conclude(summary: BatchSummary, output: BatchOutput) -> int:
    """Say what was done, and choose the exit code."""
    if summary.complete:
        place = f"written to {output.path}" if output.finished.count else f"no row was meant; {output.path} is empty"
        if output.finished.errors:
            earlier = output.finished.errors - summary.error_rows
            whose = f" ({earlier:,} of them of earlier runs)" if earlier > 0 else ""
            errors = f"{output.finished.errors:,} errors{whose}"
            place += f"; to try the {errors} again: {command_with('--retry-errors')}"
    else:
        place = f"interrupted; {_left(output)}" if output.finished.count else "interrupted before any row was finished"
    for line in (*summary_lines(summary), place):
        click.echo(line)
    if not summary.complete:
        return EXIT_INTERRUPTED
    return EXIT_ROW_ERRORS if output.finished.errors else 0
