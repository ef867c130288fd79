"""How a run went over time, in a file beside its output, for the report of the run.

``FILE.history.jsonl`` has a line for each process of the run, and behind it one for each moment that was noted, with
what had been done until then. As the figures only grow, a moment that is left out costs detail and nothing else: when
there are too many, every second one or so is, and from then on they are noted more rarely.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from samplerpool.batch.tally import Progress

FORMAT = 1
HISTORY_SUFFIX = ".history.jsonl"
MOST_POINTS = 2000
MOST_SESSIONS = 100
"""Of a run that was begun more often, the last ones are kept."""
INTERVAL_S = 1.0


def history_path(output: Path) -> Path:
    """Where the file of an output's run is."""
    return output.with_name(output.name + HISTORY_SUFFIX)


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker had done at a moment.

    Args:
        filled_s: seconds, each times how full its batch was then (0 to 1).
    """

    index: int
    rows: int
    completion_tokens: int
    filled_s: float
    restarts: int


@dataclass(frozen=True, slots=True)
class Point:
    """What a process had done after ``elapsed_s`` seconds: answers and error rows, of these the errors, tokens."""

    elapsed_s: float
    rows: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    workers: tuple[Share, ...] = ()

    def fields(self) -> list[Any]:
        """As a line of the file has it."""
        workers = [[w.index, w.rows, w.completion_tokens, round(w.filled_s, 2), w.restarts] for w in self.workers]
        own = (round(self.elapsed_s, 2), self.rows, self.errors, self.prompt_tokens, self.completion_tokens)
        return [*own, workers]

    @classmethod
    def of(cls, fields: Sequence[Any]) -> Self:
        """Back from a line.

        Raises:
            ValueError, TypeError: it is none.
        """
        elapsed_s, rows, errors, prompt_tokens, completion_tokens, workers = fields
        shares = tuple(Share(int(w[0]), int(w[1]), int(w[2]), float(w[3]), int(w[4])) for w in workers)
        return cls(float(elapsed_s), int(rows), int(errors), int(prompt_tokens), int(completion_tokens), shares)


START = Point(0.0, 0, 0, 0, 0)


@dataclass(slots=True)
class Session:
    """One process of a run.

    Args:
        number: of the process, from 1.
        began: in seconds since 1970.
        points: rising in time; what was done at the beginning, nothing, is not among them.
    """

    number: int
    began: float
    points: list[Point] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """How long it went on."""
        return self.points[-1].elapsed_s if self.points else 0.0


def thinned(sessions: Iterable[Session], interval_s: float, most: int = MOST_POINTS) -> tuple[list[Session], float]:
    """Leave out moments, until at most half as many are there as may be; each session's last one stays.

    Args:
        interval_s: the distance at which they were noted last.
        most: how many may be there, at least four for each session.

    Returns:
        The sessions, and the distance at which to go on.
    """
    kept = list(sessions)
    while sum(len(session.points) for session in kept) > most // 2:
        interval_s *= 2
        kept = [Session(s.number, s.began, list(_at_least_apart(s.points, interval_s))) for s in kept]
    return kept, interval_s


def _at_least_apart(points: Sequence[Point], interval_s: float) -> Iterator[Point]:
    before_s = 0.0
    for point in points:
        if point is points[-1] or point.elapsed_s - before_s >= interval_s:
            before_s = point.elapsed_s
            yield point


class Filling:
    """How much each worker did, from the figures of each moment."""

    def __init__(self) -> None:
        self._filled_s: dict[int, float] = {}
        self._elapsed_s = 0.0

    def point(self, progress: Progress) -> Point:
        """What has been done until this moment. To be called at each."""
        passed_s, self._elapsed_s = progress.elapsed_s - self._elapsed_s, progress.elapsed_s
        shares = []
        for worker in progress.workers:
            filled_s = self._filled_s.get(worker.index, 0.0) + passed_s * worker.utilisation
            self._filled_s[worker.index] = filled_s
            shares.append(Share(worker.index, worker.rows, worker.tokens, filled_s, worker.restarts))
        rows = sum(share.rows for share in shares) + progress.errors
        own = (progress.elapsed_s, rows, progress.errors, progress.prompt_tokens, progress.completion_tokens)
        return Point(*own, tuple(shares))


class HistoryFile:
    """The file of the run in this process. Writing it never fails a run.

    Args:
        output: the output's path.
        resumed: go on with what earlier processes of the run have left.
        note: gets a sentence, once, when the file cannot be written.
        clock: seconds since 1970.

    As a context manager it leaves the last figures that it was given.
    """

    def __init__(
        self,
        output: Path,
        *,
        resumed: bool,
        note: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = history_path(output)
        self._note = note
        self._interval_s = INTERVAL_S
        self._filling = Filling()
        self._latest: Point | None = None
        sessions = read_history(output)[1 - MOST_SESSIONS :] if resumed else []
        self._session = Session(sessions[-1].number + 1 if sessions else 1, round(clock(), 1))
        self._sessions = [*sessions, self._session]

    def update(self, progress: Progress) -> None:
        """Note the figures, and write them if it is time."""
        self._latest = point = self._filling.point(progress)
        if point.elapsed_s - self._session.elapsed_s >= self._interval_s:
            self._keep(point)

    def _keep(self, point: Point) -> None:
        self._session.points.append(point)
        if sum(len(session.points) for session in self._sessions) > MOST_POINTS:
            self._sessions, self._interval_s = thinned(self._sessions, self._interval_s)
            self._session = self._sessions[-1]
            self._write_all()
        else:
            self._guarded(lambda: self._append([point.fields()]))

    def _write_all(self) -> None:
        def write() -> None:
            partial = self.path.with_name(self.path.name + ".new")
            try:
                partial.write_text("".join(map(_line, _lines(self._sessions))))
                os.replace(partial, self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise

        self._guarded(write)

    def _append(self, lines: Iterable[Any]) -> None:
        with self.path.open("a") as file:
            file.write("".join(map(_line, lines)))

    def _guarded(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if self._note is not None:
                self._note(f"{self.path} cannot be written ({error.strerror}); the batch goes on without it.")
                self._note = None

    def __enter__(self) -> Self:
        self._write_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._latest is not None and self._latest.elapsed_s > self._session.elapsed_s:
            self._keep(self._latest)


def read_history(output: Path) -> list[Session]:
    """What the file of an output's run says, as far as it can be read.

    Args:
        output: the output's path.
    """
    sessions: list[Session] = []
    unreadable = (OSError, ValueError, TypeError, IndexError, KeyError)
    with contextlib.suppress(*unreadable), history_path(output).open() as file:
        for line in file:
            value = json.loads(line)
            if isinstance(value, dict):
                if value["format"] != FORMAT:
                    break
                sessions.append(Session(int(value["session"]), float(value["began"])))
            else:
                sessions[-1].points.append(Point.of(value))
    return sessions


def _lines(sessions: Iterable[Session]) -> Iterator[Any]:
    for session in sessions:
        yield {"format": FORMAT, "session": session.number, "began": session.began}
        yield from (point.fields() for point in session.points)


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"
