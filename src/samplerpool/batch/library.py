"""Batch inference as programs call it: a data set in, samples out; with an output, all of them on disk as well."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, cast

from samplerpool.batch.advice import LIBRARY
from samplerpool.batch.durable import iter_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.results import RunFiles, generation_of, open_results, output_columns
from samplerpool.batch.runner import StopSwitch, iter_batch
from samplerpool.client.connection import PoolConnection
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import output_row
from samplerpool.data.rows import Row, rows_from_dataset, with_template_options
from samplerpool.data.selection import Selection
from samplerpool.errors import UsageError
from samplerpool.types import Dataset, Sample

Results = Generator[tuple[int, Sample], None, None]


def iter_samples(
    connection: PoolConnection,
    dataset: Dataset | str | Path,
    params: Mapping[str, Any],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    retry_errors: bool = False,
    accept_changes: bool = False,
    fetch_media: bool = False,
    template_options: Mapping[str, Any] | None = None,
    stop: StopSwitch | None = None,
) -> Results:
    """Answer a data set.

    Args:
        dataset: anything that ``rows_from_dataset`` takes.
        params: sampling parameters.
        output: the file to be written; see ``BatchOutput`` for this and what follows, and ``run_durably``.
        fetch_media, stop: see ``run_batch``.
        template_options: keyword arguments for the chat template.

    Yields:
        Number of the row and sample, in the form of the output rows, as they finish; with an output, those that an
        earlier run has first, and none before it is in the journal. A row that could not be answered has its error
        in ``generation["error"]``.

    Raises:
        BatchError, FingerprintMismatch, InvalidParameter, OutputExists, UnsupportedParameter, UsageError
    """
    given = sampling_params(params).given()
    selection = Selection(template_options=template_options or {})

    def rows() -> Iterator[Row]:
        return with_template_options(rows_from_dataset(dataset), selection.template_options)

    count = given.get("num_return_sequences", 1)
    if output is None:
        if resume or retry_errors:
            name = "resume" if resume else "retry_errors"
            raise UsageError(f"{name} goes on with an output; give output='answers.jsonl' as well, or leave it out.")
        groups = iter_batch(connection, rows(), params=params, fetch_media=fetch_media, stop=stop)
        with closing(groups):
            for results in groups:
                for result in results:
                    yield result.row.index, cast(Sample, output_row(result, count))
        return
    path = Path(output).expanduser()
    with BatchOutput(
        path, count, resume=resume, overwrite=overwrite, retry_errors=retry_errors, advice=LIBRARY
    ) as file:
        if file.complete:
            if not accept_changes:
                file.check_settings(**selection.settings(), params=given)
                file.check_input(rows())
            yield from _numbered(_rows_of(path))
            return
        groups = iter_durably(
            connection,
            rows(),
            file,
            source=str(dataset) if isinstance(dataset, str | Path) else type(dataset).__name__,
            params=params,
            selection=selection,
            overwrite=overwrite,
            accept_changes=accept_changes,
            total=_length(dataset),
            fetch_media=fetch_media,
            stop=stop,
        )
        with closing(groups):
            first = next(groups, [])  # by now it is known whether this is the same run
            new = {(result.row.index, result.sample) for result in first}
            for index, sample in _numbered(map(output_columns, file.lines()), errors=not retry_errors):
                if (index, generation_of(sample).get("sample", 0)) not in new:
                    yield index, sample
            for results in chain([first], groups):
                file.keep_safe()
                for result in results:
                    if not result.transient:
                        yield result.row.index, cast(Sample, output_row(result, count))


def _length(dataset: object) -> int | None:
    """How many rows there are, where that is known."""
    try:
        return len(dataset) if isinstance(dataset, Sized) and not isinstance(dataset, str) else None
    except TypeError:  # a stream's
        return None


def in_order(results: Iterable[tuple[int, Sample]]) -> list[Sample]:
    """All of them, ordered by (row, sample)."""
    return [sample for _, sample in sorted(results, key=lambda one: (one[0], generation_of(one[1]).get("sample", 0)))]


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    rows = open_results(RunFiles(path))
    return (rows[place] for place in range(len(rows)))


def _numbered(rows: Iterator[dict[str, Any]], *, errors: bool = True) -> Results:
    for columns in rows:
        generation = generation_of(columns)
        if errors or not generation.get("error"):
            yield generation["index"], cast(Sample, columns)
