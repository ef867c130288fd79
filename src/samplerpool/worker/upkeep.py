"""How the processes of a worker behave towards the machine: what they give up first, and when they stop to tidy up."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterable
from pathlib import Path

OOM_SCORE_ABOVE_SUPERVISOR = 200
"""Where memory runs out, the kernel is to take a worker, which is started again, and not the one that starts it."""

COLLECT_AFTER = (50_000, 20, 20)
"""When Python looks for reference cycles, see ``gc.set_threshold``; its own figures are 700, 10, 10."""


def offer_to_the_oom_killer() -> None:
    """Become a better choice than the supervisor, which had the same score before."""
    path = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        path.write_text(str(min(1000, int(path.read_text()) + OOM_SCORE_ABOVE_SUPERVISOR)))


def let_collections_be_rare() -> None:
    """Keep the search for reference cycles from stopping all threads: with tens of thousands of requests queued it
    takes half a second each time, and comes again and again. What loading left is not gone through any more."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def resident_bytes(pids: Iterable[int] = ()) -> int:
    """Memory that these processes hold now; without any, this one."""
    return sum(map(_resident_bytes, tuple(pids) or (os.getpid(),)))


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if pid == os.getpid() else 0
