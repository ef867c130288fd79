"""How a batch run looks: live bars on a terminal, a plain line now and then elsewhere, and the summary at the end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from samplerpool.batch.problems import ErrorKind, Rows
from samplerpool.batch.tally import BatchSummary, Progress, WorkerTally, duration
from samplerpool.config.wording import plural

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_INTERVAL_S = 5.0
MAX_SENTENCE = 300
"""Characters of an error's sentence in a summary; the row has all of them."""


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
        with _even_if_the_terminal_is_gone():
            self._open.close()

    def update(self, progress: Progress) -> None:
        """Redraw."""
        with _even_if_the_terminal_is_gone():
            self._live.update(_drawing(progress), refresh=True)

    def say(self, text: str) -> None:
        """A line above the bars."""
        with _even_if_the_terminal_is_gone():
            self._console.print(text, markup=False)


@contextmanager
def _even_if_the_terminal_is_gone() -> Iterator[None]:
    """It was closed a moment ago; the signal that says so ends the run as it should."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _drawing(progress: Progress) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.total, completed=progress.done, width=24, pulse=progress.total is None)
    head.add_row(bar, Text(_live_line(progress), no_wrap=True))
    rates = f"  out {_rate(progress.tokens_per_s)}, in {_rate(progress.prompt_tokens_per_s)}"
    rates += f"; {progress.completion_tokens:,} tokens in {duration(progress.elapsed_s)}"
    workers = Table.grid(padding=(0, 2))
    for worker in progress.workers:
        style = _STYLES.get(worker.state, "")
        state = f"{worker.running} running" if worker.up else _NAMES[worker.state]
        figures = (f"{worker.rows:,} rows", f"{worker.tokens:,} tokens", f"{worker.utilisation:.0%} full", state)
        workers.add_row(
            Text(f"  worker {worker.index}", style),
            *(Text(text, style, justify="right", no_wrap=True) for text in figures),
            Text(_restarts(worker.restarts) if worker.restarts else "", no_wrap=True),
        )
    trouble = [Text(f"  {text}", "red", no_wrap=True)] if (text := _trouble(progress)) else []
    return Group(head, Text(rates, no_wrap=True), *trouble, workers)


_NAMES = {"coming": "coming back", "gone": "down"}
_STYLES = {"coming": "yellow", "gone": "red"}


def _live_line(progress: Progress) -> str:
    """What fits beside the bar on a narrow terminal."""
    parts = [_rows(progress)]
    if progress.total:
        parts.append(f"{100 * progress.done // progress.total}%")
    if progress.left_s is not None:
        parts.append(f"about {duration(progress.left_s)} left")
    return ", ".join(parts)


def plain_line(progress: Progress) -> str:
    """All figures in one line."""
    parts = [
        _rows(progress),
        f"{progress.completion_tokens:,} tokens",
        f"out {_rate(progress.tokens_per_s)}",
        f"in {_rate(progress.prompt_tokens_per_s)}",
        f"{duration(progress.elapsed_s)} so far",
    ]
    if progress.left_s is not None:
        parts.append(f"about {duration(progress.left_s)} left")
    if trouble := _trouble(progress):
        parts.append(trouble)
    workers = (_worker(w) + f", {w.utilisation:.0%} full" for w in progress.workers)
    return " | ".join([", ".join(parts), *workers])


def _trouble(progress: Progress) -> str:
    """Errors, deaths and restarts, where there are any."""
    parts = [plural(progress.errors, "error row")] if progress.errors else []
    if progress.deaths:
        suspects = f" ({progress.suspects:,} rows are suspected)" if progress.suspects else ""
        parts.append(_deaths(progress.deaths) + suspects)
    if progress.restarts:
        parts.append(_restarts(progress.restarts))
    return ", ".join(parts)


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f} tokens/s"


def _restarts(count: int) -> str:
    return plural(count, "restart")


def _deaths(count: int) -> str:
    return f"{count:,} worker death{'s' if count > 1 else ''}"


def _rows(progress: Progress) -> str:
    return f"{progress.done:,} rows" if progress.total is None else f"{progress.done:,}/{progress.total:,} rows"


def _worker(worker: WorkerTally) -> str:
    down = "" if worker.up else f" ({_NAMES[worker.state]})"
    return f"worker {worker.index}: {worker.rows:,} rows, {worker.tokens:,} tokens{down}"


def error_line(kind: ErrorKind) -> str:
    """One kind of error: how often, where first, and what it says there."""
    sentence = " ".join(kind.sentence.split())
    shown = sentence if len(sentence) <= MAX_SENTENCE else sentence[: MAX_SENTENCE - 3] + "..."
    return f"  {kind.code}: {rows_text(kind.rows)}: {shown}"


def rows_text(rows: Rows) -> str:
    """``3 rows (5, 8, 12)``."""
    numbers = ", ".join(map(str, rows.first)) + (", ..." if rows.count > len(rows.first) else "")
    return f"1 row ({numbers})" if rows.count == 1 else f"{rows.count:,} rows ({numbers})"


def summary_lines(summary: BatchSummary) -> list[str]:
    """What is said at the end."""
    answered = summary.rows - summary.error_rows
    lines = [f"{summary.rows:,} rows in {duration(summary.elapsed_s)}: {answered:,} answered"]
    if summary.error_rows:
        lines[0] += f", {summary.error_rows:,} with errors"
        lines += map(error_line, summary.kinds)
    lines.append(
        f"{summary.prompt_tokens:,} prompt tokens, {summary.completion_tokens:,} completion tokens, "
        f"{summary.tokens_per_s:,.0f} tokens/s"
    )
    lines += [_worker(worker) for worker in summary.workers]
    if summary.deaths:
        lines.append(f"{_deaths(summary.deaths)}; what was being answered there was run again")
    lines.append(f"run seed {summary.run_seed} (--seed {summary.run_seed} draws the same again)")
    return lines
