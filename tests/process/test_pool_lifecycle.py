"""Pools of real processes with the scripted engine: started, watched, killed, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from samplerpool.client.connection import PoolConnection
from samplerpool.client.response import Call
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.errors import ModelNotFound, PoolNameTaken, PoolNotFound, StartFailed, TransportError, UsageError
from samplerpool.pool.launcher import describe_pool, launch_pool, stop_pool
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, find_pool, running_pools
from samplerpool.wire.messages import ChatPrompt, Describe, Failed, Ping, Pong, Reply
from tests.process.pools import DEADLINE_S, alive, ask, launch, processes, wait_until


def test_a_pool_of_two_answers_and_leaves_nothing() -> None:
    lines: list[str] = []
    pool = launch(workers=2, on_progress=lines.append)
    connection = pool.connection
    assert connection.state == "running"
    assert [worker.state for worker in connection.workers] == ["ready", "ready"]
    assert {"worker 0: ready", "worker 1: ready"} <= set(lines)
    assert find_pool(connection.pool) == connection
    with PoolConnection.attach(connection) as client:
        for worker in (0, 1):
            assert ask(client, "[[say:hello]]", worker).text == "hello"
    assert pool.stop(5.0) == "stopped"
    assert alive(connection) == []
    assert running_pools() == []
    assert pool.stop(5.0) == "gone"


def test_workers_lead_sessions_of_their_own() -> None:
    pool = launch(workers=2)
    sessions = {os.getsid(process.pid) for process in processes(pool.connection)}
    assert sessions == {process.pid for process in processes(pool.connection)}
    assert os.getsid(0) not in sessions
    pool.stop(5.0)


def test_a_private_pool_without_a_name_leaves_no_logs_if_all_went_well(own_folders: Path) -> None:
    pool = launch()
    assert Path(pool.connection.log_folder).is_dir()
    pool.stop(5.0)
    assert list((own_folders / "log").iterdir()) == []


def test_describe_asks_the_supervisor_and_each_worker() -> None:
    pool = launch(workers=2, pool="d")
    told = describe_pool(pool.connection)
    assert (told["pool"], told["state"], told["engine"]) == ("d", "running", "scripted")
    assert told["pid"] == pool.connection.supervisor.pid
    assert [(w["index"], w["state"], w["device"], w["running"], w["queued"]) for w in told["workers"]] == [
        (0, "ready", "cpu", 0, 0),
        (1, "ready", "cpu", 0, 0),
    ]
    assert all(w["memory_bytes"] > 0 and w["uptime_s"] >= 0 for w in told["workers"])
    json.dumps(told)
    pool.stop(5.0)


def test_a_name_is_taken_while_its_pool_runs_and_free_afterwards() -> None:
    pool = launch(pool="one")
    with pytest.raises(PoolNameTaken, match="'one'"):
        launch(pool="one")
    assert len(alive(pool.connection)) == 2  # the one that holds it was not disturbed
    log = Path(pool.connection.log_folder, "supervisor.log")
    assert "worker 0: ready" in log.read_text()
    pool.stop(5.0)
    launch(pool="one").stop(5.0)
    assert (log.parent / "supervisor.log.1").exists()


def test_a_worker_that_fails_at_the_start_fails_the_launch_with_its_log() -> None:
    with pytest.raises(StartFailed, match="told to fail") as caught:
        launch(workers=2, engine_options={"fail_at_start": True})
    assert "told to fail" in caught.value.data["log_tail"]
    assert caught.value.data["log_tail"] in caught.value.message
    assert running_pools() == []


def test_a_worker_that_is_killed_at_the_start_fails_the_launch() -> None:
    def kill_worker(line: str) -> None:
        if "starting" in line:
            os.kill(running_pools()[0].workers[0].process.pid, signal.SIGKILL)

    with pytest.raises(StartFailed, match="SIGKILL"):
        launch(engine_options={"load_s": 30.0}, on_progress=kill_worker)


def test_a_pool_that_is_not_ready_in_time_fails() -> None:
    with pytest.raises(StartFailed, match=r"Not ready within 0\.5 s"):
        launch(engine_options={"load_s": 30.0}, start_timeout_s=0.5)


def test_the_error_class_of_a_worker_is_that_of_the_launch() -> None:
    with pytest.raises(UsageError, match="no option nope"):
        launch(engine_options={"nope": 1})


def test_a_wrong_model_fails_before_anything_is_started(own_folders: Path) -> None:
    with pytest.raises(ModelNotFound, match="/nowhere/at/all"):
        launch_pool(
            ModelArguments(model_name_or_path="/nowhere/at/all"),
            SampleArguments(),
            PoolArguments(devices="cpu"),
            detached=False,
            private=True,
        )
    assert not (own_folders / "log").exists()


def test_an_interrupted_launch_leaves_nothing() -> None:
    started: list[ConnectionFile] = []

    def interrupt(line: str) -> None:
        started.extend(running_pools())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(private=False, engine_options={"load_s": 30.0}, on_progress=interrupt)
    assert len(started) == 1
    assert alive(started[0]) == []


def test_workers_end_by_themselves_when_their_supervisor_is_killed() -> None:
    pool = launch(workers=2)
    os.kill(pool.connection.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: alive(pool.connection) == [], "workers are gone", 5.0)
    assert running_pools() == []  # and what was left is cleaned up
    assert pool.stop(1.0) == "gone"


def test_a_private_pool_ends_when_its_owner_is_killed() -> None:
    code = """
