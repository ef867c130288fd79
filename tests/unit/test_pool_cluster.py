"""What a pool needs of a Ray cluster, and how its supervisor hears of workers there; without Ray."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samplerpool.config.arguments import EngineConfig, ModelArguments, PoolArguments, SampleArguments, WorkerConfig
from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.pool import cluster as cluster_module
from samplerpool.pool.addresses import Addresses, network
from samplerpool.pool.cluster import (
    Cluster,
    ClusterPlan,
    Node,
    capacity,
    check_cluster_arguments,
    nodes_text,
    path_for_all,
    plan_cluster,
    worker_plans,
)
from samplerpool.pool.cluster_worker import ClusterWorker
from samplerpool.pool.devices import WorkerPlan

GPU_NODES = (Node("a", 16, 4), Node("b", 16, 2), Node("head", 8, 0))
CPU_NODES = (Node("a", 8), Node("b", 4))


def planned(nodes: tuple[Node, ...], **args: Any) -> tuple[int, int, int]:
    """Workers, and CPUs and GPUs of each."""
    plan = plan_cluster(PoolArguments(cluster="auto", **args), Cluster("head:6379", "head", nodes))
    return plan.workers, plan.cpus, plan.gpus


@pytest.mark.parametrize(
    ("nodes", "args", "expected"),
    [
        (GPU_NODES, {}, (6, 1, 1)),
        (GPU_NODES, {"workers": 3, "cpus_per_worker": 4}, (3, 4, 1)),
        (GPU_NODES, {"devices_per_worker": 2}, (3, 1, 2)),
        (GPU_NODES, {"devices": "cpu", "workers": 5}, (5, 8, 0)),
        (GPU_NODES, {"engine": "scripted", "workers": 9}, (9, 1, 0)),
        (CPU_NODES, {}, (2, 4, 0)),
        (CPU_NODES, {"workers": 3}, (3, 4, 0)),
        (CPU_NODES, {"workers": 4}, (4, 2, 0)),
        (CPU_NODES, {"workers": 2, "placement": "strict_pack"}, (2, 4, 0)),
        (CPU_NODES, {"workers": 12}, (12, 1, 0)),
    ],
)
def test_what_workers_get(nodes: tuple[Node, ...], args: dict[str, Any], expected: tuple[int, int, int]) -> None:
    assert planned(nodes, **args) == expected


@pytest.mark.parametrize(
    ("placement", "expected"), [("spread", 6), ("pack", 6), ("strict_pack", 4), ("strict_spread", 2)]
)
def test_room(placement: str, expected: int) -> None:
    assert capacity(GPU_NODES, 1, 1, placement) == expected


def test_too_many_workers_are_told_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        planned(GPU_NODES, workers=3, placement="strict_spread")
    assert "3 workers with 1 CPU and 1 GPU each, each on another machine, were asked for" in caught.value.message
    assert "head:6379 has room for 2: a with 16 CPUs and 4 GPUs; b with 16 CPUs and 2 GPUs" in caught.value.message


def test_devices_by_number_and_impossible_splits_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="with --cluster Ray chooses"):
        planned(GPU_NODES, devices="0,1")
    with pytest.raises(InvalidParameter, match="split-mode layer"):
        planned(CPU_NODES, devices_per_worker=2, split_mode="layer")


def test_a_long_list_of_nodes_is_cut() -> None:
    text = nodes_text([Node(f"n{index}", 4) for index in range(20)])
    assert text.startswith("n0 with 4 CPUs; n1 with 4 CPUs")
    assert text.endswith("; 12 more")


def test_a_strictly_placed_pool_does_not_grow() -> None:
    plan = ClusterPlan("head:6379", "strict_spread", 2, 4, 0, 30.0, 20)
    assert [each.threads for each in worker_plans(plan, 2)] == [4, 4]
    with pytest.raises(UsageError, match="could not keep to that"):
        worker_plans(plan, 3)


def test_arguments_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParameter, match="give --cluster too"):
        check_cluster_arguments(PoolArguments(cpus_per_worker=2))
    with pytest.raises(InvalidParameter, match="Ray Client"):
        check_cluster_arguments(PoolArguments(cluster="ray://head:10001"))
    monkeypatch.setattr(cluster_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'samplerpool\[ray\]'"):
        check_cluster_arguments(PoolArguments(cluster="auto"))


def test_paths_that_are_here_are_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert path_for_all("model") == str(tmp_path / "model")
    assert path_for_all("owner/name") == "owner/name"
    assert path_for_all(None) is None


def test_addresses_of_workers_elsewhere(tmp_path: Path) -> None:
    addresses = Addresses("p", tmp_path, network("tcp://127.0.0.1:5600", None), on_nodes=True)
    assert addresses.supervisor("x") == "tcp://127.0.0.1:5600"
    assert addresses.worker(1, "x") == "tcp://{node}:5602"
    assert addresses.told_of_worker("tcp://10.0.0.2:5602") == "tcp://10.0.0.2:5602"


# ---- the channel --------------------------------------------------------------------------------------------------


class FakeDriver:
    """Takes channels, as the process that speaks to Ray would."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def hand_over(self, channel: socket.socket, document: str) -> None:
        self.channel = socket.socket(fileno=os.dup(channel.fileno()))
        self.document = json.loads(document)

    def say(self, *reports: dict[str, Any]) -> None:
        self.channel.sendall(b"".join(json.dumps(report).encode() + b"\n" for report in reports))


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    return FakeDriver(tmp_path / "ray.out")


