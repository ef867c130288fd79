"""``samplerpool restart``: new worker processes for a running pool, one after the other."""

from __future__ import annotations

from pathlib import Path

import click

from samplerpool.cli.options import chosen_pool, connect_option, drain_option, pool_argument
from samplerpool.cli.output import interruptible, note
from samplerpool.config.wording import plural


@click.command("restart")
@pool_argument
@click.option("--worker", type=click.IntRange(0), metavar="N", help="Only this worker.")
@connect_option
@drain_option(60.0)
def command(pool: str | None, worker: int | None, connect: Path | None, timeout_s: float) -> int:
    """Replace the workers of POOL, or of the one pool that runs, by new processes.

    One after the other finishes what it runs and ends, and the next one's turn comes when the new process is ready.
    Requests meanwhile go to the other workers, or wait where there is none. A worker that had failed is started again.
    """
    from samplerpool.pool.change import restart_workers

    connection = chosen_pool(pool, connect)
    name = connection.pool
    with interruptible(f"Pool {name!r} goes on without this command; samplerpool status {name} shows how far it is."):
        replaced = restart_workers(connection, worker, timeout_s, note)
    click.echo(f"Pool {name!r}: {plural(len(replaced), 'worker')} replaced.")
    return 0
