"""Workers that die, hang, are replaced, added and removed: the policy's events in, actions out."""

from __future__ import annotations

import pytest

from samplerpool.errors import RestartLimitReached, StartFailed
from samplerpool.pool.events import (
    Action,
    Announce,
    DumpStacks,
    Ended,
    Kill,
    Publish,
    RestartRequested,
    ScaleRequested,
    Spawn,
    Terminate,
    Tick,
    WorkerExited,
    WorkerFailed,
    WorkerLoading,
    WorkerProgress,
    WorkerReady,
    WorkerSpawned,
)
from samplerpool.pool.policy import PoolPolicy
from samplerpool.pool.rules import LAST_CALL_S, MAX_DELAY_S, MIN_PROBES, STACKS_GRACE_S, PoolRules
from tests.unit.test_pool_policy import feed, new, only_end, running, states

# ---- deaths ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_started_again_and_the_others_go_on() -> None:
    policy = running(2)
    killed = "was killed by SIGKILL (the system does that when memory runs out)"
    assert feed(policy, WorkerExited(1, -9), now=10.0) == [
        Ended(1, False, killed),
        Announce(f"worker 1 died: it {killed}; it is started again in 0.2 s", trouble=True),
        Publish(),
    ]
    assert policy.state == "running"
    assert states(policy) == ["ready", "restarting"]
    assert policy.workers[1].detail == f"it {killed}"
    assert policy.deaths == 1
    assert policy.deadline == 10.25
    assert feed(policy, Tick(), now=10.2) == []
    assert feed(policy, Tick(), now=10.25) == [Spawn(1)]
    assert feed(policy, WorkerSpawned(1, 300), now=10.3) == [Publish()]
    assert feed(policy, WorkerReady(1, {}), now=11.0) == [Announce("worker 1: ready"), Publish()]
    assert states(policy) == ["ready", "ready"]
    assert (policy.workers[1].restarts, policy.workers[1].pid, policy.deadline) == (1, 300, None)


def test_each_death_doubles_the_wait_up_to_a_limit_and_jitter_takes_away_up_to_half() -> None:
    rules = PoolRules()
    waits = [rules.delay_s(deaths, jitter=0.0) for deaths in range(1, 9)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, MAX_DELAY_S, MAX_DELAY_S]
    assert [rules.delay_s(3, jitter) for jitter in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.5]
    assert rules.delay_s(10**6, 0.0) == MAX_DELAY_S


def die(policy: PoolPolicy, index: int, now: float) -> list[Action]:
    """A worker's process ends, and if that is to be, the next one comes."""
    actions = feed(policy, WorkerExited(index, 70, log_tail="last words"), now=now)
    if policy.workers[index].state == "restarting":
        feed(policy, Tick(), now=now + MAX_DELAY_S)
        feed(policy, WorkerSpawned(index, 200), now=now + MAX_DELAY_S)
    return actions


def test_a_worker_that_dies_too_often_has_failed_and_says_why() -> None:
    policy = running(2, max_restarts=2, restart_window_s=100.0)
    die(policy, 0, now=10.0)
    die(policy, 0, now=30.0)  # it was not ready: a process that does not come up is a death as well
    ended, announced, published = die(policy, 0, now=50.0)
    assert (ended, published) == (Ended(0, False, "exited with code 70"), Publish())
    assert states(policy) == ["failed", "ready"]
    assert policy.workers[0].detail == (
        "it exited with code 70, and that was its last start "
        "(limit: 2 restarts without 100 s of rest between them). Its log ends with:\nlast words"
    )
    assert announced == Announce(f"worker 0 has failed: {policy.workers[0].detail}", trouble=True)
    assert policy.state == "running"
    assert policy.deadline is None


def test_a_worker_that_was_ready_for_long_enough_begins_to_count_anew() -> None:
    policy = running(2, max_restarts=1, restart_window_s=100.0)
    die(policy, 0, now=10.0)
    feed(policy, WorkerReady(0, {}), now=30.0)
    die(policy, 0, now=130.0)
    assert (policy.workers[0].state, policy.workers[0].deaths) == ("starting", 1)
    feed(policy, WorkerReady(0, {}), now=150.0)
    die(policy, 0, now=249.9)
    assert policy.workers[0].state == "failed"


def test_when_all_have_failed_the_pool_ends_with_an_error() -> None:
    policy = running(2, max_restarts=0)
    feed(policy, WorkerExited(0, 1))
    assert states(policy) == ["failed", "ready"]
    end = only_end(feed(policy, WorkerExited(1, 70, "the end")))
    assert end.exit_code == 1
    assert isinstance(end.error, RestartLimitReached)
    assert "code 70" in end.error.message
    assert end.error.data == {"worker": 1, "log_tail": "the end"}


