"""``samplerpool batch``: answer every row of a file with a pool."""

from __future__ import annotations

import gc
import itertools
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from types import FrameType
from typing import Any

import click

from samplerpool.batch.durable import run_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.runner import StopSwitch
from samplerpool.batch.spool import is_stream, spool
from samplerpool.batch.tally import BatchSummary, Progress
from samplerpool.cli.batch_view import View, summary_lines, view_for
from samplerpool.cli.command import Command
from samplerpool.cli.main import EXIT_INTERRUPTED, EXIT_ROW_ERRORS
from samplerpool.cli.options import (
    arguments_from,
    check_unheard,
    chosen_pool,
    connect_option,
    model_options,
    pool_option,
    sampling_options,
)
from samplerpool.client.connection import PoolConnection
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import RowResult, error_text
from samplerpool.data.collection import DataCollection
from samplerpool.data.rows import Row, with_system
from samplerpool.errors import BatchError, FingerprintMismatch, UsageError
from samplerpool.wire.endpoint import ConnectionFile

COLLECT_AFTER = 100_000
"""Objects that must have come without going before Python looks for cycles among them; its own figure is 700."""


@dataclass(frozen=True)
class Job:
    """What is to be done, as the command line said it."""

    source: str
    converter: str | None
    output: Path
    overwrite: bool
    accept_changes: bool
    limit: int | None
    stop_on_error: bool
    system: str | None
    fetch_media: bool
    sampling: dict[str, Any]

    @property
    def samples(self) -> int:
        """Answers per row."""
        return int(self.sampling.get("num_return_sequences") or 1)


