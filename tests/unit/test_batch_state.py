"""The batch state machine by list equality, and simulated runs."""

import random

import pytest

from samplerpool.batch.events import (
    Answered,
    Assign,
    Drop,
    Emit,
    Finish,
    InputEnded,
    RequestFailed,
    Rest,
    RowsRead,
    StopRequested,
    WorkerDown,
    WorkerRested,
    WorkerUp,
)
from samplerpool.batch.state import MAX_ATTEMPTS, BatchState
from samplerpool.batch.suspects import MAX_STRIKES
from samplerpool.data.answers import Answer, RowResult, row_seed
from samplerpool.data.rows import Row
from samplerpool.errors import (
    Aborted,
    BadRow,
    EngineBroken,
    LeaseExpired,
    PromptTooLong,
    QueueFull,
    TransportError,
    UnsupportedParameter,
    WorkerDied,
    WorkerDraining,
)
from tests.batch_simulation import SimulatedRun, rows


def answer(text="a"):
    return Answer(text, "stop", 3, 2, 0, None)


class Driver:
    """Feeds a state machine and remembers the jobs that it handed out."""

    def __init__(self, *, workers=1, max_batch=4, samples=1):
        self.state = BatchState(7, samples)
        self.jobs = {}
        self.now_s = 0.0
        self.tell(*(WorkerUp(worker, max_batch) for worker in range(workers)))

    def tell(self, *events):
        """Handle events; actions as short tuples, in order."""
        return [self.short(action) for action in self.state.handle(*events, now_s=self.now_s)]

    def does(self, *events):
        """The same without what is given back."""
        return [action for action in self.tell(*events) if action[0] != "emit"]

    def short(self, action):
        match action:
            case Assign(worker, jobs):
                self.jobs.update({(job.row.index, job.sample): (worker, job) for job in jobs})
                return "assign", worker, [(job.row.index, job.sample) for job in jobs]
            case Emit(result):
                return "emit", result.row.index, result.sample, type(result.error).__name__ if result.error else "ok"
            case Drop(worker, job):
                return "drop", worker, (job.row.index, job.sample)
            case Rest(worker):
                return "rest", worker
            case Finish(outcome):
                return "finish", outcome

    def answered(self, index, sample=0, *, by=None):
        worker, job = self.jobs[index, sample]
        return Answered(worker if by is None else by, job, answer())

    def failed(self, index, error, sample=0, *, by=None):
        worker, job = self.jobs[index, sample]
        return RequestFailed(worker if by is None else by, job, error)

    def after(self, seconds):
        """Some time later."""
        self.now_s += seconds
        return self.tell()


def test_rows_are_read_handed_out_and_given_back_as_they_finish():
    driver = Driver(workers=2, max_batch=4)
    assert driver.state.room == 12
    assert driver.tell(RowsRead(rows(0, 1, 2)), InputEnded()) == [
        ("assign", 0, [(0, 0), (1, 0)]),
        ("assign", 1, [(2, 0)]),
    ]
    assert driver.tell(driver.answered(2)) == [("emit", 2, 0, "ok")]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok")]
    assert driver.tell(driver.answered(1)) == [("emit", 1, 0, "ok"), ("finish", "complete")]


def test_an_empty_input_is_complete():
    assert Driver().tell(RowsRead([]), InputEnded()) == [("finish", "complete")]


def test_bad_rows_need_no_worker():
    driver = Driver()
    bad = Row(1, error=BadRow("Line 2: bad"))
    assert driver.tell(RowsRead([*rows(0), bad, *rows(2)]), InputEnded()) == [
        ("assign", 0, [(0, 0), (2, 0)]),
        ("emit", 1, 0, "BadRow"),
    ]
    assert driver.tell(driver.answered(2)) == [("emit", 2, 0, "ok")]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok"), ("finish", "complete")]


