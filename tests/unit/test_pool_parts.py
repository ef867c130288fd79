"""Names, settings, reports and log files of a pool."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.logs import open_log
from samplerpool.errors import ModelNotFound, StartFailed, UsageError
from samplerpool.pool.devices import WorkerPlan
from samplerpool.pool.events import WorkerFailed, WorkerLoading, WorkerProgress, WorkerReady
from samplerpool.pool.launcher import pool_settings
from samplerpool.pool.logfiles import tail
from samplerpool.pool.names import check_pool_name, private_pool_name
from samplerpool.pool.settings import PoolSettings
from samplerpool.pool.workerset import report_event
from samplerpool.wire.endpoint import ProcessId


@pytest.mark.parametrize("name", ["default", "a", "my-pool_2.b", "0", "x" * 40])
def test_names_that_may_be(name: str) -> None:
    assert check_pool_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "ä", "x" * 41, "a\n", "a\0"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="pool's name"):
        check_pool_name(name)


def test_private_names_are_valid_and_differ() -> None:
    names = {check_pool_name(private_pool_name()) for _ in range(3)}
    assert len(names) > 1


def test_settings_survive_json() -> None:
    settings = PoolSettings(
        pool="p",
        model_args=ModelArguments(model_name_or_path="m", trust_remote_code=True),
        sample_args=SampleArguments(temperature=0.5, stop=("a", "b")),
        pool_args=PoolArguments(pool="p", workers=2, engine_options={"step_s": 0.1}),
        plan=(WorkerPlan(device="cpu", torch_device="cpu", cores=(0, 1), threads=2),),
        folder=Path("/run/x"),
        log_folder=Path("/log/x"),
        detached=True,
        owner=ProcessId(1, 2),
        owner_fd=7,
    )
    assert PoolSettings.from_json(settings.to_json()) == settings
    assert settings.private


def test_reports_of_workers_become_events() -> None:
    assert report_event(1, {"event": "loading", "detail": "weights"}) == WorkerLoading(1, "weights")
    assert report_event(1, {"event": "ready", "description": {"a": 1}}) == WorkerReady(1, {"a": 1})
    assert report_event(1, {"event": "progress", "steps": 7, "live": 1, "busy": False}) == WorkerProgress(1, 7, True)
    assert report_event(1, {"event": "progress", "steps": 7, "live": 0, "busy": False}) == WorkerProgress(1, 7, False)
    assert report_event(1, {"event": "progress", "steps": "many"}) is None
    failed = report_event(1, {"event": "failed", "error": ["ModelNotFound", "No such model.", {"model": "m"}]})
    assert isinstance(failed, WorkerFailed)
    assert isinstance(failed.error, ModelNotFound)
    assert failed.error.data == {"model": "m"}


def test_an_error_of_a_foreign_class_becomes_start_failed_of_that_worker() -> None:
    failed = report_event(3, {"event": "failed", "error": ["ZeroDivisionError", "division by zero", {}]})
    assert isinstance(failed, WorkerFailed)
    assert isinstance(failed.error, StartFailed)
    assert failed.error.data == {"worker": 3}
    assert "ZeroDivisionError: division by zero" in failed.error.message


@pytest.mark.parametrize(
    "report", [{"event": "dance"}, {"event": "ready"}, {"event": "failed", "error": "x"}, {"event": 1}, {}]
)
def test_reports_that_mean_nothing_are_no_events(report: dict[str, object]) -> None:
    assert report_event(0, report) is None


def test_a_new_log_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "pool" / "worker-0.log"
    for text in (b"first\n", b"second\n", b"third\n"):
        descriptor = open_log(path)
        os.write(descriptor, text)
        os.close(descriptor)
    assert path.read_text() == "third\n"
    assert (path.parent / "worker-0.log.1").read_text() == "second\n"
    assert path.stat().st_mode & 0o077 == 0


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"line %d\n" % n for n in range(30)) + b"\xff")
    assert tail(path, 3) == "line 28\nline 29\n�"
    assert len(tail(path, 1000)) < 10_000


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_an_engine_whose_package_is_missing_is_refused_before_anything_starts() -> None:
    arguments = PoolArguments(engine="vllm", devices="cpu", workers=1)
    with pytest.raises(UsageError, match=r"--engine vllm needs the package vllm, .* pip install 'samplerpool\[vllm\]'"):
        pool_settings(ModelArguments(), SampleArguments(), arguments, detached=False)
