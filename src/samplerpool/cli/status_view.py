"""How the state of pools looks: tables on a terminal, and a line a change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from samplerpool.config.wording import UNKNOWN, bytes_text, duration_text, number_text, plural

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Report = Mapping[str, Any]
"""A pool, as ``pool.report.describe_pool`` gives it."""

NOTHING_RUNS = "No pool is running. Start one with: samplerpool launch --detach"
STALL_S = 5.0
"""From here on, a worker that makes no progress is worth a remark."""
_STATE_STYLES = {"ready": "green", "restarting": "yellow", "stopping": "yellow", "died": "red", "failed": "red"}
_WITHOUT_PROCESS = ("restarting", "died", "failed")
_WIDTH_ELSEWHERE = 200


def console_for(stream: TextIO) -> Console:
    """A console on a stream; lines for programs to read are never wrapped."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_ELSEWHERE
    return console


def drawing(pools: Sequence[Report]) -> RenderableType:
    """All pools, each with its workers."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for pool in pools:
        if parts:
            parts.append(Text())
        parts += [Text(_headline(pool)), _table(pool["workers"]), *map(Text, remarks(pool))]
    return Group(*parts) if parts else Text(NOTHING_RUNS)


def _headline(pool: Report) -> str:
    return (
        f"Pool {pool['pool']}: {pool['state']}, {pool['model'] or 'model not known yet'}, engine {pool['engine']}, "
        f"{plural(len(pool['workers']), 'worker')}, pid {pool['pid']}, up {duration_text(pool['uptime_s'])}"
    )


def _table(workers: Sequence[Report]) -> Table:
    from rich.table import Table

    names = ["worker", "pid", "device", "state", "running", "queued", "tokens/s", "memory", "uptime"]
    if any(worker["restarts"] for worker in workers):
        names.append("restarts")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in ("device", "state") else "right", no_wrap=True)
    for worker in workers:
        table.add_row(*_cells(worker)[: len(names)])
    return table


def _cells(worker: Report) -> list[str]:
    state = worker["state"]
    style = _STATE_STYLES.get(state)
    return [
        str(worker["index"]),
        str(worker["pid"]) if worker["pid"] and state not in _WITHOUT_PROCESS else UNKNOWN,
        f"{worker['device']} on {worker['node']}" if worker["node"] else worker["device"],
        f"[{style}]{state}[/]" if style else state,
        number_text(worker["running"]),
        number_text(worker["queued"]),
        number_text(worker["tokens_per_s"]),
        bytes_text(worker["memory_bytes"]),
        duration_text(worker["uptime_s"]),
        number_text(worker["restarts"]),
    ]


def remarks(pool: Report) -> list[str]:
    """Sentences below a pool's table: what is out of the ordinary."""
    lines = [f"  {pool['problem']}"] if pool["problem"] else []
    if pool["replacing"]:
        lines.append(f"  being replaced or removed: {plural(len(pool['replacing']), 'worker')}")
    adapters = list(dict.fromkeys(name for worker in pool["workers"] for name in worker["adapters"] or ()))
    if adapters:
        lines.append(f"  adapters: {', '.join(adapters)}")
    picked = sorted({worker["picked"] for worker in pool["workers"] if worker["picked"]})
    lines += [f"  {pool['engine']}, because {reason}" for reason in picked]
    details = [worker["details"] for worker in pool["workers"] if "split_mode" in worker["details"]]
    splits = sorted({(each["split_mode"], each["devices"]) for each in details})
    lines += [f"  each worker's model lies on {devices} devices, split mode {mode}" for mode, devices in splits]
    for worker in pool["workers"]:
        lines += [f"  worker {worker['index']}: {text}" for text in _worker_remarks(worker)]
        if worker["state"] in _WITHOUT_PROCESS:
            lines.append(f"  its log: samplerpool logs {pool['pool']} --worker {worker['index']}")
    return lines


def _worker_remarks(worker: Report) -> list[str]:
    texts = [text for text in (worker["problem"], worker["detail"]) if text]
    if (worker["stalled_s"] or 0.0) >= STALL_S:
        texts.append(f"no progress for {duration_text(worker['stalled_s'])}")
    if worker["hangs"]:
        texts.append(f"hung {'once' if worker['hangs'] == 1 else plural(worker['hangs'], 'time')}")
    if shortages := worker["details"].get("out_of_memory"):
        lowered = worker["details"].get("batch_lowered_to")
        limit = f"; at most {plural(lowered, 'request')} at a time for now" if lowered else ""
        texts.append(f"ran out of memory in {plural(shortages, 'step')}{limit}")
    return texts


def plain_line(pool: Report) -> str:
    """A pool in one line, without what changes all the time."""
    parts = [f"{pool['pool']}: {pool['state']}"]
    if pool["problem"]:
        parts[0] += f" ({pool['problem']})"
    for worker in pool["workers"]:
        text = f"worker {worker['index']} {worker['state']}"
        if worker["running"] is not None:
            rate = number_text(worker["tokens_per_s"])
            text += f", {worker['running']} running, {worker['queued']} queued, {rate} tokens/s"
        parts.append("; ".join([text, *_worker_remarks(worker)]))
    return " | ".join(parts)


Show = Callable[[Sequence[Report]], None]


@contextmanager
def live_view(stream: TextIO) -> Iterator[Show]:
    """For a terminal: redrawn in place."""
    from rich.live import Live

    with Live(console=console_for(stream), auto_refresh=False) as live:
        yield lambda pools: live.update(drawing(pools), refresh=True)


class PlainView:
    """For logs and pipes: a line for each pool that has changed.

    Args:
        clock: the time that a line begins with.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], str] = lambda: time.strftime("%H:%M:%S")) -> None:
        self._stream = stream
        self._clock = clock
        self._shown: dict[str, str] | None = None

    def show(self, pools: Sequence[Report]) -> None:
        """Write what is new."""
        before = self._shown
        now = {str(pool["pool"]): plain_line(pool) for pool in pools}
        lines = [line for name, line in now.items() if before is None or before.get(name) != line]
        lines += [f"{name}: not running" for name in before or () if name not in now]
        if before is None and not now:
            lines.append("no pool is running")
        self._shown = now
        for line in lines:
            print(f"{self._clock()} {line}", file=self._stream, flush=True)
