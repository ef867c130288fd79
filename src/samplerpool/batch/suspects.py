"""Rows that were in flight when their worker died: one of them may be what killed it. Pure.

They become a group, which runs apart, alone at one worker. A group that survives is cleared row by row, as its answers
come; of one whose worker dies, what was not answered is halved, and the halves run apart. When one half is cleared, the
other must be what killed them both, and is halved without a further death. A death with a single row in flight is a
strike against that row, and with ``MAX_STRIKES`` it is convicted. So no neighbour of a row that kills its worker ever
pays for it, and with a group of N rows that row costs at most ``2 + log2 N + MAX_STRIKES`` deaths, usually fewer.

Ends that the pool was asked for say nothing of the rows. All samples of a row stand and fall together. An engine that
raised lives on, and may be what is at fault: until it has answered something, raising again makes a doubt, no strike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from samplerpool.batch.events import Job, Slot
from samplerpool.errors import EngineBroken, SamplerPoolError

MAX_STRIKES = 3
MAX_DOUBTS = 10

PATIENCE = 5
"""Deaths of one worker before another one's turn comes: a pool gives up workers that die very often."""

End = Literal["done", "died", "returned"]
"""Of a job: it has its answer or its own error; its worker died; it came back untouched by that."""


@dataclass(eq=False, slots=True)
class Group:
    """Jobs that run apart from all others.

    Args:
        twin: the other half of a group whose worker died.
    """

    jobs: list[Job]
    twin: Group | None = None


