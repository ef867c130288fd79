"""Pools for samplers: those that run, and private ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.wire.endpoint import ConnectionFile, find_pool

if TYPE_CHECKING:
    from samplerpool.pool.launcher import LaunchedPool


def find_connection(pool: str | Path | None) -> ConnectionFile:
    """The connection file of a pool, by name, by path, or the only one.

    Raises:
        PoolNotFound, TransportError
    """
    if isinstance(pool, Path) or (pool is not None and ("/" in pool or pool.endswith(".json"))):
        return ConnectionFile.read(Path(pool))
    return find_pool(pool)


def launch_private(
    model: str | None,
    workers: int | str,
    model_args: ModelArguments | None,
    sample_args: SampleArguments | None,
    on_progress: Callable[[str], None] | None,
    pool: Mapping[str, Any],
) -> LaunchedPool:
    """Start a pool that ends with this process; see ``SyncSampler.launch``.

    Raises:
        InvalidParameter, ModelNotFound, StartFailed, PoolNameTaken
    """
    from samplerpool.pool.launcher import launch_pool

    arguments = model_args or ModelArguments()
    if model is not None:
        arguments = ModelArguments(**{**vars(arguments), "model_name_or_path": model})
    return launch_pool(
        arguments,
        sample_args or SampleArguments(),
        PoolArguments(workers=workers, **pool),
        detached=False,
        private=True,
        on_progress=on_progress,
    )
