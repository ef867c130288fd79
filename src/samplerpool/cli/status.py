"""``samplerpool status``: the running pools and their workers."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import click

from samplerpool.cli.options import chosen_pool, connect_option, pool_argument
from samplerpool.cli.output import note
from samplerpool.cli.status_view import PlainView, Report, console_for, drawing, live_view
from samplerpool.errors import PoolNotFound, UsageError
from samplerpool.wire.endpoint import ConnectionFile, distrusted, running_pools

WATCH_INTERVAL_S = 1.0
WATCH_TIMEOUT_S = 1.0
"""For the answers of supervisors and workers while watching; the view shall not stand still for one that hangs."""


@click.command("status")
@pool_argument
@connect_option
@click.option("--json", "as_json", is_flag=True, help="A list of pools for programs to read.")
@click.option("--watch", is_flag=True, help="Go on and show changes, until Ctrl-C.")
def command(pool: str | None, connect: Path | None, as_json: bool, watch: bool) -> int:
    """Show the running pools, or just POOL, and what their workers do."""
    if watch and as_json:
        raise UsageError("Give either --watch or --json; for programs, call status --json again and again.")
    if watch:
        return _watch(pool, connect)
    named = pool is not None or connect is not None
    for problem in [] if named else distrusted():
        note(problem)
    pools = _reports([chosen_pool(pool, connect)] if named else running_pools())
    if as_json:
        click.echo(json.dumps(pools, indent=2))
    else:
        console_for(sys.stdout).print(drawing(pools), soft_wrap=True)
    return 0


def _reports(connections: list[ConnectionFile], timeout_s: float = 2.0) -> list[Report]:
    if not connections:
        return []
    from samplerpool.pool.report import describe_pool

    return [describe_pool(connection, timeout_s) for connection in connections]


def _watch(pool: str | None, connect: Path | None) -> int:
    """Show the pools as they come and go; one that was named need not run yet, or any more."""
    view = live_view(sys.stdout) if sys.stdout.isatty() else contextlib.nullcontext(PlainView(sys.stdout).show)
    with contextlib.suppress(KeyboardInterrupt), view as show:
        while True:
            started = time.monotonic()
            show(_reports(_present(pool, connect), WATCH_TIMEOUT_S))
            time.sleep(max(0.1, WATCH_INTERVAL_S - (time.monotonic() - started)))
    return 0


def _present(pool: str | None, connect: Path | None) -> list[ConnectionFile]:
    if pool is None and connect is None:
        return running_pools()
    with contextlib.suppress(PoolNotFound):
        return [chosen_pool(pool, connect)]
    return []
