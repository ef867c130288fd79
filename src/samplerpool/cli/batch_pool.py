"""Which pool a batch runs on: one that is there, or a private one that ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from samplerpool.cli.batch_process import allow_descriptors
from samplerpool.cli.loading import loading_display
from samplerpool.cli.options import arguments_from, check_unheard, chosen_pool
from samplerpool.client.connection import PoolConnection
from samplerpool.errors import UsageError
from samplerpool.wire.endpoint import ConnectionFile


def check_choice(
    context: click.Context, pool: str | None, connect: Path | None, model: str | None, model_settings: dict[str, Any]
) -> None:
    """That one pool is meant, and that what was typed is for it.

    Raises:
        UsageError: ``--pool``, ``--connect`` and ``--model`` contradict each other, or options are for another one.
    """
    chosen = [n for n, v in (("--pool", pool), ("--connect", connect), ("--model", model)) if v is not None]
    if len(chosen) > 1:
        raise UsageError(f"Give just one of {' and '.join(chosen)}: they name different pools.")
    check_unheard(context, model_settings if model is None else ())


@contextmanager
def connected(
    pool: str | None,
    connect: Path | None,
    model: str | None,
    model_settings: dict[str, Any],
    *,
    detached: bool = False,
) -> Iterator[PoolConnection]:
    """A connection to the pool of that name or file, to the only one that runs, or to one started for it.

    Args:
        model: of a private pool, which ends with the context; None for one that runs.
        detached: a private pool must not depend on the user's being logged in.
        model_settings: what ``model_options`` gave the command, for the private pool.

    Raises:
        PoolNotFound, TransportError: as for ``chosen_pool``.
        StartFailed: the private pool did not start.
    """
    allow_descriptors()
    if model is None:
        with PoolConnection.attach(chosen_pool(pool, connect)) as connection:
            yield connection
        return
    with _private_pool(model, model_settings, detached) as file, PoolConnection.attach(file) as connection:
        yield connection


@contextmanager
def _private_pool(model: str, settings: dict[str, Any], detached: bool) -> Iterator[ConnectionFile]:
    from samplerpool.pool.launcher import launch_pool

    with loading_display() as on_progress:
        launched = launch_pool(
            *arguments_from(model, None, {}, settings), detached=detached, private=True, on_progress=on_progress
        )
    try:
        yield launched.connection
    finally:
        launched.stop(0.0)
