"""Which worker gets which device and which cores."""

from __future__ import annotations

from typing import Any

import pytest

from samplerpool.config.arguments import PoolArguments
from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.pool.devices import (
    CpuBudget,
    WorkerPlan,
    check_workers,
    choose_devices,
    cpu_budget,
    cpu_limit_v1,
    cpu_limit_v2,
    inherited_devices,
    plan,
    plan_workers,
    share_cores,
    usable_devices,
    worker_environment,
)
from samplerpool.worker.ranks import rank_cores

UUIDS = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]


@pytest.mark.parametrize(
    ("cores", "limit", "workers", "expected"),
    [
        ((0, 1), None, 1, [((0, 1), 2)]),
        ((0, 1), None, 2, [((0,), 1), ((1,), 1)]),
        ((2, 3, 6), None, 2, [((2, 3), 2), ((6,), 1)]),
        ((0, 1), None, 5, [((0,), 1), ((1,), 1), ((0,), 1), ((1,), 1), ((0,), 1)]),
        (tuple(range(8)), 4.0, 2, [((), 2), ((), 2)]),
        (tuple(range(8)), 2.5, 2, [((), 2), ((), 1)]),
        (tuple(range(8)), 0.5, 2, [((), 1), ((), 1)]),
        ((0, 1), 16.0, 2, [((0,), 1), ((1,), 1)]),
    ],
)
def test_cores_are_shared_out(
    cores: tuple[int, ...], limit: float | None, workers: int, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    assert share_cores(CpuBudget(cores, limit), workers) == expected


def test_limits_of_control_groups() -> None:
    assert cpu_limit_v2("max 100000\n") is None
    assert cpu_limit_v2("150000 100000\n") == 1.5
    assert cpu_limit_v1("-1", "100000") is None
    assert cpu_limit_v1("200000", "100000") == 2.0
    assert cpu_limit_v1("", "") is None


def test_the_budget_of_this_machine_can_be_told() -> None:
    budget = cpu_budget()
    assert budget.cores
    assert budget.limit is None or budget.limit > 0


@pytest.mark.parametrize(
    ("value", "entries"),
    [(None, None), ("", []), ("-1", []), ("0,2", ["0", "2"]), ("3, 1 ,-1,0", ["3", "1"]), ("NoDevFiles", [])],
)
def test_inherited_devices_end_at_the_first_invalid_entry(value: str | None, entries: list[str] | None) -> None:
    assert inherited_devices({} if value is None else {"CUDA_VISIBLE_DEVICES": value}) == entries


@pytest.mark.parametrize(
    ("requested", "inherited", "count", "chosen"),
    [
        ("auto", None, 0, []),
        ("auto", None, 2, ["0", "1"]),
        ("auto", ["4", "5"], 2, ["4", "5"]),
        ("cpu", ["4", "5"], 2, []),
        ("1", ["4", "5"], 2, ["5"]),
        ("1,0", None, 4, ["1", "0"]),
        ("0,0", None, 1, ["0", "0"]),
        ("GPU-2222", UUIDS, 2, [UUIDS[1]]),
        ("1", UUIDS, 2, [UUIDS[1]]),
        ("GPU-99999999", None, 2, ["GPU-99999999"]),
    ],
)
def test_devices_are_chosen_within_the_inherited_ones(
    requested: str, inherited: list[str] | None, count: int, chosen: list[str]
) -> None:
    assert choose_devices(requested, inherited, count) == chosen


@pytest.mark.parametrize(
    ("requested", "inherited", "count"),
    [("0", None, 0), ("2", ["4", "5"], 2), ("GPU-3", UUIDS, 2), ("GPU-2", None, 0)],
)
def test_a_device_that_is_not_there_is_refused(requested: str, inherited: list[str] | None, count: int) -> None:
    with pytest.raises(UsageError, match=requested):
        choose_devices(requested, inherited, count)


@pytest.mark.parametrize("requested", ["gpu", "0;1", "", "1,"])
def test_what_is_no_list_of_devices_is_refused(requested: str) -> None:
    with pytest.raises(InvalidParameter, match="--devices"):
        choose_devices(requested, None, 2)


def test_one_worker_a_device() -> None:
    plans = plan("auto", ["4", "5"], CpuBudget((0, 1)))
    assert [(p.device, p.torch_device, p.visible, p.threads) for p in plans] == [
        ("cuda:4", "cuda", "4", 0),
        ("cuda:5", "cuda", "5", 0),
    ]
    assert len(plan(1, ["4", "5"], CpuBudget((0, 1)))) == 1
    with pytest.raises(UsageError, match="3 workers need 3 devices"):
        plan(3, ["4", "5"], CpuBudget((0, 1)))


def test_cpu_workers() -> None:
    assert plan("auto", [], CpuBudget((0, 1))) == [
        WorkerPlan(device="cpu", torch_device="cpu", cores=(0, 1), threads=2),
    ]
    assert plan(1, [], CpuBudget((0,)), hide_devices=True)[0].visible == ""


def test_several_devices_for_each_worker() -> None:
    plans = plan("auto", ["0", "1", "2", "3"], CpuBudget((0, 1)), devices_per_worker=2)
    assert plans == [
        WorkerPlan(device="cuda:0+1", torch_device="cuda", visible="0,1", devices=2),
        WorkerPlan(device="cuda:2+3", torch_device="cuda", visible="2,3", devices=2),
    ]
    assert len(plan(1, ["0", "1", "2"], CpuBudget((0,)), devices_per_worker=2)) == 1


@pytest.mark.parametrize(
    ("workers", "devices", "size", "message"),
    [
        (2, "012", 2, r"2 workers need 4 devices, 2 for each, and there are 3 \(0, 1, 2\). Ask for fewer --workers."),
        ("auto", "01", 4, r"1 worker needs 4 devices, 4 for each, and there are 2 \(0, 1\). .* --devices-per-worker."),
        ("auto", "01234", 2, r"Workers on 2 devices each leave 1 over, as there are 5 \(0, 1, 2, 3, 4\)"),
        (1, "00", 2, r"one device twice \(0, 0\)"),
    ],
)
def test_devices_that_cannot_be_grouped(workers: int | str, devices: str, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(workers, list(devices), CpuBudget((0,)), devices_per_worker=size)


def test_ranks_on_the_cpu_share_their_workers_cores() -> None:
    budget = CpuBudget(tuple(range(8)))
    assert plan(2, [], budget, devices_per_worker=2) == [
        WorkerPlan(device="cpu x2", torch_device="cpu", cores=(0, 1, 2, 3), threads=2, devices=2),
        WorkerPlan(device="cpu x2", torch_device="cpu", cores=(4, 5, 6, 7), threads=2, devices=2),
    ]
    assert [rank_cores((4, 5, 6, 7), rank, 2) for rank in (0, 1)] == [(4, 5), (6, 7)]
    assert [rank_cores((0, 1, 2, 3, 4), rank, 3) for rank in (0, 1, 2)] == [(0,), (1, 2), (3, 4)]
    assert [rank_cores((1,), rank, 2) for rank in (0, 1)] == [(1,), (1,)]
    assert plan(1, [], CpuBudget((1,)), devices_per_worker=2)[0].threads == 1
    assert rank_cores((), 1, 2) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "scripted"}, "scripted engine has no model"),
        ({"engine": "paged"}, "paged engine does not divide a model among processes; use --engine dense"),
        ({"engine": "vllm"}, "vllm engine serves a model on one device; use --engine dense"),
        ({"split_mode": "layer"}, "--split-mode layer gives each GPU some of the layers"),
    ],
)
def test_what_cannot_be_on_several_devices(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        plan_workers(PoolArguments(devices_per_worker=2, devices="cpu", **arguments), [])


def test_the_processes_of_a_worker_talk_on_this_machine() -> None:
    group = WorkerPlan(device="cuda:0+1", torch_device="cuda", visible="0,1", devices=2)
    environment = worker_environment(group, {"NCCL_SOCKET_IFNAME": "eth7", "LOCAL_RANK": "3"})
    assert environment["LOCAL_RANK"] == "0"
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("lo", "eth7")
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(WorkerPlan(device="cpu", torch_device="cpu"), {})


def test_scripted_workers_take_no_device_and_no_cores() -> None:
    arguments = PoolArguments(engine="scripted", workers=3, devices="0,1")
    assert usable_devices(arguments, {"CUDA_VISIBLE_DEVICES": "0"}) == []
    assert plan_workers(arguments, []) == [WorkerPlan(device="cpu", torch_device="cpu")] * 3


@pytest.mark.parametrize("workers", [0, -1, True, "two", 5000])
def test_numbers_of_workers_that_cannot_be(workers: int | str) -> None:
    with pytest.raises(InvalidParameter, match="workers"):
        check_workers(workers)


def test_the_environment_is_set_before_the_start() -> None:
    inherited = {"PATH": "/bin", "OMP_NUM_THREADS": "64"}
    cpu = worker_environment(WorkerPlan(device="cpu", torch_device="cpu", visible="", cores=(0,), threads=1), inherited)
    assert cpu["OMP_NUM_THREADS"] == cpu["MKL_NUM_THREADS"] == "1"
    assert cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert cpu["PATH"] == "/bin"
    assert cpu["GOMP_SPINCOUNT"] == "2000"
    assert cpu["THP_MEM_ALLOC_ENABLE"] == "1"
    asked_for = worker_environment(WorkerPlan(device="cpu", torch_device="cpu", threads=2), {"GOMP_SPINCOUNT": "7"})
    assert asked_for["GOMP_SPINCOUNT"] == "7"
    passive = worker_environment(
        WorkerPlan(device="cpu", torch_device="cpu", threads=2), {"OMP_WAIT_POLICY": "passive"}
    )
    assert "GOMP_SPINCOUNT" not in passive
    cuda = worker_environment(WorkerPlan(device="cuda:5", torch_device="cuda", visible="5"), inherited)
    assert cuda["CUDA_VISIBLE_DEVICES"] == "5"
    assert cuda["OMP_NUM_THREADS"] == "64"
    assert "GOMP_SPINCOUNT" not in cuda
