"""A batch run that can be walked away from: ``run_batch`` into a ``BatchOutput``, under one manifest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from typing import Any, Required, TypedDict, Unpack

from samplerpool.batch.history import HistoryFile
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.progress_file import ProgressFile
from samplerpool.batch.runner import StopSwitch, drained, iter_batch
from samplerpool.batch.tally import BatchSummary, Progress
from samplerpool.client.connection import PoolConnection
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row
from samplerpool.data.selection import ALL, Selection
from samplerpool.errors import BatchError, FingerprintMismatch, SamplerPoolError, TransportError

WAIT_FOR_WORKER_S = 1.0

Check = Callable[[RowResult], SamplerPoolError | None]


class DurableOptions(TypedDict, total=False):
    """What ``run_durably`` and ``iter_durably`` have in common.

    Args:
        source: how the input is named, for the manifest; ``input_bytes`` likewise.
        selection: which of the input's rows these are.
        params: sampling parameters, ``seed`` and ``num_return_sequences`` among them.
        overwrite: what stands in the output's place is to be replaced.
        accept_changes: go on although something has changed since the run began.
        on_note: gets a sentence about what the run does without.
        clock: for the date that chat templates are told all through the run, and whenever it goes on.
        fetch_media: as for ``run_batch``, and ``on_progress``, ``stop`` and ``total`` likewise.
    """

    source: Required[str]
    params: Required[Mapping[str, Any]]
    input_bytes: int | None
    selection: Selection
    overwrite: bool
    accept_changes: bool
    on_progress: Callable[[Progress], None] | None
    on_note: Callable[[str], None] | None
    stop: StopSwitch | None
    total: int | None
    fetch_media: bool
    clock: Callable[[], datetime]


def run_durably(
    connection: PoolConnection,
    rows: Iterable[Row],
    output: BatchOutput,
    *,
    check: Check | None = None,
    **options: Unpack[DurableOptions],
) -> BatchSummary:
    """Answer the rows that the output does not have yet; if all are there then, put the output together.

    How far it is, stands in a file beside the output (``batch.progress_file``), and how it went in another
    (``batch.history``).

    Args:
        rows: all that are meant, in their order, also those that an earlier run has answered.
        check: called for each result before it is written; what it raises ends the run. A result for which it returns
            an error is not written, nothing more is handed out then, and the run ends with that error as soon as what
            is being answered is finished.
        **options: see ``DurableOptions``.

    Returns:
        What this run did; ``complete`` if nothing is left to be answered.

    Raises:
        FingerprintMismatch: an earlier run is to go on, and something has changed.
        OutputExists, BatchError, InvalidParameter, UnsupportedParameter: as for ``run_batch`` and ``BatchOutput``.
    """
    return drained(iter_durably(connection, rows, output, check=check, **options), lambda _result: None)


def iter_durably(
    connection: PoolConnection,
    rows: Iterable[Row],
    output: BatchOutput,
    *,
    source: str,
    params: Mapping[str, Any],
    input_bytes: int | None = None,
    selection: Selection = ALL,
    overwrite: bool = False,
    accept_changes: bool = False,
    check: Check | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    stop: StopSwitch | None = None,
    total: int | None = None,
    fetch_media: bool = False,
    clock: Callable[[], datetime] = datetime.now,
) -> Generator[list[RowResult], None, BatchSummary]:
    """The same step by step; closing it ends the run, which can be gone on with.

    Yields:
        Results that were written, some at a time.

    Raises: as ``run_durably``.
    """
    given = sampling_params(params).given()
    seed = given.pop("seed", None)
    resumed = output.manifest is not None
    manifest = output.begin(
        Manifest(
            source=source,
            input_bytes=input_bytes,
            **selection.settings(),
            params=given,
            model=model_of(connection),
            version=version("samplerpool"),
            run_seed=secrets.randbelow(2**32) if seed is None else seed,
            overwrite=overwrite,
            frozen_date=clock().isoformat(timespec="seconds"),
            output_format=output.format.name,
            created=int(time.time()),
        ),
        accept_changes=accept_changes,
    )
    output.check_seed(seed)

    def same_model(worker: int, said: Mapping[str, Any]) -> None:
        """A worker that comes later may have been started from a checkpoint that has changed meanwhile."""
        if changes := manifest.changes(replace(manifest, model=_model_in(said))):
            raise FingerprintMismatch(
                f"Worker {worker} does not run what this batch began with. {'; '.join(changes)}. Give it the same "
                f"model again, and {output.advice.go_on}; or {output.advice.accept_changes}.",
                worker=worker,
            )

    shown = ProgressFile(output.path, on_note)
    history = HistoryFile(output.path, resumed=resumed, note=on_note)
    switch = stop or StopSwitch()

    def progressed(progress: Progress) -> None:
        output.keep_safe()
        shown.state = "stopping" if switch.pressed else "running"
        shown.update(progress)
        history.update(progress)
        if on_progress is not None:
            on_progress(progress)

    with history, shown:
        groups = iter_batch(
            connection,
            output.missing(rows, whole=selection.limit is None),
            params=given,
            run_seed=manifest.run_seed,
            frozen_date=manifest.frozen_date,
            on_progress=progressed,
            on_worker=None if accept_changes else same_model,
            stop=switch,
            total=total,
            before=output.finished.count,
            fetch_media=fetch_media,
        )
        summary = yield from _written(groups, output, check, switch)
        if output.unanswered:
            raise BatchError(
                f"{output.unanswered} rows got no answer for no fault of their own (workers that were lost or full), "
                f"and are not finished; {output.advice.go_on} to try them again."
            )
        if summary.complete:
            output.assemble()
        shown.state = "complete" if summary.complete else "interrupted"
    return summary


def _written(
    groups: Generator[list[RowResult], None, BatchSummary],
    output: BatchOutput,
    check: Check | None,
    switch: StopSwitch,
) -> Generator[list[RowResult], None, BatchSummary]:
    refusal: SamplerPoolError | None = None
    with closing(groups):
        while True:
            try:
                group = next(groups)
            except StopIteration as end:
                if refusal is not None:
                    raise refusal from None
                summary: BatchSummary = end.value
                return summary
            written: list[RowResult] = []
            for result in group:
                error = None if check is None else check(result)
                if error is None:
                    output.write(result)
                    written.append(result)
                elif refusal is None:
                    refusal = error
                    if not switch.pressed:  # twice is at once
                        switch.press()
            yield written


def model_of(connection: PoolConnection) -> dict[str, Any]:
    """What the pool's workers run, as the first of them says that answers."""
    while views := [view for view in connection.workers() if view.up or view.coming]:
        for view in views:
            if view.up:
                try:
                    said = connection.describe(view.index)
                except TransportError:
                    continue
                return _model_in(said)
        connection.wait_until(lambda now: any(view.up for view in now), WAIT_FOR_WORKER_S)
    raise BatchError("No worker of the pool is left.")


def _model_in(description: Mapping[str, Any]) -> dict[str, Any]:
    """Of a worker's description what can change its answers."""
    return {
        **description.get("fingerprint", {}),
        "engine": description.get("engine"),
        "defaults": description.get("defaults", {}),
    }
