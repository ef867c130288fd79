"""Asking for answers of a run once more: of its input, with its seed and parameters, on a pool that runs its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samplerpool.batch.durable import model_of
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.results import RunFiles
from samplerpool.batch.spool import is_stream
from samplerpool.client.connection import PoolConnection
from samplerpool.data.answers import row_seed
from samplerpool.data.per_row import request_params
from samplerpool.data.rows import Row
from samplerpool.data.selection import Selection
from samplerpool.errors import FingerprintMismatch, UsageError
from samplerpool.samplers.sync_sampler import SyncSampler


def input_of(files: RunFiles, source: str | None) -> str:
    """What the run's rows were read from.

    Raises:
        UsageError: it is not there any more.
    """
    if source is None:
        source = files.manifest.source
        if source == "-" or is_stream(source):
            if not files.spool.exists():
                raise UsageError(
                    f"The run read its input from {'standard input' if source == '-' else source}, which was kept only "
                    "while it ran. Give the same rows as a file: --input FILE."
                )
            source = str(files.spool)
    return source


def check_same_model(manifest: Manifest, connection: PoolConnection) -> None:
    """That a pool would answer as the run's did.

    Raises:
        FingerprintMismatch: it would not, and why.
    """
    now = replace(manifest, model=model_of(connection), version=version("samplerpool"))
    if changes := manifest.changes(now):
        raise FingerprintMismatch(
            f"This pool would not answer as the run's did. {'; '.join(changes)}. Use a pool with the run's model, or "
            "give --accept-changes to ask it nevertheless."
        )


def stream_of(
    files: RunFiles, number: int, sample: int, pool: str | None, connect: Path | None, *, accept_changes: bool
) -> Iterator[str]:
    """The text of one answer as its tokens come: those that the run gets, or will get, for it.

    Args:
        number: of the row.
        sample: which of its answers.

    Raises:
        UsageError: the input is gone, or has no such row.
        FingerprintMismatch: the pool runs something else.
        SamplerPoolError: the row cannot be answered.
    """
    manifest = files.manifest
    selection = Selection.noted(vars(manifest))
    with selection.open(input_of(files, None)) as data, SyncSampler.connect(connect or pool) as sampler:
        if not accept_changes:
            check_same_model(manifest, sampler.connection)
        row = next((row for row in selection.rows_at(data, [number]) if row.index == number), None)
        if row is None:
            raise UsageError(f"The input has no row {number}.")
        if row.error is not None:
            raise row.error
        yield from sampler.generate(
            row.messages,
            row.tools,
            template_options={**manifest.date_option, **row.template_options},
            **_params(manifest, row, sample),
        )


def _params(manifest: Manifest, row: Row, sample: int) -> Mapping[str, Any]:
    given = {name: value for name, value in manifest.params.items() if name != "num_return_sequences"}
    return request_params(given, row, sample, row_seed(manifest.run_seed, row.index, sample))