@dataclass(eq=False, slots=True)
class Case:
    """Jobs that one worker holds and whose ends are weighed together: a trial, or what a death found there.

    Args:
        pending: those that have not ended.
        trial: the group that runs apart.
        fell: the worker died.
        alone: at its death one row was in flight.
    """

    pending: dict[Job, None]
    trial: Group | None = None
    died: list[Job] = field(default_factory=list)
    returned: list[Job] = field(default_factory=list)
    fell: bool = False
    alone: bool = False
    error: SamplerPoolError | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about jobs at the end of a case; all others of it are done, or wait here for a trial.

    Args:
        convicted: each gets ``error``.
        released: they may be handed out like any others.
    """

    convicted: Sequence[Job] = ()
    error: SamplerPoolError | None = None
    released: Sequence[Job] = ()


NOTHING = Verdict()


class Suspects:
    """See the module's docstring.

    ``deaths`` counts those with rows in flight, by worker.
    """

    def __init__(self) -> None:
        self.deaths: Counter[int] = Counter()
        self._waiting: deque[Group] = deque()
        self._cases: dict[int, Case] = {}
        self._strikes: Counter[Slot] = Counter()
        self._doubts: Counter[Slot] = Counter()
        self._doubtful: set[int] = set()

    @property
    def waiting(self) -> bool:
        """Whether a group waits for its trial."""
        return bool(self._waiting)

    @property
    def rows(self) -> int:
        """How many rows are under suspicion, whether they wait or run."""
        waiting = (job.slot for group in self._waiting for job in group.jobs)
        running = (job.slot for c in self._cases.values() for job in (*c.pending, *c.died) if c.trial or c.died)
        return len({*waiting, *running})

    def engaged(self, worker: int) -> bool:
        """Whether a worker must get nothing else now."""
        return worker in self._cases

    def strain(self, worker: int) -> int:
        """By how much others are to be preferred for the next trial."""
        return self.deaths[worker] // PATIENCE + self.doubtful(worker)

    def doubtful(self, worker: int) -> bool:
        """Whether its engine raised and has not answered anything since."""
        return worker in self._doubtful

    def proved(self, worker: int) -> None:
        """A worker has answered, or is a new process."""
        self._doubtful.discard(worker)

    def begin(self, worker: int) -> list[Job]:
        """Put the next group on trial at a worker that holds nothing; its jobs are to be sent there."""
        group = self._waiting.popleft()
        self._cases[worker] = Case(dict.fromkeys(group.jobs), group)
        return list(group.jobs)

    def drop(self) -> None:
        """Forget who waits: no more trials are wanted."""
        self._waiting.clear()

    # ---- what becomes of jobs -------------------------------------------------------------------------------------

    def ended(
        self,
        worker: int,
        job: Job,
        end: End,
        held: Iterable[Job] = (),
        error: SamplerPoolError | None = None,
        *,
        settled: bool = False,
    ) -> Verdict:
        """A job has ended.

        Args:
            held: what its worker still holds.
            error: of a death.
            settled: its answer is there, or will come from another worker, so nothing is to become of it here.
        """
        case = self._cases.get(worker)
        if case is None:
            if end != "died":
                return NOTHING if end == "done" or settled else Verdict(released=[job])
            case = self._cases[worker] = Case(dict.fromkeys(held))
        case.pending.pop(job, None)
        if end == "died":
            if not case.fell:
                case.alone = not case.returned and all(other.slot is job.slot for other in case.pending)
            case.fell, case.error = True, error
            if not settled:
                case.died.append(job)
        elif end == "returned" and not settled:
            case.returned.append(job)
        if case.pending:
            return NOTHING
        del self._cases[worker]
        return self._weigh(worker, case)

    def _weigh(self, worker: int, case: Case) -> Verdict:
        died, returned = _in_order(case.died), _in_order(case.returned)
        if case.trial and returned:
            self._waiting.appendleft(Group(returned))  # not tried, so as suspect as before
            returned = []
        if not case.fell:
            if case.trial and not case.returned:
                self._survived(case.trial)
            return Verdict(released=returned)
        self.deaths[worker] += 1
        if not died:
            return Verdict(released=returned)
        if case.alone:
            (self._doubts if self.doubtful(worker) else self._strikes)[died[0].slot] += 1
        if isinstance(case.error, EngineBroken):
            self._doubtful.add(worker)
        convicted, suspects = self._convict(died)
        if case.trial:
            self._waiting.extendleft(reversed(_halves(suspects)))
        elif suspects:
            self._waiting.append(Group(suspects))
        return Verdict(convicted, self._sentence(convicted[0].slot, case.error) if convicted else None, returned)

    def _convict(self, died: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Who of them, and of those that wait, belongs to a row that has struck out; and who of them is left."""
        guilty = {slot for slot in (job.slot for job in died) if self._guilty(slot)}
        convicted = [job for job in died if job.slot in guilty]
        for group in list(self._waiting) if guilty else ():
            convicted += [job for job in group.jobs if job.slot in guilty]
            group.jobs = [job for job in group.jobs if job.slot not in guilty]
            if not group.jobs:
                self._waiting.remove(group)
        return convicted, [job for job in died if job.slot not in guilty]

    def _guilty(self, slot: Slot) -> bool:
        return self._strikes[slot] >= MAX_STRIKES or self._doubts[slot] >= MAX_DOUBTS

    def _sentence(self, slot: Slot, error: SamplerPoolError | None) -> SamplerPoolError:
        assert error is not None
        times = self._strikes[slot] + self._doubts[slot]
        text = f"The row took its worker along {times} times when it ran alone, so it is not tried again."
        return type(error)(f"{text} The last time: {error.message}", **error.data)

    def _survived(self, group: Group) -> None:
        """Its twin, if that waits still, is what killed them both."""
        for place, other in enumerate(self._waiting):
            if other.twin is group:
                del self._waiting[place]
                for half in reversed(_halves(other.jobs)):
                    self._waiting.insert(place, half)
                return


def _in_order(jobs: Iterable[Job]) -> list[Job]:
    """As they stand in the input, in whichever order they ended."""
    return sorted(jobs, key=lambda job: (job.row.index, job.sample))


def _halves(jobs: Sequence[Job]) -> list[Group]:
    """Two groups of whole rows, or one if there is but one row."""
    rows: dict[Slot, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.slot, []).append(job)
    middle = (len(rows) + 1) // 2
    parts = [list(rows.values())[:middle], list(rows.values())[middle:]]
    halves = [Group([job for row in part for job in row]) for part in parts if part]
    if len(halves) == 2:
        halves[0].twin, halves[1].twin = halves[1], halves[0]
    return halves
