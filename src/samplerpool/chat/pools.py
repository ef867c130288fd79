"""Which pool a chat attaches to where nobody has said: the only one, or the one that is chosen from a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from samplerpool.config.wording import duration_text, plural
from samplerpool.errors import PoolNotFound
from samplerpool.wire.endpoint import ConnectionFile, running_pools

Choose = Callable[[str, Sequence[str]], int | None]
"""Shows a title and a numbered list; returns the index chosen, or None where nobody chose."""


def chosen_pool(choose: Choose) -> str | None:
    """The name of the one that is chosen, where several pools run; else None, which stands for the only one.

    Raises:
        PoolNotFound: none was chosen.
    """
    pools = running_pools()
    if len(pools) < 2:
        return None
    now = time.time()
    index = choose(f"{len(pools)} pools are running:", [described(pool, now) for pool in pools])
    if index is None:
        raise PoolNotFound("No pool was chosen. --pool NAME says which one without a question.")
    return pools[index].pool


def described(pool: ConnectionFile, now: float) -> str:
    """One line of the list: its name, model, workers, and since when it runs.

    Args:
        now: seconds since the epoch.
    """
    state = "" if pool.state == "running" else f", {pool.state}"
    workers = plural(len(pool.workers), "worker")
    return f"{pool.pool}: {pool.model}, {workers}{state}, up {duration_text(now - pool.created)}"
