"""The pool's policy: events in, lists of actions out."""

from __future__ import annotations

from typing import Any

import pytest

from samplerpool.errors import ModelNotFound, StartFailed
from samplerpool.pool.events import (
    Action,
    Announce,
    End,
    Ended,
    Event,
    HurryRequested,
    Kill,
    Open,
    Publish,
    Spawn,
    StopRequested,
    Terminate,
    Tick,
    WorkerExited,
    WorkerFailed,
    WorkerLoading,
    WorkerReady,
    WorkerSpawned,
    describe_exit,
)
from samplerpool.pool.policy import PoolPolicy
from samplerpool.pool.rules import LAST_CALL_S, START_FAILURE_GRACE_S, PoolRules


def feed(policy: PoolPolicy, *events: Event, now: float = 1.0) -> list[Action]:
    """The actions upon the last of the events."""
    actions: list[Action] = []
    for event in events:
        actions = policy.handle(event, now)
    return actions


def new(workers: int, **rules: Any) -> PoolPolicy:
    return PoolPolicy(
        workers, PoolRules(**{"start_timeout_s": 60.0, "hang_timeout_s": 0.0, **rules}), jitter=lambda: 0.0
    )


def running(workers: int, **rules: Any) -> PoolPolicy:
    policy = new(workers, **rules)
    policy.start(0.0)
    feed(policy, *(WorkerSpawned(index, 100 + index) for index in range(workers)))
    feed(policy, *(WorkerReady(index, {}) for index in range(workers)))
    return policy


def states(policy: PoolPolicy) -> list[str]:
    return [worker.state for worker in policy.workers.values()]


def only_end(actions: list[Action]) -> End:
    ends = [action for action in actions if isinstance(action, End)]
    assert len(ends) == 1
    assert actions[-1] is ends[0]
    return ends[0]


def test_workers_are_spawned_one_after_the_other_and_open_when_all_are_ready() -> None:
    policy = new(2)
    assert policy.start(10.0) == [Publish(), Spawn(0)]
    assert policy.deadline == 70.0
    assert feed(policy, WorkerSpawned(0, 100)) == [Publish(), Spawn(1)]
    assert feed(policy, WorkerSpawned(1, 101)) == [Publish()]
    assert feed(policy, WorkerLoading(1, "weights")) == [Publish(), Announce("worker 1: weights")]
    assert feed(policy, WorkerReady(1, {"model": "m"})) == [Announce("worker 1: ready"), Publish()]
    assert feed(policy, WorkerReady(0, {})) == [Announce("worker 0: ready"), Publish(), Open()]
    assert policy.state == "running"
    assert policy.deadline is None
    assert states(policy) == ["ready", "ready"]
    assert policy.workers[1].description == {"model": "m"}


def test_a_worker_that_dies_at_the_start_fails_the_launch() -> None:
    policy = new(2)
    policy.start(0.0)
    feed(policy, WorkerSpawned(0, 100), WorkerSpawned(1, 101))
    assert feed(policy, WorkerExited(0, 3), now=5.0) == [
        Ended(0, False, "exited with code 3"),
        Terminate(1),
        Publish(),
    ]
    assert policy.deadline == 5.0 + START_FAILURE_GRACE_S
    end = only_end(feed(policy, WorkerExited(1, 0)))
    assert end.exit_code == 1
    assert isinstance(end.error, StartFailed)
    assert "Worker 0" in end.error.message
    assert "code 3" in end.error.message
    assert end.error.data == {"worker": 0}


def test_the_error_that_a_worker_reports_is_the_one_that_the_launch_ends_with() -> None:
    policy = new(1)
    policy.start(0.0)
    feed(policy, WorkerSpawned(0, 100))
    error = ModelNotFound("There is no model at '/nowhere'.")
    assert feed(policy, WorkerFailed(0, error)) == [Terminate(0), Publish()]
    assert feed(policy, WorkerExited(0, 1)) == [
        Ended(0, True, "ended with: There is no model at '/nowhere'."),
        Publish(),
        End(1, error),
    ]


def test_a_worker_that_cannot_be_spawned_ends_the_launch_without_spawning_more() -> None:
    policy = new(3)
    policy.start(0.0)
    error = StartFailed("no memory")
    assert feed(policy, WorkerFailed(0, error)) == [Publish(), End(1, error)]


