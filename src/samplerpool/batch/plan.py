"""How much work each worker gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """How many requests a worker holds.

    Args:
        size: never more than this, so that the rest is free for whoever is faster.
        refill_at: at this many or fewer it gets the next shard. It lies above the worker's batch, so that the batch
            stays full while the shard is on its way, and below ``size``, so that shards are more than single rows.
    """

    size: int
    refill_at: int


def window_for(max_batch: int) -> Window:
    """The smallest window that keeps a batch of ``max_batch`` requests full."""
    surplus = max(2, max_batch // 4)
    return Window(max_batch + surplus, max_batch + surplus // 2)


def hand_out(available: int, outstanding: Mapping[int, int], windows: Mapping[int, Window]) -> dict[int, int]:
    """Share the requests at hand out to the workers that have room: the emptiest first, up to an equal level.

    So a few rows are spread over all workers, and with many each window is filled.

    Args:
        available: requests that wait for a worker.
        outstanding: worker to the number of requests it holds.
        windows: worker to its window, for those that may get work.

    Returns:
        Worker to how many it gets (more than 0), in ascending order of workers.
    """
    room = {w: windows[w].size - outstanding[w] for w in sorted(windows) if outstanding[w] <= windows[w].refill_at}
    if available >= sum(room.values()):
        return room
    held = {w: outstanding[w] for w in room}
    level = _level(available, held, room)
    shares = {w: max(0, min(level - held[w], room[w])) for w in room}
    rest = available - sum(shares.values())
    for w in room:
        if rest and held[w] + shares[w] == level and shares[w] < room[w]:
            shares[w] += 1
            rest -= 1
    return {w: share for w, share in shares.items() if share}


def _level(available: int, held: Mapping[int, int], room: Mapping[int, int]) -> int:
    """The highest level to which all can be filled with what is available."""
    low, high = min(held.values()), max(held[w] + room[w] for w in room)
    while low < high:
        level = (low + high + 1) // 2
        if sum(max(0, min(level - held[w], room[w])) for w in room) <= available:
            low = level
        else:
            high = level - 1
    return low
