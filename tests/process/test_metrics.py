"""Figures for Prometheus, scraped while workers work and die; the log lines of requests."""

from __future__ import annotations

import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from samplerpool import SyncSampler
from samplerpool.errors import RequestError, UsageError
from samplerpool.pool.exporter import MAX_CONNECTIONS
from samplerpool.pool.launcher import describe_pool
from tests.process.conftest import DEADLINE_S, eventually

Samples = dict[tuple[str, ...], float]


@contextmanager
def pool(workers: int = 1, **options: str) -> Iterator[SyncSampler]:
    settings = {"metrics": "127.0.0.1:0", **options}
    with SyncSampler.launch(engine="scripted", devices="cpu", workers=workers, **settings) as sampler:
        yield sampler


def address(sampler: SyncSampler) -> str:
    assert sampler.connection_file is not None
    url = describe_pool(sampler.connection_file)["metrics"]
    assert isinstance(url, str)
    return url


def scrape(url: str) -> dict[str, Samples]:
    """Samples by metric: (worker, outcome or bucket) to value."""
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {**sample.labels}
            assert labels.pop("pool")
            found.setdefault(sample.name, {})[tuple(labels.values())] = sample.value
    return found


def test_figures_while_requests_run_and_afterwards() -> None:
    with pool() as sampler:
        url = address(sampler)
        answer = sampler.generate("[[tokens:100000]][[pace:0.002]]", max_new_tokens=100_000)
        next(answer)
        eventually(lambda: scrape(url)["samplerpool_requests_running"].get(("0",)) == 1.0, "a request runs")
        before = scrape(url)["samplerpool_completion_tokens_total"][("0",)]
        eventually(lambda: scrape(url)["samplerpool_completion_tokens_total"][("0",)] > before, "the tokens grow")
        answer.close()
        assert "".join(sampler.generate("[[say:hello]]")) == "hello"
        with pytest.raises(RequestError):
            list(sampler.generate("[[fail]]"))
        expected = {("0", "Aborted"): 1.0, ("0", "stop"): 1.0, ("0", "EngineError"): 1.0}
        eventually(lambda: by_outcome(scrape(url)) == expected, "three outcomes")
        told = scrape(url)
        assert told["samplerpool_time_to_first_token_seconds_count"] == {("0",): 2.0}
        per_token = told["samplerpool_time_per_output_token_seconds_count"][("0",)]
        assert per_token == told["samplerpool_completion_tokens_total"][("0",)] - 2
        assert told["samplerpool_worker_memory_bytes"][("0",)] > 1e6
        assert told["samplerpool_worker_ready"] == {("0",): 1.0}


def by_outcome(told: dict[str, Samples]) -> Samples:
    """(worker, outcome), whichever way round the labels came."""
    ended = told.get("samplerpool_requests_total", {})
    return {(min(labels), max(labels)): value for labels, value in ended.items()}


def test_counts_outlive_their_worker() -> None:
    with pool(workers=2) as sampler:
        url = address(sampler)
        file = sampler.connection_file
        assert file is not None
        sampler.batch_infer([{"prompt": "[[tokens:10]]"} for _ in range(10)])
        eventually(lambda: sum(by_outcome(scrape(url)).values()) == 10, "ten answers")
        before = scrape(url)["samplerpool_completion_tokens_total"]
        os.kill(file.workers[1].process.pid, signal.SIGKILL)
        eventually(lambda: scrape(url)["samplerpool_worker_ready"][("1",)] == 0.0 or restarts(url, "1") > 0, "its end")
        assert scrape(url)["samplerpool_completion_tokens_total"] == before
        sampler.batch_infer([{"prompt": "[[tokens:10]]"} for _ in range(10)])
        eventually(lambda: sum(by_outcome(scrape(url)).values()) == 20, "ten more")
        after = scrape(url)["samplerpool_completion_tokens_total"]
        assert sum(after.values()) == sum(before.values()) + 110
        assert all(after[worker] >= before[worker] for worker in before)


def restarts(url: str, worker: str) -> float:
    return scrape(url)["samplerpool_worker_restarts_total"][(worker,)]


def test_an_address_that_is_taken_is_said_at_launch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"127.0.0.1:{port}: Address already in use"),
            pool(metrics=f"127.0.0.1:{port}"),
        ):
            pytest.fail("it started")


def test_a_missing_package_is_said_at_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UsageError, match=r"pip install 'samplerpool\[metrics\]'"), pool():
        pytest.fail("it started")


def test_it_is_bound_only_where_it_was_told() -> None:
    with pool(metrics="127.0.0.2:0") as sampler:
        url = address(sampler)
        assert scrape(url)["samplerpool_worker_ready"] == {("0",): 1.0}
        with pytest.raises(urllib.error.URLError):
            scrape(url.replace("127.0.0.2", "127.0.0.1"))


def test_clients_that_say_nothing_keep_nobody_out() -> None:
    with pool() as sampler:
        url = address(sampler)
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(2 * MAX_CONNECTIONS)]

        def answered() -> bool:
            try:
                return bool(scrape(url))
            except OSError:
                return False

        eventually(answered, "the silent ones were dropped")
        assert "".join(sampler.generate("[[say:hello]]")) == "hello"
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    ("which", "logged"), [("all", ["stop", "EngineError"]), ("errors", ["EngineError"]), ("none", [])]
)
def test_requests_in_the_log(which: str, logged: list[str], own_folders: Path) -> None:
    secret = "pass phrase"
    with SyncSampler.launch(engine="scripted", devices="cpu", log_requests=which, pool="p") as sampler:
        assert "".join(sampler.generate(f"[[say:{secret}]]")) == secret
        with pytest.raises(RequestError) as caught:
            list(sampler.generate(f"[[fail]] {secret}"))
    text = (own_folders / "log" / "p" / "worker-0.log").read_text()
    lines = [line.partition("samplerpool.request: ")[2] for line in text.splitlines() if "samplerpool.request" in line]
    assert [line.split()[1] for line in lines] == [f"outcome={outcome}" for outcome in logged]
    assert caught.value.data["request"].startswith("w0.")
    assert which == "none" or lines[-1].split()[0] == f"request={caught.value.data['request']}"
    assert all("prompt_tokens=" in line and "total_ms=" in line for line in lines)
    assert secret not in text
