"""Whoever is killed, in whatever combination: nothing is left that the next look does not clean up."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from samplerpool.wire.endpoint import ConnectionFile, ProcessId, connection_path, find_pool, running_pools
from tests.process.pools import alive, answers, launch, stopped, wait_for_successor, wait_until

GONE_WITHIN_S = 5.0

OWNER = """
import os, sys, time
from samplerpool import SyncSampler
sampler = SyncSampler.launch(engine="scripted", devices="cpu", workers=2, pool="p")
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
    os._exit(0)
stream = sampler.generate("[[tokens:100000]][[pace:0.05]]", max_new_tokens=100000)
next(stream)
print("streaming", flush=True)
try:
    for _ in stream: pass
except Exception:
    pass  # its worker was killed
time.sleep(600)
"""
"""A script with a private pool, a stream and a forked child."""

CLIENT = """
from samplerpool import SyncSampler
with SyncSampler.connect("p") as sampler:
    for text in sampler.generate("[[tokens:100000]][[pace:0.05]]", max_new_tokens=100000):
        print(text, flush=True)
"""


@contextmanager
def script(code: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leftovers() -> list[str]:
    """Files of pools, after a look by ``running_pools``."""
    assert running_pools() == []
    folder = Path(os.environ["SAMPLERPOOL_RUNTIME_DIR"])
    return sorted(path.name for path in folder.iterdir())


def nothing_is_left() -> None:
    """A killed process counts as gone once its first thread is, while another may hold its lock a moment longer."""
    wait_until(lambda: leftovers() == [], "nothing is left", GONE_WITHIN_S)


VICTIMS = ("owner", "supervisor", "worker", "client")
COMBINATIONS = [c for size in range(1, 5) for c in itertools.combinations(VICTIMS, size)]
EVERY_RUN = {("owner",), ("supervisor",), ("worker", "client"), ("supervisor", "worker"), VICTIMS}


def kill(victims: tuple[str, ...], pids: dict[str, int]) -> None:
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)


@pytest.mark.parametrize(
    "victims",
    [pytest.param(c, id="+".join(c), marks=[] if c in EVERY_RUN else pytest.mark.full) for c in COMBINATIONS],
)
def test_a_private_pool_and_those_around_it_are_killed(victims: tuple[str, ...]) -> None:
    with script(OWNER) as owner:
        fork, streaming = sorted((said(owner), said(owner)))
        assert streaming == "streaming"
        try:
            connection = find_pool("p")
            with script(CLIENT) as client:
                assert said(client)
                pids = {
                    "owner": owner.pid,
                    "supervisor": connection.supervisor.pid,
                    "worker": connection.workers[0].process.pid,
                    "client": client.pid,
                }
                kill(victims, pids)
                if {"owner", "supervisor"} & set(victims):
                    wait_until(lambda: alive(connection) == [], "the pool has ended", GONE_WITHIN_S)
                    nothing_is_left()
                else:
                    _goes_on(connection, "worker" in victims)
        finally:
            os.kill(int(fork), signal.SIGKILL)
    wait_until(lambda: running_pools() == [], "nothing is left", GONE_WITHIN_S)


def _goes_on(connection: ConnectionFile, worker_died: bool) -> None:
    if worker_died:
        wait_for_successor(connection.workers[0], "p")
    assert answers("p", 0)
    assert answers("p", 1)


def test_a_worker_that_was_stopped_when_its_supervisor_was_killed_is_cleaned_up() -> None:
    pool = launch(workers=2, pool="p", private=False)
    stuck = pool.connection.workers[0].process
    os.kill(stuck.pid, signal.SIGSTOP)
    wait_until(lambda: stopped(stuck.pid), "it is stopped")
    os.kill(pool.connection.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: alive(pool.connection) == [stuck.pid], "the others have ended", GONE_WITHIN_S)
    nothing_is_left()
    wait_until(lambda: not stuck.alive(), "it has ended", GONE_WITHIN_S)
    launch(pool="p").stop(5.0)  # the name is free
    pool.stop(1.0)


def test_a_supervisor_that_dies_while_a_worker_is_restarted_leaves_nothing() -> None:
    pool = launch(workers=2, pool="p", private=False, engine_options={"load_s": 1.0})
    victim = pool.connection.workers[0]
    os.kill(victim.process.pid, signal.SIGKILL)
    wait_until(lambda: find_pool("p").workers[0].incarnation != victim.incarnation, "the next process exists")
    connection = find_pool("p")
    os.kill(connection.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: alive(connection) == [], "everything has ended", GONE_WITHIN_S)
    nothing_is_left()
    pool.stop(1.0)


def test_a_detached_pool_is_found_without_the_session_that_launched_it(tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    environ = {name: value for name, value in os.environ.items() if name != "SAMPLERPOOL_RUNTIME_DIR"}
    name = f"t{os.getpid()}"

    def run(*arguments: str, **more: str) -> str:
        command = [sys.executable, "-m", "samplerpool", *arguments]
        done = subprocess.run(command, env={**environ, **more}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    environ.pop("XDG_RUNTIME_DIR", None)
    run("launch", "--engine", "scripted", "--detach", "--pool", name, XDG_RUNTIME_DIR=str(session))
    assert list(session.iterdir()) == []  # it would vanish at logout
    assert f"Pool {name}: running" in run("status", name)
    assert "stopped" in run("stop", name)


@pytest.mark.full
@pytest.mark.parametrize("time", range(20))
def test_all_killed_twenty_times_over(time: int) -> None:
    test_a_private_pool_and_those_around_it_are_killed(VICTIMS)


def test_the_file_of_a_pool_whose_processes_cannot_be_seen_is_left_alone() -> None:
    pool = launch(pool="p")
    path = connection_path(Path(os.environ["SAMPLERPOOL_RUNTIME_DIR"]), "p")
    there = ConnectionFile.read(path)
    replace(there, supervisor=ProcessId(there.supervisor.pid, 1)).write(path)  # as from another PID namespace
    assert running_pools() == []
    assert path.exists()
    there.write(path)
    assert answers("p")
    pool.stop(5.0)