def test_a_start_that_takes_too_long_fails_and_says_who_was_late() -> None:
    policy = new(2)
    policy.start(0.0)
    feed(policy, WorkerSpawned(0, 100), WorkerSpawned(1, 101), WorkerReady(0, {}), WorkerLoading(1, "reading weights"))
    assert feed(policy, Tick(), now=59.9) == []
    assert feed(policy, Tick(), now=60.0) == [Terminate(0), Terminate(1), Publish()]
    end = only_end(feed(policy, WorkerExited(0, 0), WorkerExited(1, -15)))
    assert isinstance(end.error, StartFailed)
    assert "worker 1: reading weights" in end.error.message
    assert "worker 0" not in end.error.message
    assert end.error.data == {"worker": 1}


def test_a_stop_lets_workers_finish_then_hurries_them_then_kills() -> None:
    policy = running(2)
    assert feed(policy, StopRequested(30.0, "SIGTERM"), now=10.0) == [
        Announce("stopping: SIGTERM"),
        Terminate(0),
        Terminate(1),
        Publish(),
    ]
    assert feed(policy, WorkerExited(0, 0)) == [Ended(0, True, "exited with code 0"), Publish()]
    assert feed(policy, Tick(), now=39.9) == []
    assert feed(policy, Tick(), now=40.0) == [Terminate(1)]
    assert policy.deadline == 40.0 + LAST_CALL_S
    assert Kill(1) in feed(policy, Tick(), now=40.0 + LAST_CALL_S)
    assert policy.deadline is None
    assert only_end(feed(policy, WorkerExited(1, -9))) == End(0)
    assert policy.deaths == 0


def test_a_stop_with_less_time_shortens_the_one_before_and_more_time_does_not_lengthen_it() -> None:
    policy = running(1)
    feed(policy, StopRequested(30.0, ""), now=0.0)
    assert feed(policy, StopRequested(5.0, ""), now=1.0) == []
    assert policy.deadline == 6.0
    feed(policy, StopRequested(100.0, ""), now=2.0)
    assert policy.deadline == 6.0


def test_a_second_signal_drops_what_runs_and_a_third_kills() -> None:
    policy = running(2)
    feed(policy, StopRequested(30.0, "SIGINT"), now=10.0)
    assert feed(policy, HurryRequested("SIGINT while stopping"), now=11.0) == [
        Announce("dropping what runs: SIGINT while stopping"),
        Terminate(0),
        Terminate(1),
    ]
    assert policy.deadline == 11.0 + LAST_CALL_S
    assert feed(policy, HurryRequested("SIGINT while stopping"), now=11.5) == [
        Announce("killing the workers: SIGINT while stopping"),
        Kill(0),
        Kill(1),
    ]
    assert policy.deadline is None


def test_a_stop_ends_workers_that_wait_for_their_restart() -> None:
    policy = running(2)
    feed(policy, WorkerExited(0, 1))
    assert feed(policy, StopRequested(10.0, "asked to")) == [Announce("stopping: asked to"), Terminate(1), Publish()]
    assert only_end(feed(policy, WorkerExited(1, 0))) == End(0)


def test_a_stop_while_starting_is_no_error() -> None:
    policy = new(2)
    policy.start(0.0)
    feed(policy, WorkerSpawned(0, 100))
    assert Terminate(0) in feed(policy, StopRequested(10.0, "SIGINT"))
    assert Terminate(1) in feed(policy, WorkerSpawned(1, 101))
    feed(policy, WorkerExited(0, -15))
    assert only_end(feed(policy, WorkerExited(1, -15))) == End(0)


def test_late_reports_of_a_stopping_worker_change_nothing() -> None:
    policy = running(1)
    feed(policy, StopRequested(10.0, ""))
    assert feed(policy, WorkerLoading(0, "again")) == []
    assert feed(policy, WorkerReady(0, {})) == []
    assert policy.state == "stopping"


@pytest.mark.parametrize(
    ("returncode", "text"),
    [(0, "exited with code 0"), (-15, "was killed by SIGTERM"), (-99, "was killed by signal 99")],
)
def test_how_a_process_ended(returncode: int, text: str) -> None:
    assert describe_exit(returncode) == text
