"""Suspects by list equality, and simulated runs with rows that kill their workers: whatever happens, each innocent row
is answered once, each poisoned one is convicted, and workers die no more often than that takes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.batch.events import (
    Answered,
    Assign,
    Drop,
    Emit,
    Finish,
    Job,
    RequestFailed,
    Rest,
    Slot,
    WorkerDown,
    WorkerRested,
    WorkerUp,
)
from samplerpool.batch.plan import window_for
from samplerpool.batch.suspects import MAX_DOUBTS, MAX_STRIKES, PATIENCE, Suspects
from samplerpool.data.answers import Answer
from samplerpool.errors import Aborted, EngineBroken, QueueFull, RequestLost, WorkerDied
from tests.batch_simulation import SimulatedRun, rows


class Court:
    """Suspects, with jobs by row number (or by row and sample) at worker 0, unless said otherwise."""

    def __init__(self, count=8, samples=1):
        self.samples = samples
        self.suspects = Suspects()
        slots = [Slot(row) for row in rows(*range(count))]
        self.jobs = {(i, s): Job(slot, s, 0) for i, slot in enumerate(slots) for s in range(samples)}

    def job(self, name):
        return self.jobs[name if isinstance(name, tuple) else (name, 0)]

    def named(self, jobs):
        return [(job.row.index, job.sample) if self.samples > 1 else job.row.index for job in jobs]

    def crash(self, *names, worker=0):
        """A worker dies that holds these; who is convicted and who released."""
        held = [self.job(name) for name in names]
        verdicts = []
        while held:
            job = held.pop(0)
            verdicts.append(self.suspects.ended(worker, job, "died", held, WorkerDied("It crashed.")))
        return [self.named(v.convicted) for v in verdicts if v.convicted]

    def ends(self, end, *names, worker=0):
        return [self.named(self.suspects.ended(worker, self.job(name), end).released) for name in names]

    def trial(self, worker=0):
        return self.named(self.suspects.begin(worker))


def test_rows_in_flight_at_a_death_run_again_together_and_those_that_are_answered_are_cleared():
    court = Court()
    assert court.crash(3, 1, 2) == []
    assert (court.suspects.waiting, court.suspects.rows, court.suspects.engaged(0)) == (True, 3, False)
    assert court.trial(5) == [1, 2, 3]
    assert (court.suspects.waiting, court.suspects.rows, court.suspects.engaged(5)) == (False, 3, True)
    assert court.ends("done", 2, 1, worker=5) == [[], []]
    assert (court.suspects.rows, court.suspects.engaged(5)) == (1, True)
    assert court.ends("done", 3, worker=5) == [[]]
    assert (court.suspects.rows, court.suspects.engaged(5), court.suspects.waiting) == (0, False, False)
    assert court.suspects.deaths == {0: 1}


def test_a_group_whose_worker_dies_is_halved_without_those_that_were_answered():
    court = Court()
    court.crash(0, 1, 2, 3, 4, 5)
    assert court.trial() == [0, 1, 2, 3, 4, 5]
    court.ends("done", 1)
    assert court.crash(0, 2, 3, 4, 5) == []
    assert court.trial() == [0, 2, 3]
    assert court.trial(1) == [4, 5]


def test_the_half_whose_twin_is_cleared_is_halved_without_a_death():
    court = Court()
    court.crash(0, 1, 2, 3)
    court.trial()
    court.crash(0, 1, 2, 3)
    assert court.trial() == [0, 1]
    court.ends("done", 0, 1)
    assert court.trial() == [2]
    court.ends("done", 2)
    assert court.trial() == [3]
    assert court.suspects.deaths == {0: 2}


def test_of_a_half_whose_twin_kills_nothing_is_known():
    court = Court()
    court.crash(0, 1, 2, 3)
    court.trial()
    court.crash(0, 1, 2, 3)
    court.trial()
    court.crash(0, 1)
    assert court.trial() == [0]
    for _ in range(MAX_STRIKES - 1):
        assert court.crash(0) == []
        assert court.trial() == [0]
    assert court.crash(0) == [[0]]
    assert court.trial() == [1]
    court.ends("done", 1)
    assert court.trial() == [2, 3]
    assert court.suspects.deaths == {0: 6}


def test_a_death_with_one_row_in_flight_is_a_strike_wherever_it_ran():
    court = Court()
    assert court.crash(4) == []  # no trial: it happened to be the only one
    assert court.trial() == [4]
    assert court.crash(4, worker=0) == []
    assert court.trial(1) == [4]
    assert court.crash(4, worker=1) == [[4]]
    assert (court.suspects.waiting, court.suspects.rows) == (False, 0)


def test_the_last_one_of_a_group_was_alone_when_the_others_had_been_answered():
    court = Court()
    court.crash(0, 1)
    for _ in range(MAX_STRIKES):
        assert court.suspects.waiting
        court.trial()
        court.ends("done", 0) if court.suspects.rows == 2 else None
        convicted = court.crash(1)
    assert convicted == [[1]]


def test_the_error_says_what_the_row_did_and_how_the_worker_ended_and_keeps_its_class_and_data():
    court = Court()
    for _ in range(MAX_STRIKES):
        verdict = court.suspects.ended(0, court.job(0), "died", (), EngineBroken("A step raised.", request="w0.1.2"))
        court.suspects.proved(0)
        if court.suspects.waiting:
            court.trial()
    assert type(verdict.error) is EngineBroken
    assert verdict.error.message == (
        "The row took its worker along 3 times when it ran alone, so it is not tried again. The last time: "
        "A step raised."
    )
    assert verdict.error.data == {"request": "w0.1.2"}


def test_an_engine_that_raises_again_and_again_may_be_what_is_at_fault():
    court = Court()
    broken = EngineBroken("A step raised.")
    for _ in range(MAX_DOUBTS):
        assert not court.suspects.ended(0, court.job(0), "died", (), broken).convicted
        assert (court.suspects.doubtful(0), court.suspects.strain(0) > court.suspects.strain(1)) == (True, True)
        court.trial()
    verdict = court.suspects.ended(0, court.job(0), "died", (), broken)
    assert (court.named(verdict.convicted), "along 11 times" in verdict.error.message) == ([0], True)


def test_rows_of_a_trial_that_come_back_without_a_death_are_tried_again_and_no_strike():
    court = Court()
    court.crash(0, 1, 2)
    court.trial()
    assert court.ends("returned", 2, 0) == [[], []]
    assert court.ends("done", 1) == [[]]
    assert court.trial() == [0, 2]
    assert court.ends("returned", 0) == [[]]
    assert court.crash(2) == []  # 0 may have been there too: no strike
    assert court.trial() == [2]
    assert [court.crash(2), court.trial(), court.crash(2), court.trial(), court.crash(2)] == [[], [2], [], [2], [[2]]]
    assert court.trial() == [0]


def test_rows_that_never_reached_the_worker_that_died_are_ordinary_ones():
    court = Court()
    held = [court.job(1), court.job(2)]
    assert court.suspects.ended(0, court.job(0), "died", held, WorkerDied("x")).released == ()
    assert court.suspects.engaged(0)
    assert court.ends("returned", 2) == [[]]
    assert court.ends("done", 1) == [[2]]
    assert court.trial() == [0]
    assert court.ends("returned", 7, worker=1) == [[7]]  # nothing to do with any of it


def test_samples_of_a_row_stand_and_fall_together():
    court = Court(3, samples=2)
    court.crash((0, 0), (0, 1), (1, 0), worker=0)
    court.crash((1, 1), (2, 0), worker=1)
    assert court.trial() == [(0, 0), (0, 1), (1, 0)]
    court.crash((0, 0), (0, 1), (1, 0))
    assert court.trial() == [(0, 0), (0, 1)]
    court.ends("done", (0, 0), (0, 1))
    for _ in range(MAX_STRIKES):
        assert court.trial() == [(1, 0)]
        convicted = court.crash((1, 0))
    assert convicted == [[(1, 0), (1, 1)]]
    assert court.trial() == [(2, 0)]


def test_a_worker_that_died_often_is_spared():
    court = Court()
    for _ in range(PATIENCE):
        assert (court.suspects.strain(0), court.suspects.strain(1)) == (0, 0)
        court.crash(0, 1)
        court.suspects.drop()
    assert (court.suspects.strain(0), court.suspects.strain(1)) == (1, 0)


# ---- whole runs -----------------------------------------------------------------------------------------------------


class Simulation(SimulatedRun):
    """A run with simulated workers. Each has a speed and a batch; it dies of poisoned rows and otherwise, and is back
    after a while. News of a death come in pieces, in any order, and later than much else.

    Args:
        poisoned: row number to what it does, ``crash`` or ``raise``.
        deaths: of other causes; never with a single row in flight, which would be taken for that row's doing.
        broken: engines that raise at some time, and from then on always.
        replaced: a worker whose engine raised five times in a row is replaced by a new one.
    """

    def __init__(self, seed, *, count, workers, poisoned, samples=1, deaths=0, broken=0, replaced=True):
        super().__init__(seed, count=count, workers=workers, samples=samples)
        self.poisoned = poisoned
        self.up = dict.fromkeys(range(workers), True)
        self.suspected = set()
        self.sent = set()
        self.kills = self.taken_over = 0
        self.slowness = {worker: self.random.choice([0.3, 1, 3]) for worker in range(workers)}
        self.later(0.2, "tick")
        self.replaced, self.broken, self.breaks = replaced, set(), dict.fromkeys(range(workers), 0)
        for _ in range(broken):
            self.later(self.random.uniform(0, count / 2), "breaks_for_good", self.random.randrange(workers))
        for _ in range(deaths):
            self.later(self.random.uniform(0, count / 2), "death", self.random.randrange(workers))

    def answer(self, worker, job):
        if job not in self.holds[worker]:
            return
        deed = self.poisoned.get(job.row.index)
        if deed == "crash":
            self.kills += 1
            self.end(worker, WorkerDied("It crashed."))
        elif deed == "raise" or worker in self.broken:
            self.kills += 1
            self.breaks[worker] += 1
            running = [j for n, j in enumerate(self.holds[worker]) if n < self.max_batch[worker] or j is job]
            self.fail(worker, running, EngineBroken("A step raised."))
            if self.replaced and self.breaks[worker] == 5:
                self.kills += bool(self.holds[worker])
                self.end(worker, WorkerDied("It ended."))
        elif self.random.random() < 0.03:
            error = self.random.choice([RequestLost("lost"), QueueFull("full")])
            self.fail(worker, [job], error)
        else:
            self.holds[worker].remove(job)
            self.breaks[worker] = 0
            self.tell(Answered(worker, job, Answer(f"{job.row.index}/{job.sample}", "stop", 3, 2, 0, None)))

    def breaks_for_good(self, worker):
        self.broken.add(worker)

    def death(self, worker):
        requested = self.random.random() < 0.4
        if self.up[worker] and (requested or len({job.slot for job in self.holds[worker]}) != 1):
            self.kills += not requested and bool(self.holds[worker])
            self.end(worker, WorkerDied("It was killed.", requested=requested))

    def end(self, worker, error):
        self.up[worker] = False
        self.fail(worker, list(self.holds[worker]), error)
        self.later(self.random.uniform(0, 3), "noticed", worker)
        self.later(self.random.uniform(0, 9), "birth", worker)

    def fail(self, worker, jobs, error):
        """Whatever becomes of them at the worker, it is told late and in pieces."""
        self.holds[worker] = [job for job in self.holds[worker] if job not in jobs]
        self.random.shuffle(jobs)
        while jobs:
            pieces, jobs = jobs[: (size := self.random.randint(1, 6))], jobs[size:]
            self.later(self.random.choice([0, 0, self.random.uniform(0, 2)]), "news", worker, pieces, error)

    def news(self, worker, jobs, error):
        if isinstance(error, WorkerDied | EngineBroken) and not error.data.get("requested"):
            self.suspected.update(job for job in jobs if not job.done and job.copies == 1)
        self.tell(*(RequestFailed(worker, job, error) for job in jobs))
        self.later(0.2, "look", worker)

    def look(self, worker):
        """As the runner does: what a late word made of a worker is put right."""
        if self.up[worker] and worker not in self.state.workers:
            self.tell(WorkerUp(worker, self.max_batch[worker]))

    def noticed(self, worker):
        if not self.up[worker]:
            self.tell(WorkerDown(worker, coming=True))

    def birth(self, worker):
        self.up[worker], self.breaks[worker] = True, 0
        self.broken.discard(worker)
        self.tell(WorkerUp(worker, self.max_batch[worker]))

    def rested(self, worker):
        self.tell(WorkerRested(worker))

    def tell(self, *events):
        if self.finish is None:
            self.act(self.state.handle(*events, now_s=self.clock))

    def tick(self):
        """As the runner does, a few times a second."""
        self.tell()
        if self.queue:
            self.later(0.2, "tick")

    def dropped(self, worker, job):
        if job in self.holds[worker]:
            self.holds[worker].remove(job)
            self.tell(RequestFailed(worker, job, Aborted("It was not wanted any more.")))

    def act(self, actions):
        for action in actions:
            assert self.finish is None
            match action:
                case Assign(worker, jobs):
                    self.check_assignment(worker, jobs)
                    self.sent.update(jobs)
                    self.taken_over += sum(job.copies > 1 for job in jobs)
                    if not self.up[worker]:
                        unsent = RequestLost("gone", sent=False)
                        self.later(self.random.uniform(0, 1), "news", worker, list(jobs), unsent)
                        self.later(0, "noticed", worker)
                        continue
                    for job in jobs:
                        self.holds[worker].append(job)
                        ahead = max(0, len(self.holds[worker]) - self.max_batch[worker])
                        delay = self.random.expovariate(1) * self.slowness[worker] * (1 + ahead)
                        self.later(delay, "answer", worker, job)
                case Rest(worker):
                    self.later(1, "rested", worker)
                case Drop(worker, job):
                    assert job.done
                    self.later(self.random.uniform(0, 1), "dropped", worker, job)
                case Emit(result):
                    self.emitted.append(result)
                case Finish():
                    self.finish = action

    def check_assignment(self, worker, jobs):
        """Suspects are by themselves, and others go on with ordinary rows where there are any."""
        suspected = [job in self.suspected for job in jobs]
        assert len(set(suspected)) == 1
        assert not self.suspected & set(self.holds[worker])
        if suspected[0]:
            assert not self.holds[worker]
            others = [w for w in self.state.workers if w != worker and not self.suspected & set(self.holds[w])]
            assert others or not self.state.room


def bound(windows, samples, poisoned):
    """Deaths that so many poisoned rows can cause: at the end of a run each may be at two workers."""
    largest = max(window_for(batch).size for batch in windows)
    strikes = 6 * MAX_STRIKES  # with an engine that raises there are doubts between strikes
    return poisoned * (samples * (3 + math.ceil(math.log2(largest))) + strikes)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 60),
    workers=st.integers(1, 4),
    poisoned=st.dictionaries(st.integers(0, 59), st.sampled_from(["crash", "crash", "raise"]), max_size=5),
    samples=st.sampled_from([1, 1, 2, 3]),
    deaths=st.integers(0, 15),
    broken=st.integers(0, 2),
)
def test_innocent_rows_are_answered_once_and_poisoned_ones_convicted(
    seed, count, workers, poisoned, samples, deaths, broken
):
    run = Simulation(
        seed,
        count=count,
        workers=workers,
        poisoned=poisoned,
        samples=samples,
        deaths=deaths,
        broken=min(broken, 1 if workers < 3 else 2),  # five times at each of two, that is MAX_DOUBTS for the last row
    ).run()
    assert run.finish == Finish("complete")
    assert sorted((r.row.index, r.sample) for r in run.emitted) == [
        (i, s) for i in range(count) for s in range(samples)
    ]
    for result in run.emitted:
        if result.row.index in poisoned:
            assert isinstance(result.error, WorkerDied | EngineBroken)
            assert "times when it ran alone" in result.error.message
        else:
            assert result.answer is not None
            assert result.answer.text == f"{result.row.index}/{result.sample}"
    present = sum(index < count for index in poisoned)
    assert run.state.deaths <= run.kills <= bound(run.max_batch.values(), samples, present) + deaths + 6 * broken
    assert run.state.suspects == 0


def test_rows_are_taken_over_in_such_runs():
    runs = [Simulation(seed, count=40, workers=3, poisoned={7: "crash"}, deaths=3).run() for seed in range(20)]
    assert sum(run.taken_over for run in runs) >= 20


@pytest.mark.parametrize("seed", range(20))
def test_a_row_that_breaks_an_engine_which_nobody_replaces_is_given_up_all_the_same(seed):
    run = Simulation(seed, count=30, workers=1, poisoned={seed: "raise"}, replaced=False).run()
    assert run.finish == Finish("complete")
    assert [r.row.index for r in run.emitted if r.error is not None] == [seed]
    assert run.kills <= 4 + MAX_STRIKES + MAX_DOUBTS


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_one_poisoned_row_in_a_full_batch_costs_few_deaths(workers):
    costs = []
    for place in range(80):
        run = Simulation(place, count=200, workers=workers, poisoned={place: "crash"})
        run.max_batch = dict.fromkeys(range(workers), 64)
        costs.append(run.run().state.deaths)
    assert max(costs) <= 2 + math.ceil(math.log2(80)) + MAX_STRIKES
    assert sum(costs) / len(costs) <= 8
