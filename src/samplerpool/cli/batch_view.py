"""How a batch run looks: live bars on a terminal, a plain line now and then elsewhere, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from samplerpool.batch.tally import BatchSummary, Progress

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_INTERVAL_S = 5.0


class View(Protocol):
    """Shows a run while it goes."""

    def update(self, progress: Progress) -> None:
        """Show the figures of this moment."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_for(stream: TextIO) -> View:
    """The view that fits a stream."""
    return LiveView(stream) if stream.isatty() else PlainView(stream)


class PlainView:
    """For logs and pipes: a line every few seconds.

    Args:
        clock: seconds, for the distance between lines.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._due_s = clock() + PLAIN_INTERVAL_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, progress: Progress) -> None:
        """Write a line, if it is time for one."""
        now_s = self._clock()
        if now_s >= self._due_s:
            self._due_s = now_s + PLAIN_INTERVAL_S
            self.say(plain_line(progress))

    def say(self, text: str) -> None:
        """Write a line now."""
        print(text, file=self._stream, flush=True)


class LiveView:
    """For a terminal: a bar and a line for each worker, redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._live)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def update(self, progress: Progress) -> None:
        """Redraw."""
        self._live.update(_drawing(progress), refresh=True)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False)


def _drawing(progress: Progress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.total, completed=progress.done, width=24, pulse=progress.total is None)
    head.add_row(bar, Text(_live_line(progress), no_wrap=True))
    workers = Table.grid(padding=(0, 2))
    for worker in progress.workers:
        state = f"{worker.running} running" if worker.up else "down"
        style = "" if worker.up else "red"
        workers.add_row(
            Text(f"  worker {worker.index}", style),
            *(Text(t, style, justify="right") for t in (f"{worker.rows:,} rows", f"{worker.tokens:,} tokens", state)),
        )
    trouble = [Text(f"  {_trouble(progress)}", "red", no_wrap=True)] if progress.deaths else []
    return Group(head, workers, *trouble)


def _live_line(progress: Progress) -> str:
    """What fits beside the bar on a narrow terminal."""
    parts = [_rows(progress), f"{progress.tokens_per_s:,.0f} tokens/s"]
    if progress.errors:
        parts.append(f"{progress.errors:,} errors")
    parts.append(duration(progress.elapsed_s) if progress.left_s is None else f"{duration(progress.left_s)} left")
    return ", ".join(parts)


def plain_line(progress: Progress) -> str:
    """All figures in one line."""
    parts = [
        _rows(progress),
        f"{progress.completion_tokens:,} tokens",
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"{duration(progress.elapsed_s)} so far",
    ]
    if progress.errors:
        parts.insert(1, f"{progress.errors:,} with errors")
    if progress.left_s is not None:
        parts.append(f"about {duration(progress.left_s)} left")
    if progress.deaths:
        parts.append(_trouble(progress))
    workers = (_worker(w.index, w.rows, w.tokens, w.up) for w in progress.workers)
    return " | ".join([", ".join(parts), *workers])


def _trouble(progress: Progress) -> str:
    suspects = f" ({progress.suspects:,} rows are suspected)" if progress.suspects else ""
    return _deaths(progress.deaths) + suspects


def _deaths(count: int) -> str:
    return f"{count:,} worker death{'s' if count > 1 else ''}"


def _rows(progress: Progress) -> str:
    return f"{progress.done:,} rows" if progress.total is None else f"{progress.done:,}/{progress.total:,} rows"


def _worker(index: int, rows: int, tokens: int, up: bool) -> str:
    return f"worker {index}: {rows:,} rows, {tokens:,} tokens" + ("" if up else " (down)")


def duration(seconds: float) -> str:
    """A time for people: 4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def summary_lines(summary: BatchSummary) -> list[str]:
    """What is said at the end."""
    answered = summary.rows - summary.error_rows
    lines = [f"{summary.rows:,} rows in {duration(summary.elapsed_s)}: {answered:,} answered"]
    if summary.error_rows:
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.errors.items()))
        lines[0] += f", {summary.error_rows:,} with errors ({kinds})"
    lines.append(
        f"{summary.prompt_tokens:,} prompt tokens, {summary.completion_tokens:,} completion tokens, "
        f"{summary.tokens_per_s:,.0f} tokens/s"
    )
    lines += [_worker(w.index, w.rows, w.tokens, w.up) for w in summary.workers]
    if summary.deaths:
        lines.append(f"{_deaths(summary.deaths)}; what was being answered there was run again")
    lines.append(f"run seed {summary.run_seed} (--seed {summary.run_seed} draws the same again)")
    return lines
