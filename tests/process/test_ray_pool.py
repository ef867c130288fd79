"""A pool on a Ray cluster of several nodes, with the scripted engine: used as any pool is, and disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool import SyncSampler
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.errors import AccessDenied
from samplerpool.wire.endpoint import ConnectionFile, find_pool
from samplerpool.wire.keys import ClientKeys, KeyPair
from samplerpool.wire.messages import AddKey, RevokeKey
from tests import conftest
from tests.process.pools import wait_until
from tests.process.test_cli_pool import SAMPLERPOOL, run, terminal

pytest.importorskip("ray", reason="the extra 'ray' is not installed")

# Ray's own cluster for tests leaves files of its logs open, depending on the release.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NODES = 3
MARK = "SAMPLERPOOL_TEST_CLUSTER"
SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
NOTICE_QUICKLY = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}
ROWS = 80
BATCH = ("--temperature", "1", "--seed", "7")


class LocalCluster:
    """A head without CPUs, and nodes with one each: Ray's own processes, all on this machine."""

    def __init__(self, environ: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster

        self._environ = environ
        with self._own_environment():
            self._cluster = Cluster(
                initialize_head=True, head_node_args={**SMALL, "num_cpus": 0, "_system_config": NOTICE_QUICKLY}
            )
        self._nodes: list[Any] = []
        self.restore()
        self.address = str(self._cluster.address)

    @contextlib.contextmanager
    def _own_environment(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as environ:
            environ.delenv(conftest.MARK, raising=False)  # they outlive the test
            for name, value in self._environ.items():
                environ.setenv(name, value)
            yield

    def kill_node_of(self, pid: int) -> None:
        """The node on which a worker's process runs, with all that is Ray's there."""
        raylet = parent(parent(pid))
        [node] = [node for node in self._nodes if node.all_processes["raylet"][0].process.pid == raylet]
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def restore(self) -> None:
        """As many nodes as in the beginning."""
        with self._own_environment():
            while len(self._nodes) < NODES:
                self._nodes.append(self._cluster.add_node(num_cpus=1, **SMALL))

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def started(mark: str) -> Iterator[LocalCluster]:
    with tempfile.TemporaryDirectory(prefix="spr-", dir="/tmp") as folder:
        environ = {"RAY_USAGE_STATS_ENABLED": "0", "SAMPLERPOOL_RUNTIME_DIR": f"{folder}/run", MARK: mark}
        cluster = LocalCluster(environ)
        yield cluster
        cluster.close()


@pytest.fixture
def cluster(
    started: LocalCluster, mark: str, own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalCluster]:
    """With all its nodes, and after the test without anything of ours."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started.restore()
    yield started
    run("stop", "--all", "--timeout", "0")
    wait_until(lambda: not on_the_nodes(mark), "no actor and no worker is left on the cluster")


def on_the_nodes(mark: str) -> list[str]:
    """What runs there for a pool: actors and their workers."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command.startswith("ray::Host") or "samplerpool" in command:
                    found.append(f"{entry}: {command}")
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def launch(cluster: LocalCluster, *options: str, workers: int = 2, code: int = 0) -> str:
    """What it said."""
    where = ("--cluster", cluster.address, "--workers", str(workers), "--detach")
    return run("launch", "--engine", "scripted", *where, *options, code=code).stderr


def workers() -> list[dict[str, Any]]:
    [pool] = json.loads(run("status", "--json").stdout)
    told: list[dict[str, Any]] = pool["workers"]
    return told


def is_let_in(connection: Path) -> bool:
    """By both workers."""
    try:
        with SyncSampler.connect(connection) as guest:
            return all("".join(guest.generate("[[say:come in]]", worker=n)) == "come in" for n in range(2))
    except AccessDenied:
        return False


def begun_again(worker: dict[str, Any]) -> bool:
    return bool(worker["restarts"]) and worker["state"] == "ready"


def test_a_pool_on_a_cluster_is_like_any_other(cluster: LocalCluster, own_folders: Path) -> None:
    launched = launch(cluster)
    connection = find_pool("default")
    nodes = {worker.node for worker in connection.workers}
    assert f"cpu on {next(iter(nodes))}" in launched
    for worker in connection.workers:
        assert worker.endpoint.startswith(f"tcp://{worker.node}:")
    assert len({parent(parent(worker["pid"])) for worker in workers()}) == 2  # each on a node of its own
    assert run("chat", "--once", "hello there").stdout.strip() == "hello there"
    with SyncSampler.connect(connection.pool) as sampler:
        assert "".join(sampler.generate("[[say:good]]")) == "good"
    assert all(f"worker-{index} " in run("logs").stdout for index in range(2))

    pair = KeyPair.new()
    assert connection.keys is not None
    ask_supervisor(connection, AddKey(1, "guest", pair.public), 10.0)
    keys = ClientKeys(connection.keys.server, pair.public, pair.secret)
    copied = own_folders / "copied.json"
    replace(connection.for_client(keys), host="elsewhere").write(copied)
    wait_until(lambda: is_let_in(copied), "the machines know the new key")
    with SyncSampler.connect(copied) as guest:
        assert "".join(guest.generate("[[say:still]]", worker=0)) == "still"
        ask_supervisor(connection, RevokeKey(2, "guest"), 10.0)
        with pytest.raises(AccessDenied):
            list(guest.generate("[[tokens:100000]][[pace:0.01]]", worker=1))

    run("scale", "3")
    wait_until(lambda: [worker["state"] for worker in workers()] == ["ready"] * 3, "three are ready")
    assert run("stop").stdout == "Pool 'default' (3 workers) stopped.\n"


def test_rows_outlive_a_worker_and_a_node(cluster: LocalCluster, tmp_path: Path) -> None:
    """Neither lost nor doubled, and the same as of an undisturbed run."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "prompt": f"row {n} [[random:45]]"}) + "\n" for n in range(ROWS)))
    launch(cluster, "--engine-option", "step_s=0.02", "--max-batch", "8")
    undisturbed, disturbed = tmp_path / "undisturbed.jsonl", tmp_path / "disturbed.jsonl"
    run("batch", str(rows), "--output", str(undisturbed), *BATCH)

    command = [*SAMPLERPOOL, "batch", str(rows), "--output", str(disturbed), *BATCH]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as batch:
        wait_until(lambda: all(worker["running"] for worker in workers()), "both are at work")
        cluster.kill_node_of(workers()[0]["pid"])
        wait_until(lambda: begun_again(workers()[0]), "Ray has begun the place again elsewhere", 60)
        os.kill(workers()[1]["pid"], signal.SIGKILL)
        assert batch.stdout is not None
        said = batch.stdout.read()
        assert batch.wait() == 0, said
    assert f"{ROWS} answered" in said
    assert disturbed.read_text() == undisturbed.read_text()
    assert workers()[0]["restarts"] == 1
    wait_until(lambda: begun_again(workers()[1]), "the process is begun again in its place")


def test_what_speaks_to_ray_may_die_and_the_supervisor_takes_all_along(cluster: LocalCluster, mark: str) -> None:
    launch(cluster)
    supervisor = find_pool("default").supervisor.pid
    [driver] = children(supervisor)
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: all(begun_again(worker) for worker in workers()), "the next one has begun all again")
    wait_until(lambda: len(on_the_nodes(mark)) == 4, "two places and two workers; the former ones are gone")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not on_the_nodes(mark), "they end with it")
    run("status")  # removes the connection file


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ctrl_c_during_the_launch_leaves_nothing(cluster: LocalCluster, mark: str) -> None:
    slow = ("--engine-option", "load_s=60")
    with terminal("launch", "--engine", "scripted", "--cluster", cluster.address, "--workers", "2", *slow) as child:
        child.expect("starting the scripted engine")
        assert on_the_nodes(mark)
        child.sendintr()
        child.expect("nothing is left running")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 130
    wait_until(lambda: not on_the_nodes(mark), "nothing is left on the nodes")


def test_what_cannot_be_is_said(cluster: LocalCluster) -> None:
    assert "No Ray cluster answers at 127.0.0.1:1" in run("launch", "--cluster", "127.0.0.1:1", code=2).stderr
    too_many = launch(cluster, workers=5, code=2)
    assert "5 workers with 1 CPU each were asked for" in too_many
    assert f"has room for {NODES}" in too_many
    assert "5 CPUs each" in launch(cluster, "--cpus-per-worker", "5", workers=1, code=2)
    assert "names devices of one machine" in launch(cluster, "--devices", "0", code=2)
    missing = run("launch", "./no-such-model", "--cluster", cluster.address, "--workers", "1", "--detach", code=2)
    assert "There is no model at './no-such-model'" in missing.stderr
    assert "Error: On " in missing.stderr


def test_a_cluster_in_use_is_waited_for_and_then_described(cluster: LocalCluster) -> None:
    launch(cluster, workers=2)
    said = launch(cluster, "--pool", "second", "--placement-timeout", "4", workers=2, code=1)
    assert "waiting for a place on the cluster" in said
    assert "had no room for them within 4 s" in said
    assert "1 CPUs and 0 GPUs are free now" in said


def test_ray_data_gives_the_rows_of_a_batch(cluster: LocalCluster, tmp_path: Path) -> None:
    """Read from two files by two actors: messages, generation and kept columns are those of `samplerpool batch`."""
    prompts = [f"row {n} [[random:20]]" for n in range(30)]
    prompts[11] = "[[fail]] of row 11"
    rows = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"ref {n}"}], "tag": n % 3}
        for n, prompt in enumerate(prompts)
    ]
    parts = [tmp_path / "part0.jsonl", tmp_path / "part1.jsonl"]
    whole, from_batch, from_ray = tmp_path / "whole.jsonl", tmp_path / "batch.jsonl", tmp_path / "ray.json"
    for path, some in zip([whole, *parts], [rows, rows[:13], rows[13:]], strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    sampling = {"seed": 7, "temperature": 1.0, "num_return_sequences": 2}
    options = ("--seed", "7", "--temperature", "1", "--n", "2", "--workers", "1", "--engine", "scripted")
    run("batch", str(whole), "--output", str(from_batch), "--model", "scripted", *options, code=3)

    job = [sys.executable, "-m", "tests.process.ray_data_job", cluster.address, ",".join(map(str, parts))]
    settings = json.dumps({"engine": "scripted", "system": None, **sampling})
    done = subprocess.run([*job, str(from_ray), settings], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    expected = [json.loads(line) for line in from_batch.read_text().splitlines()]
    found = json.loads(from_ray.read_text())
    assert len(expected) == 60
    assert [row["row_number"] for row in found] == [n for n in range(30) for _ in range(2)]
    assert [as_in_a_file(row) for row in found] == expected


def as_in_a_file(row: dict[str, Any]) -> dict[str, Any]:
    """Without what a table says of rows that do not have it."""
    generation = {name: value for name, value in row["generation"].items() if value is not None or name == "error"}
    chats = {
        "messages": [{name: turn[name] for name in ("role", "content")} for turn in row["messages"]],
        "reference": {name: row["reference"][name] for name in ("role", "content")},
    }
    return {"messages": chats["messages"], "tag": row["tag"], "reference": chats["reference"], "generation": generation}


def test_auto_is_the_cluster_that_this_machine_belongs_to(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, own_folders: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with SyncSampler.launch(engine="scripted", cluster="auto", workers=1) as sampler:
        assert "".join(sampler.generate("[[say:here]]")) == "here"


def test_the_connection_file_tells_of_processes_elsewhere(cluster: LocalCluster) -> None:
    """Whose numbers mean nothing here, so nobody may signal them."""
    launch(cluster, "--placement", "strict_pack", workers=1)
    connection: ConnectionFile = find_pool("default")
    [worker] = connection.workers
    assert worker.process.pid > 0
    assert not worker.process.alive()
    assert "could not keep to that" in run("scale", "2", code=2).stderr
