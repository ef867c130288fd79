"""``samplerpool scale``: more or fewer workers for a running pool."""

from __future__ import annotations

from pathlib import Path

import click

from samplerpool.cli.options import chosen_pool, connect_option, drain_option, pool_argument
from samplerpool.cli.output import interruptible, note, plural


@click.command("scale")
@pool_argument
@click.argument("workers", type=click.IntRange(1, 1024), metavar="N")
@connect_option
@drain_option(60.0)
def command(pool: str | None, workers: int, connect: Path | None, timeout_s: float) -> int:
    """Have N workers in POOL, or in the one pool that runs.

    Workers with the highest numbers go first, after finishing what they run; those that stay keep the cores that they
    have until they are restarted.
    """
    from samplerpool.pool.change import scale_workers

    connection = chosen_pool(pool, connect)
    name = connection.pool
    with interruptible(f"Pool {name!r} goes on without this command; samplerpool status {name} shows how far it is."):
        before, now = scale_workers(connection, workers, timeout_s, note)
    click.echo(f"Pool {name!r} had {plural(before, 'worker')} and has {now}.")
    return 0