def test_samples_that_are_there_already_are_not_asked_for_again():
    driver = Driver(samples=3)
    begun, bad = rows(0, 1)
    begun.finished, bad.finished, bad.error = frozenset({0, 2}), frozenset({1}), BadRow("Line 2: bad")
    assert driver.tell(RowsRead([begun, bad]), InputEnded()) == [
        ("assign", 0, [(0, 1)]),
        ("emit", 1, 0, "BadRow"),
        ("emit", 1, 2, "BadRow"),
    ]
    assert driver.jobs[0, 1][1].seed == row_seed(7, 0, 1)
    assert driver.tell(driver.answered(0, 1)) == [("emit", 0, 1, "ok"), ("finish", "complete")]


def test_samples_of_a_row_are_requests_of_their_own_with_seeds_of_their_own():
    driver = Driver(workers=2, samples=2)
    bad = Row(1, error=BadRow("Line 2: bad"))
    assert driver.tell(RowsRead([*rows(0), bad]), InputEnded())[-2:] == [
        ("emit", 1, 0, "BadRow"),
        ("emit", 1, 1, "BadRow"),
    ]
    seeds = {key: job.seed for key, (_, job) in driver.jobs.items()}
    assert seeds == {(0, 0): row_seed(7, 0, 0), (0, 1): row_seed(7, 0, 1)}
    assert driver.tell(driver.answered(0, 1)) == [("emit", 0, 1, "ok")]
    assert driver.tell(driver.answered(0, 0)) == [("emit", 0, 0, "ok"), ("finish", "complete")]


def test_the_row_s_own_fault_is_an_error_row_at_once():
    driver = Driver()
    driver.tell(RowsRead(rows(0)), InputEnded())
    assert driver.tell(driver.failed(0, PromptTooLong("too long"))) == [
        ("emit", 0, 0, "PromptTooLong"),
        ("finish", "complete"),
    ]


