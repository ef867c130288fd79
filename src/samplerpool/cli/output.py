"""What is said on a terminal beside the output proper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click


def note(text: str) -> None:
    """Say something about the run, apart from the output proper: on stderr."""
    click.echo(text, err=True)


@contextlib.contextmanager
def interruptible(text: str) -> Iterator[None]:
    """Say what becomes of something that another process does if Ctrl-C ends the waiting for it."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"\n{text}")
        raise
