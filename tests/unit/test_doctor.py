"""What ``samplerpool doctor`` makes of the facts of a machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from samplerpool.pool.diagnosis import (
    Facts,
    Finding,
    GpuProcess,
    Leftover,
    Package,
    Place,
    TorchFacts,
    diagnose,
)

GIB = 2**30
TORCH = TorchFacts(version="2.9", built_for="CUDA 12.8", capability="AVX2", openmp=("libgomp.so.1",))
GOOD = Facts(
    python=(3, 12, 1),
    packages=(
        Package(name="pyzmq", wanted=">=26", installed="27.0", fits=True),
        Package(name="numba", wanted=">=0.60", installed="0.61", fits=True, extra="fast"),
    ),
    torch=replace(TORCH, devices=("cuda:0 Big, 80 GiB",)),
    device_files=("/dev/nvidia0",),
    visible=None,
    gpu_processes=(),
    cores=8,
    cpu_limit=None,
    memory_bytes=64 * GIB,
    places=(Place(purpose="sockets", path="/run/x"), Place(purpose="logs", path="/log", free_bytes=10 * GIB)),
    open_files=4096,
    pidfd=True,
    environ={},
    leftovers=(),
    pools=("p",),
)


def found(check: str, **changes: Any) -> list[Finding]:
    return [finding for finding in diagnose(replace(GOOD, **changes)) if finding.check == check]


def one(check: str, **changes: Any) -> tuple[str, str]:
    """Level and advice of the only finding of a check; its advice must say something unless all is well."""
    [finding] = found(check, **changes)
    assert bool(finding.advice) == (finding.level != "ok")
    return finding.level, f"{finding.text} -> {finding.advice}"


def test_a_good_machine_has_nothing_but_ok() -> None:
    findings = diagnose(GOOD)
    assert {finding.level for finding in findings} == {"ok"}
    assert {finding.advice for finding in findings} == {""}
    checks = ["python", "packages", "extra fast", "torch", "devices", "gpu use", "cores", "memory", "sockets", "logs"]
    assert [finding.check for finding in findings] == [*checks, "leftovers"]


def test_an_old_python() -> None:
    assert one("python", python=(3, 10, 4)) == ("failure", "3.10.4 -> Use Python 3.11 or newer.")


def test_packages_that_are_missing_or_too_old() -> None:
    missing = Package(name="msgpack", wanted=">=1.0.8", installed=None, fits=False)
    old = Package(name="pyzmq", wanted=">=26", installed="24.0", fits=False)
    findings = found("packages", packages=(missing, old))
    assert [finding.level for finding in findings] == ["failure", "failure"]
    assert findings[0].text == "msgpack is missing, >=1.0.8 is needed"
    assert findings[1].text == "pyzmq 24.0 is installed, >=26 is needed"
    assert findings[1].advice == "Install it: pip install 'pyzmq>=26'"


def test_a_missing_extra_is_a_warning_that_says_what_it_is_for() -> None:
    numba = Package(name="numba", wanted=">=0.60", installed=None, fits=False, extra="fast")
    level, text = one("extra fast", packages=(numba,))
    assert level == "warning"
    assert "run slower" in text
    assert "pip install 'samplerpool[fast]'" in text


def test_a_torch_that_cannot_be_imported() -> None:
    level, text = one("torch", torch=TorchFacts(problem="no answer within 60 s"))
    assert level == "failure"
    assert "no answer within 60 s" in text
    assert found("devices", torch=TorchFacts(problem="x")) == []


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"visible": "-1"}, "warning", "CUDA_VISIBLE_DEVICES='-1' leaves none"),
        ({"torch": replace(TORCH, built_for="")}, "warning", "built for the CPU only"),
        ({}, "warning", "torch (CUDA 12.8) sees none"),
        ({"device_files": ()}, "ok", "no GPU"),
    ],
)
def test_gpus_that_torch_does_not_see(changes: dict[str, Any], level: str, words: str) -> None:
    got, text = one("devices", **{"torch": TORCH, **changes})
    assert got == level
    assert words in text


def test_processes_that_hold_a_gpu() -> None:
    ours = GpuProcess(pid=7, name="python", used="10 MiB", ours=True)
    other = GpuProcess(pid=8, name="game", used="20 MiB", ours=False)
    first, second = found("gpu use", gpu_processes=(ours, other))
    assert (first.level, second.level) == ("ok", "warning")
    assert "game (pid 8) holds 20 MiB" in second.text
    assert "kill 8" in second.advice
    assert found("gpu use", gpu_processes=None) == []


def test_several_libraries_of_openmp() -> None:
    level, text = one("openmp", torch=replace(TORCH, openmp=("libgomp-a1b2.so.1", "libiomp5.so")))
    assert level == "warning"
    assert "libiomp5.so" in text
    assert found("openmp", torch=replace(TORCH, openmp=("libgomp-a1b2.so.1", "libgomp.so.1"))) == []


@pytest.mark.parametrize(("limit", "level"), [(None, "ok"), (8.0, "ok"), (2.5, "ok"), (0.5, "warning")])
def test_cores_and_their_limit(limit: float | None, level: str) -> None:
    assert one("cores", cpu_limit=limit)[0] == level


def test_little_memory() -> None:
    assert one("memory", memory_bytes=GIB)[0] == "warning"


def test_folders_that_cannot_be_used() -> None:
    bad = Place(purpose="logs", path="/log", problem="/log cannot be written", hint="Set SAMPLERPOOL_LOG_DIR.")
    assert one("logs", places=(bad,)) == ("failure", "/log cannot be written -> Set SAMPLERPOOL_LOG_DIR.")
    assert one("logs", places=(replace(bad, essential=False),))[0] == "warning"
    full = Place(purpose="logs", path="/log", free_bytes=5 * 2**20)
    assert one("logs", places=(full,))[0] == "warning"


def test_few_open_files_and_no_pidfd() -> None:
    assert one("open files", open_files=256)[0] == "warning"
    assert one("kernel", pidfd=False)[0] == "failure"


@pytest.mark.parametrize(
    ("name", "value", "odd"),
    [
        ("GOMP_CPU_AFFINITY", "0-3", True),
        ("OMP_PROC_BIND", "true", True),
        ("OMP_WAIT_POLICY", "ACTIVE", True),
        ("OMP_WAIT_POLICY", "passive", False),
        ("CUDA_LAUNCH_BLOCKING", "1", True),
        ("CUDA_LAUNCH_BLOCKING", "0", False),
    ],
)
def test_oddities_of_the_environment(name: str, value: str, odd: bool) -> None:
    findings = found("environment", environ={name: value})
    assert [finding.level for finding in findings] == (["warning"] if odd else [])


def test_leftovers_come_with_their_remedy() -> None:
    left = Leftover(what="pool 'x' died", remedy="samplerpool status removes it.")
    assert one("leftovers", leftovers=(left,)) == ("warning", "pool 'x' died -> samplerpool status removes it.")
