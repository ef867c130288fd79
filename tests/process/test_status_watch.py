"""``samplerpool status --watch`` as it is typed: in a pseudo-terminal and into a pipe; the fields of ``--json``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pexpect

from samplerpool.pool.report import POOL_FIELDS, WORKER_FIELDS
from tests.process.conftest import DEADLINE_S
from tests.process.pools import entry, launch, stopped, wait_until

SAMPLERPOOL = [sys.executable, "-m", "samplerpool"]


@contextmanager
def watching(*options: str, rows: int = 24, columns: int = 90) -> Iterator[Any]:
    command = [*SAMPLERPOOL[1:], "status", "--watch", *options]
    child = pexpect.spawn(
        SAMPLERPOOL[0],
        command,
        env={**os.environ, "TERM": "xterm"},
        dimensions=(rows, columns),
        encoding="utf-8",
        timeout=2 * DEADLINE_S,
    )
    try:
        yield child
    finally:
        child.close(force=True)


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: stopped(pid), "it is stopped")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_pools_come_change_and_go_before_the_watcher_s_eyes() -> None:
    with watching() as child:
        child.expect_exact("No pool is running")
        pool = launch(workers=2, pool="one", max_restarts=0)
        child.expect_exact("Pool one: running")
        child.expect(r"1 .*ready")
        os.kill(entry("one", 1).process.pid, signal.SIGKILL)
        child.expect_exact("failed")
        child.expect_exact("was killed by SIGKILL")
        child.expect_exact("samplerpool logs one --worker 1")
        pool.stop(5.0)
        child.expect_exact("No pool is running")
        child.sendintr()
        child.expect(pexpect.EOF)
        assert "Traceback" not in child.before
        child.wait()
        assert child.exitstatus == 0


def test_a_named_pool_is_waited_for() -> None:
    with watching("late") as child:
        child.expect_exact("No pool is running")
        other, pool = launch(pool="early"), launch(pool="late")
        child.expect_exact("Pool late: running")
        assert "early" not in child.before
        pool.stop(5.0)
        other.stop(5.0)
        child.expect_exact("No pool is running")


def test_a_worker_that_does_not_answer_does_not_stop_the_view() -> None:
    pool = launch(workers=2, pool="p")
    with watching("p") as child, paused(entry("p", 0).process.pid):
        child.expect_exact("did not answer within 1 s")
        child.expect_exact("no progress for")
    pool.stop(5.0)


def test_ctrl_c_in_the_middle_of_a_look_is_no_error() -> None:
    pool = launch(pool="p")
    with watching("p") as child, paused(entry("p").process.pid):
        child.expect_exact("did not answer")
        child.sendintr()
        child.expect(pexpect.EOF)
        assert "Traceback" not in child.before
        child.wait()
        assert child.exitstatus == 0
    pool.stop(5.0)


def test_into_a_pipe_goes_a_line_a_change() -> None:
    with subprocess.Popen([*SAMPLERPOOL, "status", "--watch"], stdout=subprocess.PIPE, text=True) as watcher:
        too_late = threading.Timer(2 * DEADLINE_S, watcher.kill)
        too_late.start()
        assert watcher.stdout is not None
        assert watcher.stdout.readline().endswith(" no pool is running\n")
        pool = launch(pool="p")
        ready = " p: running | worker 0 ready, 0 running, 0 queued, 0.0 tokens/s\n"
        while not (line := watcher.stdout.readline()).endswith(ready):
            assert line
        pool.stop(5.0)
        while not (line := watcher.stdout.readline()).endswith(" p: not running\n"):
            assert line
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(DEADLINE_S) == 0
        too_late.cancel()
        too_late.join()


def test_the_fields_for_programs() -> None:
    pool = launch(workers=2, pool="p")
    with paused(entry("p", 1).process.pid):
        command = [*SAMPLERPOOL, "status", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    [told] = json.loads(done.stdout)
    assert list(told) == list(POOL_FIELDS)
    assert [list(worker) for worker in told["workers"]] == [list(WORKER_FIELDS)] * 2
    first, second = told["workers"]
    assert (first["running"], first["problem"], first["restarts"], first["hangs"]) == (0, None, 0, 0)
    assert first["stalled_s"] is not None
    assert (second["running"], second["state"]) == (None, "ready")
    assert "did not answer" in second["problem"]
    pool.stop(5.0)
