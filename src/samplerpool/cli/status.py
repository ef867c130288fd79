"""``samplerpool status``: the running pools and their workers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from samplerpool.cli.options import pool_argument
from samplerpool.cli.output import UNKNOWN, bytes_text, duration_text, number_text, plural
from samplerpool.wire.endpoint import find_pool, running_pools

if TYPE_CHECKING:
    from rich.table import Table

_STATE_STYLES = {"ready": "green", "restarting": "yellow", "stopping": "yellow", "died": "red", "failed": "red"}
_WITHOUT_PROCESS = ("restarting", "died", "failed")


@click.command("status")
@pool_argument
@click.option("--json", "as_json", is_flag=True, help="A list of pools for programs to read.")
def command(pool: str | None, as_json: bool) -> int:
    """Show the running pools, or just POOL, and what their workers do."""
    connections = [find_pool(pool)] if pool is not None else running_pools()
    if not connections:
        click.echo("[]" if as_json else "No pool is running. Start one with: samplerpool launch --detach")
        return 0
    from samplerpool.pool.launcher import describe_pool

    pools = [describe_pool(connection) for connection in connections]
    if as_json:
        click.echo(json.dumps(pools, indent=2))
    else:
        _show(pools)
    return 0


def _show(pools: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # lines for programs to read are never wrapped
    for number, pool in enumerate(pools):
        if number:
            console.print()
        console.print(_headline(pool), markup=False, soft_wrap=True)
        console.print(_table(pool["workers"]))
        for text in _remarks(pool):
            console.print(text, markup=False, soft_wrap=True)


def _headline(pool: dict[str, Any]) -> str:
    return (
        f"Pool {pool['pool']}: {pool['state']}, {pool['model'] or 'model not known yet'}, engine {pool['engine']}, "
        f"{plural(len(pool['workers']), 'worker')}, pid {pool['pid']}, up {duration_text(pool['uptime_s'])}"
    )


def _table(workers: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("worker", "pid", "device", "state", "running", "queued", "tokens/s", "memory", "uptime"):
        table.add_column(name, justify="left" if name in ("device", "state") else "right", no_wrap=True)
    for worker in workers:
        state = worker["state"]
        style = _STATE_STYLES.get(state)
        table.add_row(
            str(worker["index"]),
            str(worker["pid"]) if state not in _WITHOUT_PROCESS else UNKNOWN,
            worker["device"],
            f"[{style}]{state}[/]" if style else state,
            number_text(worker["running"]),
            number_text(worker["queued"]),
            number_text(worker["tokens_per_s"]),
            bytes_text(worker["memory_bytes"]),
            duration_text(worker["uptime_s"]),
        )
    return table


def _remarks(pool: dict[str, Any]) -> list[str]:
    remarks = [f"  {pool['problem']}"] if pool.get("problem") else []
    picked = sorted({worker["picked"] for worker in pool["workers"] if worker.get("picked")})
    remarks += [f"  {pool['engine']}, because {reason}" for reason in picked]
    for worker in pool["workers"]:
        reason = worker.get("problem") or worker.get("detail")
        if reason:
            remarks.append(f"  worker {worker['index']}: {reason}")
        if worker["state"] in _WITHOUT_PROCESS:
            remarks.append(f"  its log: samplerpool logs {pool['pool']} --worker {worker['index']}")
    return remarks
