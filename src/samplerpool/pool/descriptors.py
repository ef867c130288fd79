"""Descriptors whose end of file means that their holder is gone: children of a plain fork must not keep them open."""

from __future__ import annotations

import contextlib
import os

_held: set[int] = set()


def death_pipe() -> tuple[int, int]:
    """A pipe (read end, write end) that ends when this process does, even if it was forked meanwhile.

    Give the read end to whoever watches; close the write end with ``close_held``.
    """
    read_end, write_end = os.pipe()
    _held.add(write_end)
    return read_end, write_end


def close_held(descriptor: int) -> None:
    """Close a descriptor that ``death_pipe`` made. Idempotent."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _close_all_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_all_in_child)
