"""Workers of running pools replaced, added and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samplerpool.client.connection import PoolConnection
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.errors import InvalidParameter, StartFailed, UsageError, WorkerDraining
from samplerpool.pool.change import restart_workers, scale_workers
from samplerpool.wire.endpoint import find_pool
from samplerpool.wire.messages import Restart
from tests.process.pools import DEADLINE_S, answers, ask, begin, entry, launch, states, wait_until


def test_a_restart_replaces_all_workers_and_fails_no_request() -> None:
    pool = launch(workers=2, pool="p")
    before = find_pool("p")
    with PoolConnection.attach(before) as client:
        running = [begin(client, "[[tokens:60]][[pace:0.01]]", worker) for worker in (0, 1)]
        wait_until(lambda: all(call.text for call, _ in running), "both have begun")
        lines: list[str] = []
        assert restart_workers(before, None, 30.0, lines.append) == [0, 1]
        assert all(done.wait(DEADLINE_S) for _, done in running)
        assert [call.error for call, _ in running] == [None, None]
        assert [call.completion_tokens for call, _ in running] == [61, 61]
    after = find_pool("p")
    assert not {w.incarnation for w in before.workers} & {w.incarnation for w in after.workers}
    assert states("p") == ["ready", "ready"]
    assert [(ending.index, ending.requested) for ending in after.endings] == [(0, True), (1, True)]
    assert answers("p", 0)
    assert answers("p", 1)
    assert lines[-1] == "worker 1: ready"
    assert pool.stop(5.0) == "stopped"


def test_one_worker_can_be_replaced_and_refuses_new_requests_while_it_drains() -> None:
    pool = launch(workers=2, pool="p")
    before = find_pool("p")
    with PoolConnection.attach(before) as client:
        call, done = begin(client, "[[tokens:300]][[pace:0.01]]", 1)
        wait_until(lambda: call.text, "it has begun")
        ask_supervisor(before, Restart(1, 1, 30.0), DEADLINE_S)
        wait_until(lambda: entry("p", 1).state == "stopping", "it is to drain")
        # the supervisor says so before its signal arrives, and until then it still takes requests
        wait_until(lambda: isinstance(ask(client, "[[say:too late]]", 1).error, WorkerDraining), "it refuses")
        assert ask(client, "[[say:here]]", 0).text == "here"
        assert done.wait(DEADLINE_S)
        assert call.error is None
    wait_until(lambda: states("p") == ["ready", "ready"], "it is back")
    assert entry("p", 0).incarnation == before.workers[0].incarnation
    assert entry("p", 1).incarnation != before.workers[1].incarnation
    assert pool.stop(5.0) == "stopped"


def test_a_restart_does_not_wait_for_ever_for_what_runs() -> None:
    pool = launch(pool="p")
    with PoolConnection.attach(find_pool("p")) as client:
        call, done = begin(client, "[[tokens:2000]][[pace:0.05]]")
        wait_until(lambda: call.text, "it has begun")
        assert restart_workers(find_pool("p"), 0, 0.2, lambda _: None) == [0]
        assert done.wait(DEADLINE_S)
        assert isinstance(call.error, WorkerDraining)
    assert pool.stop(5.0) == "stopped"


def test_a_replacement_that_does_not_come_up_leaves_the_others_alone() -> None:
    pool = launch(workers=2, pool="p", max_restarts=0, engine_options={"load_s": 2.0})
    before = find_pool("p")
    with ThreadPoolExecutor(1) as thread:
        restart = thread.submit(restart_workers, before, None, 5.0, lambda _: None)
        wait_until(lambda: entry("p").incarnation != before.workers[0].incarnation, "the replacement exists")
        os.kill(entry("p").process.pid, signal.SIGKILL)
        with pytest.raises(StartFailed, match="Worker 0 did not become ready"):
            restart.result(DEADLINE_S)
    assert entry("p", 1).incarnation == before.workers[1].incarnation
    assert states("p") == ["failed", "ready"]
    assert restart_workers(find_pool("p"), 0, 5.0, lambda _: None) == [0]  # and comes back when asked to
    assert states("p") == ["ready", "ready"]
    assert pool.stop(5.0) == "stopped"


def test_a_pool_is_scaled_up_and_down() -> None:
    pool = launch(pool="p")
    first = entry("p")
    assert scale_workers(find_pool("p"), 3, 10.0, lambda _: None) == (1, 3)
    assert states("p") == ["ready"] * 3
    assert all(answers("p", worker) for worker in range(3))
    leaving = find_pool("p")
    with PoolConnection.attach(leaving) as client:
        call, done = begin(client, "[[tokens:60]][[pace:0.01]]", 2)
        wait_until(lambda: call.text, "it has begun")
        assert scale_workers(leaving, 1, 30.0, lambda _: None) == (3, 1)
        assert done.wait(DEADLINE_S)
        assert call.error is None
    now = find_pool("p")
    assert [worker.incarnation for worker in now.workers] == [first.incarnation]
    assert [(ending.index, ending.requested) for ending in now.endings] == [(1, True), (2, True)]
    assert not any(worker.process.alive() for worker in leaving.workers[1:])
    assert not any(Path(worker.endpoint.removeprefix("ipc://")).exists() for worker in leaving.workers[1:])
    assert pool.stop(5.0) == "stopped"


def test_what_cannot_be_changed_is_an_error_of_its_own() -> None:
    pool = launch(pool="p")
    with pytest.raises(UsageError, match="no worker 7"):
        restart_workers(pool.connection, 7, 1.0, lambda _: None)
    with pytest.raises(InvalidParameter, match="workers must be"):
        scale_workers(pool.connection, 2000, 1.0, lambda _: None)
    assert states("p") == ["ready"]
    assert pool.stop(5.0) == "stopped"


def run(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "samplerpool", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_commands_restart_and_scale() -> None:
    pool = launch(pool="p", workers=2)
    assert "Pool 'p': 1 worker replaced." in run("restart", "p", "--worker", "1")
    assert "Pool 'p': 2 workers replaced." in run("restart")
    assert "Pool 'p' had 2 workers and has 3." in run("scale", "p", "3")
    assert "There is no worker 9" in run("restart", "p", "--worker", "9", code=2)
    assert "0 is not in the range" in run("scale", "p", "0", code=2)
    assert "There is no pool 'q'" in run("scale", "q", "2", code=2)
    assert "Pool 'p' had 3 workers and has 2." in run("scale", "2")  # the only one that runs
    assert "'x' is not a valid integer" in run("scale", "p", "x", code=2)
    assert "Missing argument" in run("scale", code=2)
    assert "at most a pool's name" in run("scale", "p", "2", "3", code=2)
    assert pool.stop(5.0) == "stopped"
