"""A report from its output: all rows counted in one pass, some read, the page made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from samplerpool.batch.report.choice import chosen_rows
from samplerpool.batch.report.counts import Counts
from samplerpool.batch.report.facts import Reading, reading
from samplerpool.batch.report.page import Found, page
from samplerpool.batch.report.source import ReportSource
from samplerpool.data.records import Record
from samplerpool.errors import BatchError

ROWS = 500
Watched = Callable[[Iterable[Record]], Iterable[Record]]


def make_report(source: ReportSource, most: int, made: datetime, watched: Watched = iter) -> tuple[str, Found]:
    """The page of an output, and what it tells.

    Args:
        most: rows to be read.
        made: now, with a time zone.
        watched: passes the rows on that are counted, to show how far it is.

    Raises:
        BatchError: no row has an answer or an error in a form that is known.
        DataFileError: the rows cannot be read on.
    """
    counts = Counts()
    for record in watched(source.rows()):
        counts.add(None if record.error else record.columns, record.error.message if record.error else "")
    if not counts.answered and sum(kind.count for kind in counts.errors.values()) == counts.unreadable:
        raise BatchError(
            f"None of the {counts.rows:,} rows of {source.path} has an answer: neither a column 'generation', as the "
            "outputs of samplerpool batch have, nor 'messages' that end with a turn of the assistant, nor OpenAI's "
            "'response'."
        )
    duplicates = counts.repeats.found()
    chosen = chosen_rows(counts, duplicates, most)
    first_of_each = [places[0] for _, places in duplicates.largest]
    rows: dict[int, Reading] = {}
    repeated: dict[int, str] = {}
    for place, columns, unreadable in source.pick(sorted({*chosen, *first_of_each})):
        broken = {"generation": {"error": f"Unreadable: {unreadable}"}}
        read = reading(broken if columns is None else columns, place, chosen.get(place, ()))
        if place in chosen:
            rows[place] = read
        repeated[place] = read.answer
    found = Found(source, counts, duplicates, rows, repeated)
    return page(found, made), found


def is_report(path: Path) -> bool:
    """Whether a file is a page that was made here."""
    from samplerpool.batch.report.page import GENERATOR

    with path.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(1000)
