"""``samplerpool batch --dry-run``: look at an input with a pool's eyes, without answering it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import click

from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.output import JOURNAL_SUFFIX
from samplerpool.batch.preflight import Preflight, Probe, estimate
from samplerpool.batch.runner import StopSwitch, run_batch
from samplerpool.batch.spool import is_stream, spool
from samplerpool.cli.batch_options import DryRun
from samplerpool.cli.batch_process import rare_collection, stop_switch
from samplerpool.cli.batch_run import check_not_input
from samplerpool.cli.batch_view import View, view_for
from samplerpool.cli.main import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_ROW_ERRORS
from samplerpool.cli.output import note
from samplerpool.cli.preflight_view import OutputState, Report, report_json, report_lines
from samplerpool.client.connection import PoolConnection
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row, with_expected_tokens
from samplerpool.data.selection import Selection


def look_at(
    source: str,
    selection: Selection,
    asked: DryRun,
    connected: Callable[[], AbstractContextManager[PoolConnection]],
    *,
    sampling: Mapping[str, Any],
    length_column: str | None,
    fetch_media: bool,
    output: OutputState | None,
) -> int:
    """Go through the rows, say what was found, and choose the exit code.

    Args:
        connected: gives the pool; asked for when the input has been opened.
        output: where the batch would write, if that was said.

    Raises:
        UsageError: there is no such input, or the options do not go with it.
        UnsupportedParameter, InvalidParameter, BatchError: as for ``run_batch``.
    """
    checked = Preflight(int(sampling.get("num_return_sequences") or 1), asked.probe)
    with _readable(source) as path, selection.open(path, note=note) as data:
        if output is not None:
            check_not_input(data, output.path)
        total, rows, way = selection.count(data), selection.rows(data), "all"
        if asked.rows is not None and (total is None or asked.rows < total):
            rows, drawn = selection.sample(data, asked.rows)
            way = "drawn" if drawn else "first"
        wanted = total if asked.rows is None or total is None else min(total, asked.rows)
        if length_column is not None:
            rows = with_expected_tokens(rows, length_column)
        with connected() as connection, stop_switch() as stop, view_for(sys.stderr) as view, rare_collection():
            complete = _count(connection, rows, checked, view, stop, wanted, sampling, fetch_media)
            probe = _probe(connection, checked, view, stop, sampling, fetch_media) if asked.probe else None
    if complete and (way == "all" or checked.rows < (asked.rows or 0)):
        total, way = checked.rows, "all"
    whole = estimate(checked, total=total, probe=probe, prices=asked.prices)
    report = Report(source, checked, total, way if complete else "interrupted", whole, probe, asked.prices, output)
    for line in [report_json(report)] if asked.as_json else report_lines(report):
        click.echo(line)
    if not complete:
        return EXIT_INTERRUPTED
    if checked.problems.count:
        return EXIT_ROW_ERRORS
    return EXIT_FAILED if checked.not_counted.count else 0


@contextmanager
def _readable(source: str) -> Iterator[str]:
    """The input's path. What can be read only once is copied for as long as it takes."""
    if not is_stream(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="samplerpool-") as folder:
        yield str(spool(source, Path(folder) / "standard-input"))


def _count(
    connection: PoolConnection,
    rows: Iterable[Row],
    checked: Preflight,
    view: View,
    stop: StopSwitch,
    total: int | None,
    sampling: Mapping[str, Any],
    fetch_media: bool,
) -> bool:
    """Whether all of them were dealt with."""
    summary = run_batch(
        connection,
        rows,
        params=sampling,
        on_result=checked.add,
        on_progress=view.update,
        stop=stop,
        total=total,
        fetch_media=fetch_media,
        count_only=True,
    )
    return summary.complete


def _probe(
    connection: PoolConnection,
    checked: Preflight,
    view: View,
    stop: StopSwitch,
    sampling: Mapping[str, Any],
    fetch_media: bool,
) -> Probe | None:
    """Answer some rows, and measure; None if that was stopped before it began, or there are none."""
    rows = checked.probe_rows
    if stop.pressed or not rows:
        return None
    view.say(f"Answering {len(rows):,} rows to measure")
    results: list[RowResult] = []
    summary = run_batch(
        connection,
        rows,
        params=sampling,
        on_result=results.append,
        on_progress=view.update,
        stop=stop,
        total=len(rows),
        fetch_media=fetch_media,
    )
    answers = [result.answer for result in results if result.answer is not None]
    return Probe(
        answers=len(answers),
        prompt_tokens=summary.prompt_tokens,
        completion_tokens=summary.completion_tokens,
        cut_off=sum(answer.finish_reason == "length" for answer in answers),
        elapsed_s=summary.elapsed_s,
        workers=len(summary.workers),
        places=sum(worker.slots for worker in summary.workers),
    )


def output_state(output: Path, output_format: str | None, *, overwrite: bool) -> OutputState:
    """Whether a batch could write there.

    Raises:
        UsageError, DataFileError: the name means a format that is not written, or a library for it is missing.
    """
    OutputFormat.of(output, output_format)
    folder, journal = output.absolute().parent, output.with_name(output.name + JOURNAL_SUFFIX)
    if not folder.is_dir():
        return OutputState(output, False, f"the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        return OutputState(output, False, f"the folder {folder} cannot be written to")
    if output.exists() and not output.is_file():
        return OutputState(output, False, "it is there already, and is no file")
    if journal.exists() and not overwrite:
        return OutputState(output, False, f"a run is writing it, or has left {journal.name}; --resume goes on with it")
    if output.exists():
        becomes = "it is replaced" if overwrite else "--overwrite would replace it"
        return OutputState(output, overwrite, f"it is there already; {becomes}")
    return OutputState(output, True, "it is free")
