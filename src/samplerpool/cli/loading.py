"""What is shown while a private pool loads its model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from samplerpool.cli.output import note


@contextlib.contextmanager
def loading_display() -> Iterator[Callable[[str], None]]:
    """Gives a function that is told the steps of a start.

    On a terminal they share one line, with the time that it has taken so far, and that line is gone at the end; else
    each is a line. Warnings stay.
    """
    if not sys.stderr.isatty():
        yield note
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting a worker", total=None)

        def update(line: str) -> None:
            if "warning: " in line:
                console.print(line, markup=False)
            else:
                progress.update(task, description=line)

        yield update
