"""The course of a run, out of its history: rates and workers over the time that it ran. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from samplerpool.batch.history import START, Point, Session

SPANS = 120
"""Parts of the time at most."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the time that a run went on, in seconds of running time, and what was done a second meanwhile.

    Args:
        filled: of each worker, how full its batch was, from 0 to 1.
    """

    begin_s: float
    end_s: float
    rows: float
    prompt_tokens: float
    completion_tokens: float
    filled: dict[int, float]


@dataclass(frozen=True, slots=True)
class Pause:
    """Between two processes of a run. ``at_s``: of running time; ``seconds``: how long it lasted."""

    at_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerUse:
    """A worker's part in the whole run.

    Args:
        filled: how full its batch was on average, from 0 to 1, over the time in which it was known.
    """

    index: int
    rows: int
    completion_tokens: int
    filled: float
    restarts: int


def running_s(sessions: Sequence[Session]) -> float:
    """How long the processes of a run went on, together."""
    return sum(session.elapsed_s for session in sessions)


def spans(sessions: Sequence[Session], most: int = SPANS) -> list[Span]:
    """The run in parts of about the same length, as fine as it was noted."""
    least_s = running_s(sessions) / most
    found: list[Span] = []
    offset_s = 0.0
    for session in sessions:
        for before, after in pairwise([START, *_apart(session.points, least_s)]):
            found.append(_span(before, after, offset_s))
        offset_s += session.elapsed_s
    return found


def _apart(points: Sequence[Point], least_s: float) -> Iterator[Point]:
    """Points between which there is enough time, and the last one."""
    before_s = 0.0
    for point in points:
        rest_s = points[-1].elapsed_s - point.elapsed_s
        if point is points[-1] or (point.elapsed_s - before_s >= least_s and rest_s >= least_s / 2):
            if point.elapsed_s > before_s:
                yield point
            before_s = point.elapsed_s


def _span(before: Point, after: Point, offset_s: float) -> Span:
    passed_s = after.elapsed_s - before.elapsed_s
    earlier = {share.index: share.filled_s for share in before.workers}
    rate: Callable[[float, float], float] = lambda now, then: max(0.0, now - then) / passed_s  # noqa: E731
    return Span(
        offset_s + before.elapsed_s,
        offset_s + after.elapsed_s,
        rate(after.rows, before.rows),
        rate(after.prompt_tokens, before.prompt_tokens),
        rate(after.completion_tokens, before.completion_tokens),
        {s.index: min(1.0, rate(s.filled_s, earlier.get(s.index, 0.0))) for s in after.workers},
    )


def pauses(sessions: Sequence[Session]) -> list[Pause]:
    """Where one process had ended and the next had not begun."""
    found: list[Pause] = []
    at_s = 0.0
    for before, after in pairwise(sessions):
        at_s += before.elapsed_s
        found.append(Pause(at_s, max(0.0, after.began - before.began - before.elapsed_s)))
    return found


def worker_uses(sessions: Sequence[Session]) -> list[WorkerUse]:
    """What each worker did in all processes of the run."""
    ends = [session.points[-1] for session in sessions if session.points]
    indexes = sorted({share.index for end in ends for share in end.workers})
    return [_use(index, ends) for index in indexes]


def _use(index: int, ends: Sequence[Point]) -> WorkerUse:
    parts = [(end.elapsed_s, share) for end in ends for share in end.workers if share.index == index]
    there_s = sum(elapsed_s for elapsed_s, _ in parts)
    shares = [share for _, share in parts]
    return WorkerUse(
        index,
        sum(share.rows for share in shares),
        sum(share.completion_tokens for share in shares),
        min(1.0, sum(share.filled_s for share in shares) / there_s) if there_s else 0.0,
        sum(share.restarts for share in shares),
    )