import sys, time
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import launch_pool
pool = launch_pool(ModelArguments(), SampleArguments(), PoolArguments(engine="scripted", pool="owned", workers=2),
                   detached=False, private=True)
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        connection = find_pool("owned")
        owner.kill()
    wait_until(lambda: alive(connection) == [], "the pool has ended")
    assert running_pools() == []


def test_a_detached_pool_outlives_who_launched_it() -> None:
    code = """
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import launch_pool
args = PoolArguments(engine="scripted", pool="d")
launch_pool(ModelArguments(), SampleArguments(), args, detached=True, private=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)
    connection = find_pool("d")
    os.kill(connection.supervisor.pid, signal.SIGHUP)
    with PoolConnection.attach(connection) as client:
        assert ask(client, "[[say:still here]]").text == "still here"
    assert stop_pool(connection, 5.0) == "stopped"
    assert alive(connection) == []


def test_a_failed_worker_is_reported_and_the_others_go_on() -> None:
    pool = launch(workers=2, pool="d", max_restarts=0)
    os.kill(pool.connection.workers[0].process.pid, signal.SIGKILL)
    wait_until(lambda: find_pool("d").workers[0].state == "failed", "the failure is published")
    connection = find_pool("d")
    assert connection.state == "running"
    told = describe_pool(connection)
    assert [worker["state"] for worker in told["workers"]] == ["failed", "ready"]
    assert "SIGKILL" in told["workers"][0]["detail"]
    assert "its last start" in told["workers"][0]["detail"]
    with PoolConnection.attach(connection) as client:
        assert ask(client, "[[say:me]]", 1).text == "me"
    assert pool.stop(5.0) == "stopped"


def test_with_its_last_worker_the_pool_ends() -> None:
    pool = launch(pool="d", max_restarts=0)
    os.kill(pool.connection.workers[0].process.pid, signal.SIGKILL)
    wait_until(lambda: alive(pool.connection) == [], "the supervisor has ended")
    assert "No worker is left" in Path(pool.connection.log_folder, "supervisor.log").read_text()
    with pytest.raises(PoolNotFound):
        find_pool("d")
    assert pool.stop(1.0) == "gone"


def test_a_stop_lets_what_runs_finish_and_refuses_nothing_that_was_accepted() -> None:
    pool = launch()
    with PoolConnection.attach(pool.connection) as client:
        done = threading.Event()
        begun = threading.Event()

        def update(call: Call) -> None:
            if call.text:
                begun.set()
            if call.done:
                done.set()

        prompt = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": "[[tokens:20]][[pace:0.02]]"}]}])
        call = Call(prompt, on_update=update)
        client.submit(0, [call])
        assert begun.wait(DEADLINE_S)
        assert pool.stop(20.0) == "stopped"
        assert done.wait(DEADLINE_S)
    assert call.error is None
    assert call.completion_tokens is not None
    assert call.completion_tokens >= 20


def test_a_worker_that_hangs_is_killed_when_the_time_is_over() -> None:
    pool = launch()
    with PoolConnection.attach(pool.connection) as client:
        begun = threading.Event()
        prompt = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": "[[tokens:50]][[hang:3]]"}]}])
        client.submit(0, [Call(prompt, on_update=lambda call: begun.set() if call.text else None)])
        assert begun.wait(DEADLINE_S)
        assert pool.stop(0.2) == "stopped"
    assert alive(pool.connection) == []


def test_a_second_signal_does_not_wait_for_what_runs() -> None:
    pool = launch(pool="d")
    log = Path(pool.connection.log_folder, "supervisor.log")
    with PoolConnection.attach(pool.connection) as client:
        begun = threading.Event()
        prompt = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": "[[tokens:50]][[hang:3]]"}]}])
        client.submit(0, [Call(prompt, on_update=lambda call: begun.set() if call.text else None)])
        assert begun.wait(DEADLINE_S)
        os.kill(pool.connection.supervisor.pid, signal.SIGTERM)
        wait_until(lambda: "stopping: SIGTERM" in log.read_text(), "the first signal was taken")
        os.kill(pool.connection.supervisor.pid, signal.SIGINT)
        wait_until(lambda: alive(pool.connection) == [], "everything has ended")
    assert "dropping what runs: SIGINT while stopping" in log.read_text()
    assert pool.stop(1.0) == "gone"


def test_a_supervisor_that_does_not_answer_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    pool = launch()
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        endpoint = pool.connection.endpoint.replace(".sock", "-nobody.sock")
        supervisor = ProcessId.of(process.pid)
        connection = replace(pool.connection, supervisor=supervisor, endpoint=endpoint, workers=())
        assert describe_pool(connection, 0.2)["problem"]
        assert stop_pool(connection, 1.0) == "killed"
        assert process.wait() == -signal.SIGKILL
    assert pool.stop(1.0) == "stopped"
    assert alive(pool.connection) == []


def test_whatever_arrives_at_the_control_socket_harms_nobody() -> None:
    pool = launch()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(pool.connection.endpoint)

        def reply_to(*parts: bytes) -> Reply | Any:
            socket.send_multipart(list(parts))
            assert socket.poll(int(DEADLINE_S * 1000))
            return decode_replies(socket.recv())[0]

        for parts in ([b"garbage"], [b""], [b"a", b"b"], [encode([])], [b"\x92\x01\x91\x92\xc1\x01"]):
            assert isinstance(reply_to(*parts), Failed)
        assert isinstance(reply_to(encode([Ping(i) for i in range(1, 100)])), Failed)
        pong = reply_to(encode([Ping(7)]))
        assert isinstance(pong, Pong)
        assert pong.ping_id == 7
    assert ask_supervisor(pool.connection, Describe(3), DEADLINE_S)["state"] == "running"
    pool.stop(5.0)


def test_asking_a_supervisor_that_is_gone_is_a_transport_error() -> None:
    pool = launch()
    pool.stop(5.0)
    with pytest.raises(TransportError, match="did not answer"):
        ask_supervisor(pool.connection, Describe(1), 0.2)


def test_an_answer_without_an_entry_is_a_transport_error(tmp_path: Path) -> None:
    pool = launch()
    pool.stop(5.0)
    endpoint = f"ipc://{tmp_path}/s.sock"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as supervisor, ThreadPoolExecutor(1) as thread:
        supervisor.bind(endpoint)
        answer = thread.submit(ask_supervisor, replace(pool.connection, endpoint=endpoint), Describe(1), DEADLINE_S)
        identity, _ = supervisor.recv_multipart()
        supervisor.send_multipart([identity, encode([])])
        with pytest.raises(TransportError, match="something else"):
            answer.result(DEADLINE_S)


def test_a_supervisor_never_imports_torch() -> None:
    pool = launch()
    maps = Path(f"/proc/{pool.connection.supervisor.pid}/maps").read_text()
    assert "libzmq" in maps or "zmq" in maps
    assert "torch" not in maps
    pool.stop(5.0)


def test_a_fork_of_the_owner_does_not_keep_a_private_pool_alive() -> None:
    code = """
import os, time
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import launch_pool
pool = launch_pool(ModelArguments(), SampleArguments(), PoolArguments(engine="scripted", pool="owned"),
                   detached=False, private=True)
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        connection = find_pool("owned")
        try:
            owner.kill()
            wait_until(lambda: alive(connection) == [], "the pool has ended")
        finally:
            os.kill(child, signal.SIGKILL)
    assert running_pools() == []