def test_a_restarted_worker_that_is_not_ready_in_time_is_killed_and_that_is_a_death() -> None:
    policy = running(1)
    feed(policy, WorkerExited(0, 1), now=10.0)
    feed(policy, Tick(), WorkerSpawned(0, 300), now=11.0)
    assert policy.deadline == 71.0
    assert feed(policy, WorkerLoading(0, "weights"), Tick(), now=70.9) == []
    assert feed(policy, Tick(), now=71.0) == [Kill(0)]
    assert feed(policy, Tick(), now=99.0) == []
    actions = feed(policy, WorkerExited(0, -9), now=99.0)
    assert actions[0] == Ended(0, False, "was not ready within 60 s, and was killed")
    assert policy.workers[0].state == "restarting"
    assert policy.workers[0].deaths == 2


def test_a_restarted_worker_that_cannot_be_spawned_is_tried_again() -> None:
    policy = running(1)
    feed(policy, WorkerExited(0, 1), now=10.0)
    feed(policy, Tick(), now=11.0)
    actions = feed(policy, WorkerFailed(0, StartFailed("no memory")), now=11.0)
    assert [type(action) for action in actions] == [Announce, Publish]
    assert "no memory" in policy.workers[0].detail
    assert policy.deadline == 11.5


def test_the_reason_that_a_dying_worker_gave_is_kept() -> None:
    policy = running(2)
    feed(policy, WorkerFailed(0, StartFailed("The engine is broken.")))
    assert feed(policy, WorkerExited(0, 1))[0] == Ended(0, False, "ended with: The engine is broken.")
    assert policy.workers[0].detail == "it ended with: The engine is broken."


# ---- hangs ----------------------------------------------------------------------------------------------------------


def look(policy: PoolPolicy, now: float, *reports: WorkerProgress) -> tuple[list[Action], float]:
    """Reports come in, then the supervisor looks; its actions, and when it looked."""
    feed(policy, *reports, now=now)
    now = max(now, policy.deadline or now)
    return feed(policy, Tick(), now=now), now


def test_a_worker_with_work_that_does_not_move_writes_its_stacks_is_killed_and_started_again() -> None:
    policy = running(2, hang_timeout_s=4.0)
    reports = (WorkerProgress(0, 7, True), WorkerProgress(1, 0, False))
    now = 1.0
    for _ in range(4):  # in the first, its steps had moved
        actions, now = look(policy, now, *reports)
        assert actions == []
    actions, now = look(policy, now, *reports)
    text = "made no progress for 4 s (--hang-timeout)"
    assert actions == [
        Announce(f"worker 0 hangs: it {text}; its stacks go to its log", trouble=True),
        DumpStacks(0),
        Publish(),
    ]
    feed(policy, *reports, now=now)
    assert Kill(0) in feed(policy, Tick(), now=now + STACKS_GRACE_S)
    assert feed(policy, WorkerExited(0, -9), now=now + 2)[0] == Ended(0, False, f"{text}, and was killed")
    assert states(policy) == ["restarting", "ready"]


def test_a_worker_that_moves_and_one_without_work_are_well() -> None:
    policy = running(2, hang_timeout_s=4.0)
    now = 1.0
    for steps in range(20):
        actions, now = look(policy, now, WorkerProgress(0, steps, True), WorkerProgress(1, 5, False))
        assert actions == []


def test_a_worker_that_says_nothing_at_all_hangs() -> None:
    policy = running(1, hang_timeout_s=4.0)
    now = 1.0
    for _ in range(4):
        actions, now = look(policy, now)
        assert actions == []
    assert DumpStacks(0) in look(policy, now)[0]


def test_time_in_which_the_supervisor_did_not_look_condemns_nobody() -> None:
    policy = running(1, hang_timeout_s=4.0)
    assert feed(policy, Tick(), now=3600.0) == []
    assert feed(policy, Tick(), now=7200.0) == []
    assert policy.deadline == 7201.0


def test_loading_is_no_hang_and_without_a_hang_timeout_nobody_looks() -> None:
    policy = running(1, hang_timeout_s=4.0, start_timeout_s=1000.0)
    feed(policy, WorkerExited(0, 1), now=10.0)
    feed(policy, Tick(), now=20.0)
    feed(policy, WorkerSpawned(0, 300), WorkerLoading(0, "weights"), now=20.0)
    now = 20.0
    for _ in range(50):
        actions, now = look(policy, now)
        assert actions == []
    assert running(1, hang_timeout_s=0.0).deadline is None


@pytest.mark.parametrize("hang_timeout_s", [0.4, 3.0, 120.0])
def test_a_hang_is_judged_by_several_looks_over_the_whole_time(hang_timeout_s: float) -> None:
    rules = PoolRules(hang_timeout_s=hang_timeout_s)
    assert rules.probes >= MIN_PROBES
    assert rules.probes * rules.probe_interval_s == pytest.approx(hang_timeout_s)
    assert rules.progress_interval_s <= rules.probe_interval_s


# ---- restart and scale ----------------------------------------------------------------------------------------------