@pytest.fixture
def worker(driver: FakeDriver, tmp_path: Path) -> Any:
    config = WorkerConfig(
        pool="p",
        index=0,
        endpoint="tcp://{node}:*",
        incarnation="i",
        model_args=ModelArguments(),
        sample_args=SampleArguments(),
        engine=EngineConfig(),
    )
    plan = WorkerPlan(device="cpu", torch_device="cpu")
    worker = ClusterWorker(driver, config, plan, "{}", tmp_path / "worker-0.log", restarted=False)  # type: ignore[arg-type]
    yield worker
    worker.reap()
    driver.channel.close()


STARTED = {"event": "started", "pid": 4711, "node": "10.0.0.2", "device": "cuda:1"}


def test_a_worker_elsewhere_from_start_to_end(driver: FakeDriver, worker: ClusterWorker) -> None:
    assert driver.document["config"]["index"] == 0
    driver.say(STARTED, {"event": "ready", "description": {}, "endpoint": "tcp://10.0.0.2:4000"})
    assert worker.read_status() == (
        [
            {"event": "loading", "detail": "starting on 10.0.0.2"},
            {"event": "ready", "description": {}, "endpoint": "tcp://10.0.0.2:4000"},
        ],
        False,
    )
    assert (worker.pid, worker.node, worker.device) == (4711, "10.0.0.2", "cuda:1")
    assert not worker.identity.alive()
    worker.terminate()
    assert driver.channel.recv(100) == b'{"do": "terminate"}\n'
    driver.say({"event": "exited", "returncode": 0})
    driver.channel.shutdown(socket.SHUT_RDWR)
    assert worker.read_status() == ([], True)
    assert worker.exited()
    assert worker.returncode == 0


def test_a_driver_that_is_gone_takes_its_workers_along(driver: FakeDriver, worker: ClusterWorker) -> None:
    driver.log.write_text("the head is gone\n")
    driver.channel.shutdown(socket.SHUT_RDWR)
    [report], ended = worker.read_status()
    assert ended
    assert report["error"][0] == "WorkerDied"
    assert "the head is gone" in report["error"][1]
    assert worker.exited()


def test_killed_means_ended_whatever_becomes_of_it_there(driver: FakeDriver, worker: ClusterWorker) -> None:
    worker.kill()
    assert driver.channel.recv(100) == b""
    assert worker.exited()
    assert worker.returncode == -9
    assert worker.read_status() == ([], True)


def test_errors_say_where(driver: FakeDriver, worker: ClusterWorker) -> None:
    driver.say(STARTED, {"event": "failed", "error": ["ModelNotFound", "There is no model.", {}]})
    reports, _ = worker.read_status()
    assert reports[-1]["error"] == ["ModelNotFound", "On 10.0.0.2: There is no model.", {}]


def test_reports_may_come_in_pieces(driver: FakeDriver, worker: ClusterWorker) -> None:
    send: Callable[[bytes], None] = driver.channel.sendall
    send(b'{"event": "progress", "st')
    assert worker.read_status() == ([], False)
    send(b'eps": 1}\n')
    assert worker.read_status() == ([{"event": "progress", "steps": 1}], False)