@click.command("batch", cls=Command, short_help="Answer every row of a data set.")
@click.argument("source", metavar="INPUT")
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), required=True, help="File to write.")
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a private pool with this model, stopped at the end.")
@click.option(
    "--converter",
    metavar="NAME",
    help="How rows become conversations: openai, prompt, alpaca, sharegpt, pair, or package.module.function of your "
    "own. Default: chosen by each row's columns.",
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run left, if it left anything.")
@click.option("--retry-errors", is_flag=True, help="Like --resume, and answer the rows again that carry errors.")
@click.option("--overwrite", is_flag=True, help="Replace an output that is there already, and what a run left of one.")
@click.option(
    "--accept-changes", is_flag=True, help="With --resume: go on although the model or a setting has changed."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Answer only the first N rows.")
@click.option(
    "--on-error",
    type=click.Choice(["row", "stop"]),
    default="row",
    help="A row that fails becomes an error row, or stops the batch.",
)
@click.option("--fetch-media", is_flag=True, help="Get images, videos and sounds from http(s) URLs, too, from here.")
@click.option("--system", metavar="TEXT", help="System turn for the rows that have none.")
@sampling_options
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str,
    output: Path,
    pool: str | None,
    connect: Path | None,
    model: str | None,
    converter: str | None,
    resume: bool,
    retry_errors: bool,
    overwrite: bool,
    accept_changes: bool,
    limit: int | None,
    on_error: str,
    system: str | None,
    fetch_media: bool,
    sampling: dict[str, Any],
    **model_settings: Any,
) -> int:
    """Answer every row of INPUT, and write the rows with their answers to --output as JSON Lines, in order.

    INPUT is a file (JSON Lines, JSON, CSV, TSV, Parquet, Arrow, text), a folder of them, a YAML file of several, a
    data set of the hub, or - for standard input (JSON). A row has "messages" (a conversation) or "prompt" (a text), or
    what --converter reads; its other columns are kept. A row that cannot be answered gets its error instead.

    A row that is finished goes to FILE.journal; when all are, FILE is put together. Ctrl-C finishes the rows that are
    being answered and stops; pressed twice, it stops at once. Whatever ended it, --resume answers the rest.

    \b
    Exit code: 0 all answered, 3 some rows carry errors, 130 interrupted, 1 failed, 2 wrong usage.
    """
    _check_choice(pool, connect, model)
    check_unheard(context, model_settings if model is None else ())
    if (resume or retry_errors) and overwrite:
        raise UsageError("Give either --resume (or --retry-errors) or --overwrite: to go on, or to begin anew.")
    job = Job(
        source,
        converter,
        output,
        overwrite,
        accept_changes,
        limit,
        on_error == "stop",
        system,
        fetch_media,
        sampling,
    )
    with BatchOutput(output, job.samples, resume=resume, overwrite=overwrite, retry_errors=retry_errors) as file:
        if file.complete:
            if not accept_changes:
                given = sampling_params(sampling).given()
                given.pop("seed", None)
                file.check_settings(converter=converter, system=system, limit=limit, params=given)
            click.echo(f"{file.path} is complete already")
            return EXIT_ROW_ERRORS if file.finished.errors else 0
        with _data(job, file) as data:
            with _connected(pool, connect, model, model_settings) as connection:
                summary = _run(job, data, file, connection)
            return _conclude(summary, file)


def _check_choice(pool: str | None, connect: Path | None, model: str | None) -> None:
    chosen = [n for n, v in (("--pool", pool), ("--connect", connect), ("--model", model)) if v is not None]
    if len(chosen) > 1:
        raise UsageError(f"Give just one of {' and '.join(chosen)}: they name different pools.")


def _data(job: Job, output: BatchOutput) -> DataCollection:
    source = str(spool(job.source, output.spool_path)) if is_stream(job.source) else job.source
    data = DataCollection.open(source, converter=job.converter, note=lambda sentence: click.echo(sentence, err=True))
    for path in data.paths if job.output.exists() else ():
        if os.path.samefile(path, job.output):
            data.close()
            raise UsageError(f"Input and output are the same file, {path}; choose another --output.")
    return data


# ---- the pool -----------------------------------------------------------------------------------------------------


@contextmanager
def _connected(
    pool: str | None, connect: Path | None, model: str | None, model_settings: dict[str, Any]
) -> Iterator[PoolConnection]:
    if model is None:
        with PoolConnection.attach(chosen_pool(pool, connect)) as connection:
            yield connection
        return
    with _private_pool(model, model_settings) as file, PoolConnection.attach(file) as connection:
        yield connection


@contextmanager
def _private_pool(model: str, settings: dict[str, Any]) -> Iterator[ConnectionFile]:
    from samplerpool.pool.launcher import launch_pool

    launched = launch_pool(
        *arguments_from(model, None, {}, settings),
        detached=False,
        private=True,
        on_progress=lambda line: click.echo(line, err=True),
    )
    try:
        yield launched.connection
    finally:
        launched.stop(0.0)


# ---- the run ------------------------------------------------------------------------------------------------------


def _run(job: Job, data: DataCollection, output: BatchOutput, connection: PoolConnection) -> BatchSummary:
    total = data.count_rows()
    rows: Iterable[Row] = data.rows()
    if job.limit is not None:
        rows = itertools.islice(rows, job.limit)
        total = job.limit if total is None else min(total, job.limit)
    if job.system is not None:
        rows = with_system(rows, job.system)

    def on_result(result: RowResult) -> None:
        if result.error is not None and job.stop_on_error:
            raise BatchError(f"Row {result.row.index} failed, and --on-error is stop: {error_text(result.error)}")

    with (
        _stop_switch() as stop,
        view_for(sys.stderr) as view,
        _rows_kept_on_failure(output, view),
        _rare_collection(),
    ):
        progress = _ProgressShell(view, stop)
        return run_durably(
            connection,
            rows,
            output,
            source=job.source,
            input_bytes=_size(data),
            converter=job.converter,
            system=job.system,
            params=job.sampling,
            limit=job.limit,
            overwrite=job.overwrite,
            accept_changes=job.accept_changes,
            on_result=on_result,
            on_progress=progress.update,
            stop=stop,
            total=total,
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
    """What happens a few times a second: the view, an answer to Ctrl-C."""

    def __init__(self, view: View, stop: StopSwitch) -> None:
        self._view, self._stop = view, stop
        self._heard = 0

    def update(self, progress: Progress) -> None:
        """Show the figures."""
        if self._stop.pressed > self._heard:
            self._heard = self._stop.pressed
            running = sum(worker.running for worker in progress.workers)
            if self._heard == 1 and running:
                self._view.say(f"Stopping: the {running} rows that are being answered are finished. Ctrl-C: at once.")
        self._view.update(progress)


@contextmanager
def _stop_switch() -> Iterator[StopSwitch]:
    """Ctrl-C presses it once, and so does the end of the terminal; SIGTERM means at once. A third time, or when even
    that is not heard, interrupts."""
    switch = StopSwitch()
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        switch.press()
        if number == signal.SIGHUP:  # nobody is there to read, and writing would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        if number == signal.SIGTERM:
            switch.pressed = max(2, switch.pressed)
        if switch.pressed > 2:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield switch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Let Python look for reference cycles rarely: rows make none, and going through those in flight over and over
    takes a fifth of the client's time. Only here, where the whole process is ours."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


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
    return f"{output.finished.count:,} answers are in {output.journal_path}; to go on: {_command('--resume')}"


def _command(option: str) -> str:
    """What the user has typed, for going on."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume", "--retry-errors")]
    return shlex.join(["samplerpool", *words, option])


def _conclude(summary: BatchSummary, output: BatchOutput) -> int:
    """Say what was done, and choose the exit code."""
    if summary.complete:
        place = f"written to {output.path}"
        if output.finished.errors:
            place += f"; to try the {output.finished.errors:,} errors again: {_command('--retry-errors')}"
    else:
        place = f"interrupted; {_left(output)}" if output.finished.count else "interrupted before any row was finished"
    for line in (*summary_lines(summary), place):
        click.echo(line)
    if not summary.complete:
        return EXIT_INTERRUPTED
    return EXIT_ROW_ERRORS if output.finished.errors else 0
