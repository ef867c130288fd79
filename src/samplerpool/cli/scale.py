"""``samplerpool scale``: more or fewer workers for a running pool."""

from __future__ import annotations

from pathlib import Path

import click

from samplerpool.cli.options import checked_pool_name, chosen_pool, connect_option, drain_option
from samplerpool.cli.output import interruptible, note
from samplerpool.config.wording import plural

MOST_WORKERS = 1024


def _pool_and_number(
    context: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> tuple[str | None, int]:
    """The words ``[POOL] N``: click by itself gives the first to the argument that may be missing."""
    if len(words) > 2:
        raise click.BadParameter("Give at most a pool's name, and how many workers it is to have.")
    *names, number = words
    pool = checked_pool_name(context, parameter, names[0]) if names else None
    return pool, click.IntRange(1, MOST_WORKERS)(number, parameter, context)


@click.command("scale")
@click.argument("pool_and_number", nargs=-1, required=True, metavar="[POOL] N", callback=_pool_and_number)
@connect_option
@drain_option(60.0)
def command(pool_and_number: tuple[str | None, int], connect: Path | None, timeout_s: float) -> int:
    """Have N workers in POOL, or in the one pool that runs.

    Workers with the highest numbers go first, after finishing what they run; those that stay keep the cores that they
    have until they are restarted.
    """
    from samplerpool.pool.change import scale_workers

    pool, workers = pool_and_number
    connection = chosen_pool(pool, connect)
    name = connection.pool
    with interruptible(f"Pool {name!r} goes on without this command; samplerpool status {name} shows how far it is."):
        before, now = scale_workers(connection, workers, timeout_s, note)
    click.echo(f"Pool {name!r} had {plural(before, 'worker')} and has {now}.")
    return 0
