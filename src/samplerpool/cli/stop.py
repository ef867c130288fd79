"""``samplerpool stop``: end a pool, and return when it is gone."""

from __future__ import annotations

from pathlib import Path

import click

from samplerpool.cli.options import chosen_pool, connect_option, drain_option, pool_argument
from samplerpool.cli.output import interruptible
from samplerpool.config.wording import plural
from samplerpool.errors import SamplerPoolError, UsageError
from samplerpool.wire.endpoint import ConnectionFile, running_pools

_HOW = {
    "stopped": "stopped",
    "terminated": "did not answer; ended by SIGTERM",
    "killed": "did not answer; killed",
    "gone": "had ended already",
}


@click.command("stop")
@pool_argument
@click.option("--all", "all_pools", is_flag=True, help="Stop every pool of yours.")
@connect_option
@drain_option(10.0)
def command(pool: str | None, all_pools: bool, connect: Path | None, timeout_s: float) -> int:
    """Stop POOL, or the one pool that runs, and wait until nothing of it is left."""
    if all_pools and (pool is not None or connect is not None):
        raise UsageError("Give either one pool or --all.")
    if all_pools:
        connections = running_pools()
        if not connections:
            click.echo("No pool is running.")
    else:
        connections = [chosen_pool(pool, connect)]
    failures = sum(not _stop(connection, timeout_s) for connection in connections)
    return 1 if failures else 0


def _stop(connection: ConnectionFile, timeout_s: float) -> bool:
    """Stop one pool and say how; one that resists must not keep the others."""
    from samplerpool.pool.launcher import stop_pool

    pool = connection.pool
    skip = f"samplerpool stop {pool} --timeout 0 does not wait for what it still runs"
    try:
        with interruptible(f"Pool {pool!r} goes on stopping without this command; {skip}."):
            how = stop_pool(connection, timeout_s)
    except SamplerPoolError as error:
        click.echo(f"Error: {error.message}", err=True)
        return False
    click.echo(f"Pool {pool!r} ({plural(len(connection.workers), 'worker')}) {_HOW[how]}.")
    return True
