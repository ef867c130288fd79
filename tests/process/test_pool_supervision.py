"""Workers that are killed, crash, hang or are stopped: real processes, and what the supervisor makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from samplerpool.client.connection import PoolConnection
from samplerpool.errors import EngineBroken
from samplerpool.pool.launcher import describe_pool
from samplerpool.wire.endpoint import find_pool
from samplerpool.worker.__main__ import MAX_BREAKS
from tests.process.pools import (
    alive,
    answers,
    ask,
    begin,
    entry,
    launch,
    states,
    stopped,
    wait_for_successor,
    wait_until,
)


def test_a_killed_worker_is_started_again_and_serves() -> None:
    pool = launch(workers=2, pool="p")
    first = entry("p")
    os.kill(first.process.pid, signal.SIGKILL)
    second = wait_for_successor(first, "p")
    assert second.endpoint != first.endpoint
    assert not Path(first.endpoint.removeprefix("ipc://")).exists()
    assert answers("p", 0)
    assert answers("p", 1)
    [ending] = find_pool("p").endings
    assert (ending.index, ending.incarnation, ending.requested) == (0, first.incarnation, False)
    assert "SIGKILL" in ending.reason
    told = describe_pool(find_pool("p"))
    assert [worker["restarts"] for worker in told["workers"]] == [1, 0]
    log = Path(second.log).read_text()
    assert log.count("INFO samplerpool.worker: ready") == 2  # the first one's words are kept
    assert "worker 0 is started again" in log
    assert pool.stop(5.0) == "stopped"


def test_a_worker_that_crashes_over_and_over_has_failed_and_the_other_goes_on() -> None:
    pool = launch(workers=2, pool="p", max_restarts=2)
    for _ in range(3):
        before = entry("p")
        with PoolConnection.attach(find_pool("p")) as client:
            ask(client, "[[crash]]", 0)
        wait_until(
            lambda before=before: (
                entry("p").state == "failed"  # type: ignore[misc]
                or (entry("p").state == "ready" and entry("p").incarnation != before.incarnation)
            ),
            "it is back, or given up",
        )
    assert states("p") == ["failed", "ready"]
    detail = entry("p").detail
    assert "exited with code 70" in detail
    assert "limit: 2 restarts" in detail
    assert "Its log ends with:" in detail
    assert "worker 0 is started again" in detail
    assert "worker 0 has failed" in Path(pool.connection.log_folder, "supervisor.log").read_text()
    assert answers("p", 1)
    assert [ending.requested for ending in find_pool("p").endings] == [False] * 3
    assert pool.stop(5.0) == "stopped"


def test_a_worker_whose_engine_does_nothing_but_raise_is_replaced() -> None:
    pool = launch(pool="p")
    first = entry("p")
    with PoolConnection.attach(find_pool("p")) as client:
        for _ in range(MAX_BREAKS - 1):
            assert isinstance(ask(client, "[[raise]]").error, EngineBroken)
        assert ask(client, "[[say:fine]]").text == "fine"  # so it is not beyond repair
        for _ in range(MAX_BREAKS):
            assert isinstance(ask(client, "[[raise]]").error, EngineBroken)
    wait_for_successor(first, "p")
    [ending] = find_pool("p").endings
    assert (ending.incarnation, ending.requested) == (first.incarnation, False)
    assert ending.reason.startswith(f"ended with: The engine raised in {MAX_BREAKS} steps in a row")
    assert answers("p")
    assert pool.stop(5.0) == "stopped"


def test_a_worker_that_does_not_come_up_again_has_failed_too() -> None:
    pool = launch(workers=2, pool="p", max_restarts=1, engine_options={"load_s": 2.0})
    victim = entry("p")
    os.kill(victim.process.pid, signal.SIGKILL)
    wait_until(lambda: entry("p").incarnation != victim.incarnation, "the next process exists")
    os.kill(entry("p").process.pid, signal.SIGKILL)
    wait_until(lambda: entry("p").state == "failed", "it is given up")
    assert answers("p", 1)
    assert pool.stop(5.0) == "stopped"


def test_a_worker_that_hangs_writes_its_stacks_and_is_replaced() -> None:
    pool = launch(workers=2, pool="p", hang_timeout_s=1.0)
    victim = entry("p")
    with PoolConnection.attach(find_pool("p")) as client:
        _, done = begin(client, "[[tokens:50]][[hang:3]]", 0)
        assert done.wait(30.0)
    wait_for_successor(victim, "p")
    log = Path(victim.log).read_text()
    assert "most recent call first" in log
    assert "_misbehave" in log  # where it hangs
    [ending] = find_pool("p").endings
    assert not ending.requested
    assert "made no progress for 1 s" in ending.reason
    assert entry("p", 1).incarnation == pool.connection.workers[1].incarnation
    assert answers("p", 0)
    assert pool.stop(5.0) == "stopped"


def test_a_worker_is_noticed_to_hang_though_its_client_has_left() -> None:
    pool = launch(pool="p", hang_timeout_s=1.0)
    victim = entry("p")
    with PoolConnection.attach(find_pool("p")) as client:
        call, _ = begin(client, "[[tokens:50]][[hang:3]]", 0)
        wait_until(lambda: call.text, "it has begun")
        client.abort([call])
    wait_for_successor(victim, "p")
    assert pool.stop(5.0) == "stopped"


def test_slow_streams_and_long_loading_are_no_hangs() -> None:
    pool = launch(pool="p", hang_timeout_s=1.0, engine_options={"load_s": 2.5})
    with PoolConnection.attach(pool.connection) as client:
        assert ask(client, "[[tokens:3]][[pace:1.2]]").completion_tokens == 4
    victim = entry("p")
    os.kill(victim.process.pid, signal.SIGKILL)
    wait_for_successor(victim, "p")
    assert len(find_pool("p").endings) == 1
    assert pool.stop(5.0) == "stopped"


def test_a_worker_that_is_stopped_for_good_is_replaced() -> None:
    pool = launch(pool="p", hang_timeout_s=1.0)
    victim = entry("p")
    os.kill(victim.process.pid, signal.SIGSTOP)
    wait_for_successor(victim, "p")
    assert not victim.process.alive()
    assert pool.stop(5.0) == "stopped"


def test_a_worker_that_is_stopped_for_less_than_the_hang_timeout_loses_nothing() -> None:
    pool = launch(pool="p", hang_timeout_s=20.0)
    worker = entry("p")
    with PoolConnection.attach(pool.connection) as client:
        call, done = begin(client, "[[tokens:40]][[pace:0.02]]")
        wait_until(lambda: call.text, "it has begun")
        os.kill(worker.process.pid, signal.SIGSTOP)
        wait_until(lambda: stopped(worker.process.pid), "it is stopped")
        subprocess.run(["sleep", "2"], check=True)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert done.wait(30.0)
    assert call.error is None
    assert call.completion_tokens == 41
    assert entry("p").incarnation == worker.incarnation
    assert pool.stop(5.0) == "stopped"


def test_a_supervisor_that_was_stopped_condemns_nobody() -> None:
    pool = launch(workers=2, pool="p", hang_timeout_s=1.0)
    before = find_pool("p")
    with PoolConnection.attach(before) as client:
        _, done = begin(client, "[[tokens:300]][[pace:0.02]]")
        os.kill(before.supervisor.pid, signal.SIGSTOP)
        subprocess.run(["sleep", "3"], check=True)  # three hang timeouts
        os.kill(before.supervisor.pid, signal.SIGCONT)
        assert done.wait(60.0)
    after = find_pool("p")
    assert [w.incarnation for w in after.workers] == [w.incarnation for w in before.workers]
    assert after.endings == ()
    assert pool.stop(5.0) == "stopped"


def test_the_kernel_prefers_workers_to_their_supervisor() -> None:
    pool = launch()
    scores = [
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (pool.connection.supervisor.pid, pool.connection.workers[0].process.pid)
    ]
    assert scores[1] > scores[0] or scores == [1000, 1000]
    assert pool.stop(5.0) == "stopped"


@pytest.mark.full
@pytest.mark.parametrize("time", range(20))
def test_killed_twenty_times_over(time: int) -> None:
    pool = launch(workers=2, pool="p")
    for index in (0, 1, 0):
        victim = entry("p", index)
        os.kill(victim.process.pid, signal.SIGKILL)
        wait_for_successor(victim, "p")
        assert answers("p", index)
    assert pool.stop(5.0) == "stopped"
    assert alive(pool.connection) == []
