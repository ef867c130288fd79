"""Messages from a terminal that can do nothing but lines (``TERM=dumb``, an editor's shell): the system edits them."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

BURST_S = 0.05
"""Seconds within which the next line of a paste comes; nobody types one so fast."""


def joined_lines(next_line: Callable[[], str], more_at_once: Callable[[], bool]) -> str:
    """One message: a line, with those that a backslash at its end or a paste joins to it.

    Args:
        next_line: the next line with its end; empty at the end of the input.
        more_at_once: whether a further line has come together with the last one.

    Raises:
        EOFError: there is none.
    """
    lines = [next_line()]
    if not lines[0]:
        raise EOFError
    while lines[-1]:
        line = lines[-1].removesuffix("\n")
        if line.endswith("\\"):
            lines[-1] = f"{line[:-1]}\n"
        elif not more_at_once():
            break
        lines.append(next_line())
    return "".join(lines).removesuffix("\n")


def line_reader(descriptor: int, encoding: str, say: Callable[[str], None], prompt: str) -> Callable[[str], str]:
    """A function that reads one message from a terminal, as ``chat.terminal`` has it.

    Args:
        descriptor: of the terminal; nothing of it may be buffered elsewhere.
        say: writes the prompt.
    """

    def next_line() -> str:
        return os.read(descriptor, 65536).decode(encoding, "replace")  # a terminal gives one line at a time

    def more_at_once() -> bool:
        return bool(select.select([descriptor], [], [], BURST_S)[0])

    def read(default: str) -> str:
        say(f"{default}\n{prompt}" if default else prompt)  # what is to be edited can only be shown here
        return joined_lines(next_line, more_at_once)

    return read