def test_rows_of_a_dead_worker_wait_until_one_has_nothing_else_to_do():
    driver = Driver(workers=2, max_batch=2)
    assert driver.does(RowsRead(rows(*range(10))), InputEnded()) == [
        ("assign", 0, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ("assign", 1, [(4, 0), (5, 0), (6, 0), (7, 0)]),
    ]
    died = WorkerDied("Worker 0 died.")
    assert driver.does(WorkerDown(0), *(driver.failed(index, died) for index in (3, 2, 1, 0))) == []
    assert (driver.state.deaths, driver.state.suspects) == (1, 4)
    assert driver.does(driver.answered(4)) == [("assign", 1, [(8, 0)])]
    assert driver.does(*(driver.answered(index) for index in (5, 6, 7, 8))) == [("assign", 1, [(9, 0)])]
    assert driver.does(driver.answered(9)) == [("assign", 1, [(0, 0), (1, 0), (2, 0), (3, 0)])]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok")]
    assert driver.state.suspects == 3
    assert driver.does(*(driver.answered(index) for index in (1, 2, 3)))[-1] == ("finish", "complete")


def test_suspects_are_tried_at_the_worker_that_comes_back_while_another_goes_on():
    driver = Driver(workers=2, max_batch=2)
    driver.tell(RowsRead(rows(*range(20))))
    died = WorkerDied("Worker 0 died.")
    driver.tell(WorkerDown(0, coming=True), *(driver.failed(index, died) for index in range(4)))
    assert driver.does(driver.answered(4)) == [("assign", 1, [(8, 0)])]
    assert driver.does(WorkerUp(0, 2)) == [("assign", 0, [(0, 0), (1, 0), (2, 0), (3, 0)])]
    assert driver.does(driver.answered(0), driver.answered(1)) == []
    assert driver.tell(driver.answered(2), driver.answered(3)) == [
        ("assign", 0, [(9, 0), (10, 0), (11, 0), (12, 0)]),
        ("emit", 2, 0, "ok"),
        ("emit", 3, 0, "ok"),
    ]


def test_with_nobody_coming_back_one_of_several_is_kept_free_for_the_trial():
    driver = Driver(workers=3, max_batch=1)
    driver.tell(RowsRead(rows(*range(30))))
    died = WorkerDied("Worker 0 died.")
    driver.tell(WorkerDown(0), *(driver.failed(index, died) for index in range(3)))
    assert driver.does(driver.answered(3), driver.answered(6)) == [("assign", 2, [(9, 0)])]
    assert driver.does(driver.answered(4)) == []
    assert driver.does(driver.answered(5)) == [("assign", 1, [(0, 0), (1, 0), (2, 0)])]


def test_the_only_worker_does_the_other_rows_first():
    driver = Driver(max_batch=1)
    driver.tell(RowsRead(rows(*range(5))), InputEnded())
    died = WorkerDied("Worker 0 died.")
    assert driver.does(*(driver.failed(index, died) for index in range(3))) == []
    assert (driver.state.workers, driver.state.coming) == (set(), {0})
    assert driver.does(WorkerUp(0, 1)) == [("assign", 0, [(3, 0), (4, 0)])]
    assert driver.does(driver.answered(4)) == []
    assert driver.does(driver.answered(3)) == [("assign", 0, [(0, 0), (1, 0), (2, 0)])]


def test_a_worker_whose_engine_broke_is_emptied_before_it_gets_more():
    driver = Driver(max_batch=1)
    driver.tell(RowsRead(rows(*range(5))), InputEnded())
    broken = EngineBroken("A step raised.")
    assert driver.does(driver.failed(1, broken)) == []
    assert driver.does(driver.failed(0, broken)) == []
    assert driver.does(driver.answered(2)) == [("assign", 0, [(3, 0), (4, 0)])]
    assert driver.state.workers == {0}


def test_a_row_that_dies_alone_three_times_is_an_error_row():
    driver = Driver()
    driver.tell(RowsRead(rows(0, 1)), InputEnded())
    died = WorkerDied("Worker 0 died.")
    driver.tell(driver.failed(0, died), driver.failed(1, died))
    assert driver.tell(WorkerUp(0, 4)) == [("assign", 0, [(0, 0), (1, 0)])]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok")]
    for _ in range(MAX_STRIKES - 1):
        assert driver.tell(driver.failed(1, died)) == []
        assert driver.tell(WorkerUp(0, 4)) == [("assign", 0, [(1, 0)])]
    assert driver.tell(driver.failed(1, died)) == [("emit", 1, 0, "WorkerDied"), ("finish", "complete")]
    assert driver.state.deaths == 4


def test_ends_that_the_pool_was_asked_for_are_held_against_nobody():
    driver = Driver()
    driver.tell(RowsRead(rows(0)), InputEnded())
    for _ in range(MAX_ATTEMPTS + 1):
        assert driver.tell(driver.failed(0, WorkerDied("stopped", requested=True))) == []
        assert driver.tell(WorkerUp(0, 4)) == [("assign", 0, [(0, 0)])]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok"), ("finish", "complete")]
    assert driver.state.deaths == 0


def test_a_dead_worker_gets_nothing_even_before_it_is_reported_down():
    driver = Driver(workers=2, max_batch=2)
    driver.tell(RowsRead(rows(0, 1)))
    driver.tell(driver.failed(0, WorkerDied("gone")))
    assert (driver.state.workers, driver.state.coming) == ({1}, {0})
    assert driver.tell(RowsRead(rows(2))) == [("assign", 1, [(2, 0)])]


def test_the_last_of_many_attempts_ends_in_an_error_row():
    driver = Driver()
    driver.tell(RowsRead(rows(0)), InputEnded())
    for _ in range(MAX_ATTEMPTS - 1):
        assert driver.tell(driver.failed(0, TransportError("lost"))) == [("assign", 0, [(0, 0)])]
    (emitted, finish) = driver.state.handle(driver.failed(0, TransportError("lost")))
    assert emitted.result.error.message == "lost Given up after 10 attempts."
    assert emitted.result.transient
    assert type(emitted.result.error) is TransportError
    assert finish == Finish("complete")


def test_retryable_errors_are_tried_again():
    driver = Driver()
    driver.tell(RowsRead(rows(0)), InputEnded())
    assert driver.tell(driver.failed(0, LeaseExpired("silent"))) == [("assign", 0, [(0, 0)])]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok"), ("finish", "complete")]


def test_a_draining_worker_gets_nothing_new_until_it_is_up_again():
    driver = Driver(workers=2, max_batch=2)
    driver.tell(RowsRead(rows(0, 1)))
    assert driver.tell(driver.failed(0, WorkerDraining("stopping"))) == [("assign", 1, [(0, 0)])]
    assert driver.tell(RowsRead(rows(2)), InputEnded()) == [("assign", 1, [(2, 0)])]
    driver.tell(WorkerDown(0), WorkerUp(0, 2), driver.failed(1, LeaseExpired("silent")))
    assert driver.jobs[1, 0][0] == 0


def test_a_full_worker_rests_and_the_row_keeps_its_attempts():
    driver = Driver(max_batch=2)
    driver.tell(RowsRead(rows(0)), InputEnded())
    for _ in range(MAX_ATTEMPTS + 2):
        assert driver.tell(driver.failed(0, QueueFull("full"))) == [("rest", 0)]
        assert driver.tell(WorkerRested(0)) == [("assign", 0, [(0, 0)])]
    assert driver.tell(driver.failed(0, LeaseExpired("late"))) == [("assign", 0, [(0, 0)])]
    assert driver.tell(driver.answered(0)) == [("emit", 0, 0, "ok"), ("finish", "complete")]


def test_as_long_as_a_worker_is_coming_the_run_waits_and_then_ends_with_what_is_finished():
    driver = Driver(workers=2)
    driver.tell(RowsRead(rows(0, 1, 2)), InputEnded())
    died = WorkerDied("gone")
    assert driver.tell(driver.failed(0, died), driver.failed(1, died), driver.answered(2)) == [
        ("assign", 1, [(0, 0), (1, 0)]),
        ("emit", 2, 0, "ok"),
    ]
    assert driver.tell(driver.failed(0, died), driver.failed(1, died)) == []
    assert driver.tell(WorkerDown(0), WorkerDown(1, coming=True)) == []
    assert driver.tell(WorkerDown(1)) == [("finish", "no_workers")]


def test_a_run_may_begin_before_any_worker_is_there():
    state = BatchState(7)
    assert state.handle(WorkerDown(0, coming=True)) == []
    assert state.room == 0
    assert state.handle(WorkerUp(0, 1)) == []
    assert state.room == 3


def test_without_any_worker_nothing_is_read():
    driver = Driver(workers=0)
    assert driver.state.room == 0
    assert driver.tell() == []  # finished already
    assert BatchState(1).handle() == [Finish("no_workers")]


def test_a_parameter_that_no_row_can_have_ends_the_run():
    driver = Driver()
    driver.tell(RowsRead(rows(0, 1)))
    error = UnsupportedParameter("no logprobs")
    (emit, finish) = driver.state.handle(driver.failed(0, error))
    assert emit.result.transient
    assert finish == Finish("failed", error)


def test_stop_finishes_what_runs_and_hands_nothing_out():
    driver = Driver(max_batch=1)
    driver.tell(RowsRead(rows(*range(8))))
    assert set(driver.jobs) == {(0, 0), (1, 0), (2, 0)}
    assert driver.tell(StopRequested()) == []
    assert driver.state.room == 0
    assert driver.tell(driver.answered(1)) == [("emit", 1, 0, "ok")]
    assert driver.tell(driver.failed(0, WorkerDied("gone"))) == []
    assert driver.tell(driver.answered(2)) == [("emit", 2, 0, "ok"), ("finish", "stopped")]


def test_stop_at_once_does_not_wait():
    driver = Driver(max_batch=1)
    driver.tell(RowsRead(rows(*range(8))))
    driver.tell(StopRequested())
    assert driver.tell(driver.answered(1)) == [("emit", 1, 0, "ok")]
    assert driver.tell(StopRequested(at_once=True)) == [("finish", "stopped")]
    assert driver.tell(driver.answered(0)) == []


# ---- near the end: idle workers take over -------------------------------------------------------------------------


def near_the_end(*, slow_s=10.0):
    """Worker 0 has answered all that it had after a second, worker 1 one row of four after ``slow_s``. Returns what is
    done then, and the rows that worker 1 still holds."""
    driver = Driver(workers=2, max_batch=2)
    driver.tell(RowsRead(rows(*range(8))), InputEnded())
    mine = [index for (index, _), (worker, _) in driver.jobs.items() if worker == 0]
    first, *others = (index for (index, _), (worker, _) in driver.jobs.items() if worker == 1)
    driver.now_s = 1.0
    driver.tell(*(driver.answered(index) for index in mine[:-1]))
    driver.now_s = slow_s
    return driver, driver.does(driver.answered(first), driver.answered(mine[-1])), others


def test_what_would_come_late_from_a_slow_worker_is_taken_over_by_an_idle_one():
    driver, done, (second, first, third) = near_the_end()
    assert done == [("assign", 0, [(third, 0)]), ("assign", 0, [(second, 0)])]  # the last to come are the first
    assert driver.after(1) == []  # its batch is full
    assert driver.tell(driver.answered(third, by=0)) == [("emit", third, 0, "ok"), ("drop", 1, (third, 0))]
    assert driver.tell(driver.failed(third, Aborted("dropped"), by=1)) == []
    assert driver.tell(driver.answered(second, by=1)) == [("emit", second, 0, "ok"), ("drop", 0, (second, 0))]
    assert driver.tell(driver.answered(second, by=0)) == []  # came all the same
    assert driver.tell(driver.answered(first)) == [("emit", first, 0, "ok"), ("finish", "complete")]


def test_equally_fast_workers_take_over_only_what_has_not_begun():
    driver, done, (*_, third) = near_the_end(slow_s=1.0)
    assert done == []  # looked a moment ago
    assert driver.after(0.05) == []
    assert driver.after(0.1) == [("assign", 0, [(third, 0)])]
    assert driver.after(0.1) == []


def test_nothing_is_taken_over_before_the_end_or_after_a_stop():
    driver = Driver(workers=2, max_batch=2)
    driver.tell(RowsRead(rows(*range(8))))
    driver.now_s = 1.0
    mine = [index for (index, _), (worker, _) in driver.jobs.items() if worker == 0]
    assert driver.does(*(driver.answered(index) for index in mine)) == []
    assert driver.after(50) == []
    driver, _, held = near_the_end()
    driver.does(StopRequested(), *(driver.answered(index, by=0) for index in (held[0], held[2])))
    assert driver.after(50) == []


def test_a_death_costs_nothing_where_another_worker_has_the_row_too():
    driver, _, (second, first, third) = near_the_end()
    gone = WorkerDied("gone")
    assert driver.does(driver.failed(second, gone, by=0)) == []
    assert driver.does(driver.failed(third, gone, by=0)) == []
    assert (driver.state.deaths, driver.state.suspects) == (1, 0)
    assert driver.does(*(driver.failed(index, gone, by=1) for index in (first, second, third))) == []
    assert (driver.state.deaths, driver.state.suspects) == (2, 3)  # nobody else has them


def test_a_row_that_may_have_killed_who_took_it_over_is_left_where_it_is():
    driver, done, (second, first, third) = near_the_end()
    assert len(done) == 2
    for taken, rest in (((second, third), [("assign", 0, [(first, 0)])]), ((first,), [])):
        driver.does(*(driver.failed(index, WorkerDied("gone"), by=0) for index in taken), WorkerDown(0, coming=True))
        driver.now_s += 5
        assert driver.does(WorkerUp(0, 2)) == rest
    assert driver.after(5) == []
    assert (driver.state.deaths, driver.state.suspects) == (2, 0)


def test_a_row_that_has_its_answer_is_not_taken_over_once_more():
    driver, _, (_second, first, third) = near_the_end()
    driver.now_s += 5
    assert driver.does(driver.answered(third, by=0)) == [("assign", 0, [(first, 0)]), ("drop", 1, (third, 0))]


def test_a_row_that_came_back_from_one_worker_is_not_handed_out_again_while_another_has_it():
    driver, _, (*_, third) = near_the_end()
    assert driver.does(driver.failed(third, QueueFull("full"), by=0)) == [("rest", 0)]
    assert driver.does(driver.failed(third, QueueFull("full"), by=1)) == [("rest", 1)]
    assert driver.does(WorkerRested(0)) == [("assign", 0, [(third, 0)])]
    assert driver.tell(driver.failed(third, PromptTooLong("long"), by=0)) == [("emit", third, 0, "PromptTooLong")]


# ---- whole runs ----------------------------------------------------------------------------------------------------


class Simulation(SimulatedRun):
    """A run with simulated workers: each has a speed and a batch. (Those that die are in ``test_batch_suspects``.)"""

    def __init__(self, seed, *, count, workers, samples=1):
        super().__init__(seed, count=count, workers=workers, samples=samples)
        self.speed = {w: self.random.uniform(0.1, 3.0) for w in range(workers)}
        self.assigned = {}
        self.idle_while_waiting = 0

    def answer(self, worker, job):
        if job in self.holds[worker]:
            self.holds[worker].remove(job)
            fault = self.random.random()
            if fault < 0.02:
                event = RequestFailed(worker, job, PromptTooLong("long"))
            elif fault < 0.05:
                event = RequestFailed(worker, job, LeaseExpired("late"))
            else:
                event = Answered(worker, job, answer(f"{job.row.index}/{job.sample}"))
            self.act(self.state.handle(event))
            if self.read < self.count and not self.holds[worker] and worker in self.state.workers:
                self.idle_while_waiting += 1

    def act(self, actions):
        for action in actions:
            assert self.finish is None
            match action:
                case Assign(worker, jobs):
                    for job in jobs:
                        key = job.row.index, job.sample
                        self.assigned[key] = self.assigned.get(key, 0) + 1
                        self.holds[worker].append(job)
                        ahead = max(0, len(self.holds[worker]) - self.max_batch[worker])
                        delay = self.random.expovariate(1) * self.speed[worker] * (1 + ahead)
                        self.later(delay, "answer", worker, job)
                case Emit(result):
                    self.emitted.append(result)
                case Finish():
                    self.finish = action


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_answered_once(seed):
    shape = random.Random(seed)
    samples, count = shape.choice([1, 1, 3]), shape.randint(0, 150)
    run = Simulation(
        seed,
        count=count,
        workers=shape.randint(1, 4),
        samples=samples,
    ).run()
    assert run.finish == Finish("complete")
    assert sorted((r.row.index, r.sample) for r in run.emitted) == [
        (i, s) for i in range(count) for s in range(samples)
    ]
    for result in run.emitted:
        if result.answer is not None:
            assert result.answer.text == f"{result.row.index}/{result.sample}"
        else:
            assert isinstance(result.error, PromptTooLong | LeaseExpired)
    assert all(attempts <= MAX_ATTEMPTS for attempts in run.assigned.values())


@pytest.mark.parametrize("seed", range(10))
def test_without_deaths_no_worker_is_idle_while_rows_are_left(seed):
    assert Simulation(seed, count=300, workers=3).run().idle_while_waiting == 0


def test_a_result_holds_the_row_and_the_sample():
    row = rows(0)[0]
    state = BatchState(7)
    state.handle(WorkerUp(0, 1))
    (assign,) = state.handle(RowsRead([row]))
    job = assign.jobs[0]
    assert state.handle(Answered(0, job, answer())) == [Emit(RowResult(row, 0, job.seed, answer()), 0)]