def test_a_restart_replaces_one_worker_after_the_other() -> None:
    policy = running(2)
    assert feed(policy, RestartRequested(None, 30.0), now=10.0) == [
        Announce("worker 0: being replaced"),
        Terminate(0),
        Publish(),
    ]
    assert policy.replacing == [0, 1]
    assert states(policy) == ["stopping", "ready"]
    assert feed(policy, WorkerExited(0, 0), now=12.0) == [Ended(0, True, "exited with code 0"), Spawn(0)]
    assert feed(policy, WorkerSpawned(0, 300), now=12.0) == [Publish()]
    assert feed(policy, WorkerReady(0, {}), now=13.0) == [
        Announce("worker 0: ready"),
        Publish(),
        Announce("worker 1: being replaced"),
        Terminate(1),
        Publish(),
    ]
    feed(policy, WorkerExited(1, 0), WorkerSpawned(1, 301), WorkerReady(1, {}), now=15.0)
    assert policy.replacing == []
    assert states(policy) == ["ready", "ready"]
    assert policy.deaths == 0
    assert [worker.restarts for worker in policy.workers.values()] == [1, 1]


def test_a_replaced_worker_that_does_not_finish_in_time_is_hurried_then_killed() -> None:
    policy = running(2)
    feed(policy, RestartRequested(1, 30.0), now=10.0)
    assert feed(policy, Tick(), now=39.9) == []
    assert feed(policy, Tick(), now=40.0) == [Terminate(1)]
    assert Kill(1) in feed(policy, Tick(), now=40.0 + LAST_CALL_S)
    assert feed(policy, WorkerExited(1, -9), now=43.0)[1:] == [Spawn(1)]
    assert states(policy) == ["ready", "starting"]


def test_a_replacement_that_dies_calls_the_rest_off() -> None:
    policy = running(3)
    feed(policy, RestartRequested(None, 30.0), WorkerExited(0, 0), WorkerSpawned(0, 300), now=10.0)
    actions = feed(policy, WorkerExited(0, 1), now=11.0)
    assert Announce("worker 0 did not come back; not replaced: 1, 2", trouble=True) in actions
    assert policy.replacing == []
    assert states(policy) == ["restarting", "ready", "ready"]


def test_a_restart_brings_a_failed_worker_back() -> None:
    policy = running(2, max_restarts=0)
    feed(policy, WorkerExited(1, 1))
    assert feed(policy, RestartRequested(1, 30.0)) == [Announce("worker 1: being replaced"), Spawn(1)]
    feed(policy, WorkerSpawned(1, 300), WorkerReady(1, {}))
    assert states(policy) == ["ready", "ready"]


def test_a_pool_grows() -> None:
    policy = running(1)
    assert feed(policy, ScaleRequested(3, 30.0)) == [
        Announce("going from 1 to 3 workers"),
        Spawn(1),
        Spawn(2),
        Publish(),
    ]
    feed(policy, WorkerSpawned(1, 301), WorkerSpawned(2, 302))
    assert states(policy) == ["ready", "starting", "starting"]
    assert feed(policy, WorkerReady(2, {})) == [Announce("worker 2: ready"), Publish()]
    feed(policy, WorkerExited(1, 1))  # one that does not come up does not end the pool
    assert states(policy) == ["ready", "restarting", "ready"]


def test_a_pool_shrinks_from_its_end_and_those_that_go_finish_first() -> None:
    policy = running(3)
    assert feed(policy, ScaleRequested(1, 30.0), now=10.0) == [
        Announce("going from 3 to 1 workers"),
        Terminate(1),
        Terminate(2),
        Publish(),
    ]
    assert states(policy) == ["ready", "stopping", "stopping"]
    assert feed(policy, WorkerExited(1, 0)) == [
        Ended(1, True, "exited with code 0"),
        Announce("worker 1: removed"),
        Publish(),
    ]
    feed(policy, WorkerExited(2, 0))
    assert list(policy.workers) == [0]
    assert policy.deadline is None


def test_a_worker_that_was_on_its_way_out_comes_back_with_a_new_process() -> None:
    policy = running(2)
    feed(policy, ScaleRequested(1, 30.0))
    assert feed(policy, ScaleRequested(2, 30.0))[1:] == [Publish()]
    assert feed(policy, WorkerExited(1, 0))[1:] == [Spawn(1)]


def test_a_worker_that_waits_for_its_restart_leaves_at_once() -> None:
    policy = running(2)
    feed(policy, WorkerExited(1, 1))
    assert Announce("worker 1: removed") in feed(policy, ScaleRequested(1, 30.0))
    assert list(policy.workers) == [0]
    assert policy.deadline is None


def test_scaling_to_a_failed_worker_brings_it_back() -> None:
    policy = running(2, max_restarts=0)
    feed(policy, WorkerExited(0, 1))
    assert Spawn(0) in feed(policy, ScaleRequested(1, 30.0))


def test_what_cannot_be_changed_is_refused() -> None:
    starting = new(1)
    starting.start(0.0)
    for event in (RestartRequested(None, 1.0), ScaleRequested(2, 1.0)):
        assert "only a running one" in str(starting.refusal(event))
        assert feed(starting, event) == []
    policy = running(2)
    assert "There is no worker 2; the pool has 0, 1." in str(policy.refusal(RestartRequested(2, 1.0)))
    assert policy.refusal(RestartRequested(1, 1.0)) is None
