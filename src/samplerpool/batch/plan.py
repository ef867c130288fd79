"""How much work each worker gets, and which of it another one should do as well. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FORGET = 0.98
"""What a worker's measured pace keeps of what was known at each answer: some 50 answers count."""

WORTHWHILE = 0.9
"""A request is taken over if that ends it within so much of the time that it has left."""


@dataclass(frozen=True, slots=True)
class Window:
    """How many requests a worker holds.

    Args:
        batch: as many it works on at a time, as far as its memory allows.
        size: never more than this, so that the rest is free for whoever is faster.
        refill_at: at this many or fewer it gets the next shard. It lies above the worker's batch, so that the batch
            stays full while the shard is on its way, and below ``size``, so that shards are more than single rows.
    """

    batch: int
    size: int
    refill_at: int


def window_for(max_batch: int) -> Window:
    """The smallest window that keeps a batch of ``max_batch`` requests full."""
    surplus = max(2, max_batch // 4)
    return Window(max_batch, max_batch + surplus, max_batch + surplus // 2)


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


@dataclass(slots=True)
class Speed:
    """How fast workers answer and how long answers are, as measured; what is held to be so of a request."""

    tokens: float = 0.0
    answers: int = 0
    _by_worker: dict[int, tuple[float, float]] = field(default_factory=dict)

    def note(self, worker: int, seconds: float, tokens: int) -> None:
        """An answer has come, so long after its request was sent."""
        before_s, before = self._by_worker.get(worker, (0.0, 0.0))
        self._by_worker[worker] = before_s * FORGET + seconds, before * FORGET + tokens
        self.tokens += tokens
        self.answers += 1

    def pace_s(self, worker: int) -> float | None:
        """Seconds a token of one request, the wait before it included; None while nothing is known."""
        seconds, tokens = self._by_worker.get(worker, (0.0, 0.0))
        return seconds / tokens if tokens else None

    def expect(self, worker: int, held: Sequence[Asked], batch: int, now_s: float) -> list[Expected]:
        """What is to be expected of the requests that a worker holds, in the order in which they were sent.

        An answer whose length is not known is held to be of the usual length, or to be half done if it is longer than
        that already: lengths have long tails, and what has gone on for long goes on for long.

        Args:
            batch: as many of them are running; the others wait their turn.
        """
        pace_s = self.pace_s(worker)
        if pace_s is None:
            return []
        usual = self.tokens / self.answers
        expected: list[Expected] = []
        for place, asked in enumerate(held):
            waiting = place - batch + 1  # turns, if any
            said = 0.0 if waiting > 0 else (now_s - asked.sent_at_s) / pace_s
            tokens = max(usual, 2 * said) if asked.tokens is None else max(float(asked.tokens), said + 1)
            if asked.most is not None:
                tokens = min(tokens, max(float(asked.most), said + 1))
            turns_s = max(0, waiting) * usual * pace_s / batch
            expected.append(Expected(place, worker, turns_s + (tokens - said) * pace_s, tokens))
        return expected


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as far as the plan needs to know it.

    Args:
        tokens: of its answer, where that is known.
        most: limit of that.
    """

    sent_at_s: float
    tokens: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What is held to be so of a request.

    Args:
        place: among those that ``worker`` holds.
        left_s: until its answer comes from there.
        tokens: of its whole answer.
    """

    place: int
    worker: int
    left_s: float
    tokens: float


def take_over(held: Sequence[Expected], idle: Mapping[int, int], speed: Speed) -> list[tuple[Expected, int]]:
    """Which requests, when none waits any more, should be answered by an idle worker as well, for the first to win.

    Args:
        held: requests that just one worker holds.
        idle: worker to the number of requests that it could work on beside those that it has.

    Returns:
        Requests, those that would come last first, each with the worker that ends it soonest; only where that is
        sooner than where it is now.
    """
    fastest = sorted((pace_s, worker) for worker in idle if (pace_s := speed.pace_s(worker)) is not None)
    free = dict(idle)
    taken: list[tuple[Expected, int]] = []
    for one in sorted(held, key=lambda one: one.left_s, reverse=True):
        for pace_s, worker in fastest:
            if pace_s * one.tokens >= WORTHWHILE * one.left_s:
                break
            if free[worker] > 0 and worker != one.worker:
                free[worker] -= 1
                taken.append((one, worker))
                break
    return taken
