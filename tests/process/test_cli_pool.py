"""The command line around a pool, as a user types it, with the scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool import SyncSampler
from samplerpool.errors import WorkerError
from samplerpool.wire.endpoint import ConnectionFile, find_pool, running_pools
from tests.process.conftest import eventually

SAMPLERPOOL = [sys.executable, "-m", "samplerpool"]
SCRIPTED = ["launch", "--engine", "scripted"]
TIMEOUT_S = 30


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SAMPLERPOOL, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def gone(connection: ConnectionFile) -> bool:
    return not any(p.alive() for p in (connection.supervisor, *(worker.process for worker in connection.workers)))


@contextmanager
def terminal(*arguments: str) -> Iterator[Any]:
    child = pexpect.spawn(SAMPLERPOOL[0], [*SAMPLERPOOL[1:], *arguments], timeout=TIMEOUT_S, encoding="utf-8")
    try:
        yield child
    finally:
        child.close(force=True)


@pytest.fixture
def pool() -> Iterator[ConnectionFile]:
    """A detached pool of two."""
    run(*SCRIPTED, "--detach", "--workers", "2")
    connection = find_pool("default")
    yield connection
    run("stop", "--all")
    assert gone(connection)


def test_the_life_of_a_detached_pool() -> None:
    launched = run(*SCRIPTED, "--detach", "--workers", "2", "--pool", "mine")
    assert "Pool 'mine' is ready" in launched.stderr
    assert "samplerpool stop mine" in launched.stderr
    connection = find_pool("mine")
    assert not gone(connection)
    stopped = run("stop", "mine")
    assert stopped.stdout == "Pool 'mine' (2 workers) stopped.\n"
    assert gone(connection)
    assert "No pool is running" in run("status").stdout
    assert json.loads(run("status", "--json").stdout) == []


def test_status_shows_each_worker(pool: ConnectionFile) -> None:
    shown = run("status").stdout
    assert "Pool default: running, scripted, engine scripted, 2 workers" in shown
    for worker in pool.workers:
        assert f"{worker.process.pid}" in shown
    [told] = json.loads(run("status", "default", "--json").stdout)
    assert {"pool", "pid", "state", "model", "engine", "workers"} <= set(told)
    for worker in told["workers"]:
        assert {"index", "pid", "device", "state", "running", "queued", "tokens_per_s", "memory_bytes"} <= set(worker)
        assert worker["state"] == "ready"


def test_status_tells_of_a_failed_worker() -> None:
    run(*SCRIPTED, "--detach", "--workers", "2", "--max-restarts", "0")
    pool = find_pool("default")
    os.kill(pool.workers[1].process.pid, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    while find_pool("default").workers[1].state != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shown = run("status").stdout
    assert "failed" in shown
    assert "worker 1: it was killed by SIGKILL" in shown
    assert "samplerpool logs default --worker 1" in shown
    run("stop")


def test_status_removes_what_a_killed_pool_left(own_folders: Path) -> None:
    run(*SCRIPTED, "--detach")
    connection = find_pool("default")
    os.kill(connection.supervisor.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while not gone(connection):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list((own_folders / "run").glob("*.json"))
    assert "No pool is running" in run("status").stdout
    assert [p.name for p in (own_folders / "run").iterdir() if p.suffix != ".lock"] == []
    run(*SCRIPTED, "--detach")  # the name is free again
    run("stop")


def test_names_that_are_taken_or_unknown(pool: ConnectionFile) -> None:
    for detach in ([], ["--detach"]):
        taken = run(*SCRIPTED, *detach, code=2)
        assert "A pool named 'default' is already running" in taken.stderr
    assert "There is no pool 'other' (running: default)" in run("status", "other", code=2).stderr
    assert "There is no pool 'other'" in run("stop", "other", code=2).stderr
    assert not gone(pool)


def test_stop_all() -> None:
    run(*SCRIPTED, "--detach", "--pool", "a")
    run(*SCRIPTED, "--detach", "--pool", "b")
    assert "2 pools are running: a, b" in run("stop", code=2).stderr
    assert run("stop", "--all").stdout.splitlines() == ["Pool 'a' (1 worker) stopped.", "Pool 'b' (1 worker) stopped."]
    assert run("stop", "--all").stdout == "No pool is running.\n"


def test_logs_of_a_running_pool_and_of_one_that_ran(pool: ConnectionFile) -> None:
    both = run("logs").stdout
    assert "worker-0   | " in both
    assert "worker-1   | " in both
    assert "supervisor | " in both
    one = run("logs", "default", "--worker", "1", "--lines", "1").stdout.splitlines()
    assert len(one) == 1
    assert "There is no log of a worker 7" in run("logs", "--worker", "7", code=2).stderr
    run("stop")
    afterwards = run("logs")
    assert "is not running" in afterwards.stderr
    assert "stopped" in afterwards.stdout
    assert "no logs of a pool 'other'" in run("logs", "other", code=2).stderr


def test_following_logs_ends_with_the_pool(pool: ConnectionFile) -> None:
    command = [*SAMPLERPOOL, "logs", "--follow", "--worker", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert "starting" in follower.stdout.readline()
        run("stop")
        rest, _ = follower.communicate(timeout=TIMEOUT_S)
    assert follower.returncode == 0
    assert rest.splitlines()[-1].endswith("stopped")


def test_a_launch_that_fails_shows_the_log_and_leaves_nothing() -> None:
    for detach in ([], ["--detach"]):
        failed = run(*SCRIPTED, "--engine-option", "fail_at_start=true", *detach, code=1)
        assert failed.stderr.count("Error: ") == 1
        assert "worker-0.log ends with:" in failed.stderr
    assert running_pools() == []


def test_a_wrong_model_path_is_one_sentence() -> None:
    failed = run("launch", "/nowhere/at/all", code=2)
    assert len(failed.stderr.splitlines()) == 1
    assert "/nowhere/at/all" in failed.stderr


def test_a_foreground_pool_runs_until_ctrl_c() -> None:
    with terminal(*SCRIPTED, "--workers", "2") as child:
        child.expect_exact("Running until Ctrl-C.")
        connection = find_pool("default")
        assert connection.supervisor.pid == child.pid
        child.sendintr()
        child.expect_exact("Pool 'default' stopped.")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    assert gone(connection)


def test_a_foreground_pool_that_is_suspended_serves_and_can_be_stopped() -> None:
    with terminal(*SCRIPTED) as child:
        child.expect_exact("Running until Ctrl-C.")
        os.kill(find_pool("default").supervisor.pid, signal.SIGSTOP)  # as Ctrl-Z does
        assert run("chat", "--once", "[[say:hello]]").stdout == "hello\n"
        assert "stopped" in run("stop").stdout
        child.expect(pexpect.EOF)


def test_ctrl_c_during_a_foreground_launch_leaves_nothing() -> None:
    with terminal(*SCRIPTED, "--engine-option", "load_s=60") as child:
        child.expect_exact("worker 0: starting")
        child.sendintr()
        child.expect_exact("nothing is left running")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 130
    assert running_pools() == []


def test_ctrl_c_during_a_detached_launch_leaves_nothing() -> None:
    with terminal(*SCRIPTED, "--engine-option", "load_s=60", "--detach") as child:
        child.expect_exact("worker 0: starting")
        connection = find_pool("default")
        child.sendintr()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 130
    assert gone(connection)


def test_ctrl_c_in_a_stop_that_waits_says_what_becomes_of_the_pool() -> None:
    with SyncSampler.launch(engine="scripted", devices="cpu", pool="p") as sampler:
        stream = sampler.generate("[[tokens:100000]][[pace:0.01]]", max_new_tokens=100_000)
        next(stream)
        with terminal("stop", "p", "--timeout", "600") as child:
            eventually(lambda: find_pool("p").state == "stopping", "it is stopping")
            child.sendintr()
            child.expect_exact("Pool 'p' goes on stopping without this command; samplerpool stop p --timeout 0 does")
            child.expect(pexpect.EOF)
            child.wait()
            assert child.exitstatus == 130
        assert "stopped" in run("stop", "p", "--timeout", "0").stdout
        with pytest.raises(WorkerError, match="was stopped"):
            list(stream)


def test_a_closed_terminal_stops_a_foreground_pool() -> None:
    with terminal(*SCRIPTED) as child:
        child.expect_exact("Running until Ctrl-C.")
        connection = find_pool("default")
    deadline = time.monotonic() + TIMEOUT_S
    while not gone(connection):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running_pools() == []


def test_killing_the_launcher_of_a_pool_that_still_loads_ends_the_pool() -> None:
    command = [*SAMPLERPOOL, *SCRIPTED, "--engine-option", "load_s=60", "--detach"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stderr is not None
        assert "starting" in launcher.stderr.readline()
        connection = find_pool("default")
        launcher.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while not gone(connection):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import sys; from samplerpool.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'zmq', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert done.stdout.splitlines()[-1] == "[]"
