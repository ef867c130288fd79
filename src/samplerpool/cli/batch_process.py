"""What a batch does to its own process, which is all its own: signals, limits, the search for reference cycles."""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from samplerpool.batch.runner import StopSwitch

DESCRIPTORS = 65_536
COLLECT_AFTER = 100_000
"""Objects that must have come without going before Python looks for cycles among them; its own figure is 700."""


@contextmanager
def stop_switch() -> Iterator[StopSwitch]:
    """Ctrl-C presses it once, and so does the end of the terminal; SIGTERM means at once. A third time, or when even
    that is not heard, interrupts."""
    switch = StopSwitch()
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        switch.press()
        if number == signal.SIGHUP:  # nobody is there to read, and writing would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
        if number == signal.SIGTERM:
            switch.end_at_once()
        if switch.pressed > 2:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield switch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def allow_descriptors() -> None:
    """Let this process open as many files as it may: a worker's socket takes two, and the usual limit is 1,024."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


@contextmanager
def rare_collection() -> Iterator[None]:
    """Let Python look for reference cycles rarely: rows make none, and going through those in flight over and over
    takes a fifth of the client's time. Only here, where the whole process is ours."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
