"""``samplerpool batch report``: a page about an output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import click

from samplerpool.batch.report.charts import check_charts
from samplerpool.batch.report.making import ROWS, Watched, is_report, make_report
from samplerpool.batch.report.source import ReportSource
from samplerpool.cli.command import Command
from samplerpool.config.wording import bytes_text
from samplerpool.data.records import Record
from samplerpool.errors import BatchError, UsageError

REPORT_SUFFIX = ".report.html"
MOST_ROWS = 20_000
"""More than that a browser shows only slowly."""


@click.command("report", cls=Command)
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--to", "target", metavar="FILE", type=click.Path(path_type=Path), help="[default: OUTPUT.report.html]")
@click.option(
    "--rows",
    type=click.IntRange(0, MOST_ROWS),
    metavar="N",
    default=ROWS,
    show_default=True,
    help="How many rows to read in it.",
)
def command(output: Path, target: Path | None, rows: int) -> int:
    """Write one page about the batch that writes, or has written, OUTPUT, for any browser.

    Throughput over time and how full each worker was, lengths, finish reasons, errors with examples, duplicates and
    empty answers, counted over all rows; and N rows to read and to search, with what is peculiar first. The page holds
    all it needs, so it can be sent to others; its rows are in it. Nothing of the run is touched, finished or not.
    """
    check_charts()
    if output.is_dir():
        raise UsageError(f"{output} is a folder; name the file that was given to --output.")
    target = target or output.with_name(output.name + REPORT_SUFFIX)
    _check_target(target)
    source = ReportSource(output)
    text, found = make_report(source, rows, datetime.now().astimezone(), _shown(len(source)))
    data = text.encode()
    _write(target, data)
    what = f"{found.counts.rows:,} rows counted, {len(found.rows):,} to read, {bytes_text(len(data))}"
    click.echo(f"{target} is written: {what}")
    return 0


def _check_target(target: Path) -> None:
    """Replace nothing but an earlier report.

    Raises:
        UsageError
    """
    if not target.parent.is_dir():
        raise UsageError(f"The folder {target.parent} does not exist; make it, or choose another --to.")
    if not target.exists():
        return
    if not target.is_file():
        raise UsageError(f"{target} is not a regular file; choose another --to.")
    if not is_report(target):
        raise UsageError(f"{target} is there already, and no report; choose another --to.")


def _shown(total: int) -> Watched:
    """On a terminal, a bar while they are read."""
    hidden = not sys.stderr.isatty()

    def watched(rows: Iterable[Record]) -> Iterator[Record]:
        bar = click.progressbar(
            rows, length=total, label="Reading", file=sys.stderr, update_min_steps=1000, hidden=hidden
        )
        with bar as passed:
            yield from passed

    return watched


def _write(target: Path, data: bytes) -> None:
    partial = target.with_name(target.name + ".new")
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BatchError(f"{target} cannot be written: {error.strerror}.", path=str(target)) from error
