"""The shape of ``status --json``, and how the state of pools looks."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from samplerpool.cli.status_view import PlainView, console_for, drawing, plain_line, remarks
from samplerpool.pool.report import POOL_FIELDS, WORKER_FIELDS, pool_report

POOL_KEYS = [
    *("pool", "pid", "state", "model", "engine", "host", "detached", "private", "uptime_s", "metrics", "replacing"),
    *("problem", "workers", "endings"),
]
WORKER_KEYS = [
    *("index", "pid", "node", "device", "state", "detail", "restarts", "hangs", "stalled_s", "log"),
    *("engine", "adapters", "picked", "running", "queued", "clients", "tokens", "tokens_per_s", "steps", "max_batch"),
    *("max_model_len", "memory_bytes", "uptime_s", "problem", "details"),
]
"""Programs rely on these: a field may be added, none may go or change its meaning."""


def entry(index: int = 0, **changes: Any) -> dict[str, Any]:
    known = {"index": index, "pid": 10 + index, "device": "cpu", "state": "ready", "detail": "", "log": "/l"}
    return {**known, "restarts": 0, "hangs": 0, "stalled_s": 0.2, "incarnation": "i", **changes}


def live(**changes: Any) -> dict[str, Any]:
    return {"engine": "dense", "running": 3, "queued": 2, "tokens_per_s": 120.5, "tokens": 99, "live": 5, **changes}


def report(*workers: dict[str, Any], answers: dict[int, Any] | None = None, **changes: Any) -> dict[str, Any]:
    told = {"pool": "p", "pid": 1, "state": "running", "model": "m", "engine": "dense", "uptime_s": 65.0, **changes}
    return pool_report({**told, "workers": list(workers)}, answers or {})


def drawn(*pools: dict[str, Any]) -> str:
    stream = io.StringIO()
    console_for(stream).print(drawing(pools))
    return stream.getvalue()


def test_the_fields_are_these() -> None:
    assert list(POOL_FIELDS) == POOL_KEYS
    assert list(WORKER_FIELDS) == WORKER_KEYS


@pytest.mark.parametrize("answer", [live(), "Worker 0 did not answer.", None])
def test_all_fields_are_there_whoever_answered(answer: Any) -> None:
    told = report(entry(), answers={} if answer is None else {0: answer})
    assert list(told) == POOL_KEYS
    assert list(told["workers"][0]) == WORKER_KEYS
    json.dumps(told)


def test_what_an_engine_says_beyond_that_is_among_the_details() -> None:
    [worker] = report(entry(), answers={0: live(prefix_hits=7)})["workers"]
    assert worker["details"] == {"prefix_hits": 7}
    assert (worker["running"], worker["index"], worker["problem"]) == (3, 0, None)


def test_a_worker_that_says_nothing_is_told_from_its_supervisor() -> None:
    [worker] = report(entry(stalled_s=42.0), answers={0: "Worker 0 did not answer."})["workers"]
    assert (worker["state"], worker["stalled_s"]) == ("ready", 42.0)
    assert (worker["running"], worker["problem"]) == (None, "Worker 0 did not answer.")


def test_a_quiet_pool_has_a_table_and_no_remarks() -> None:
    told = report(entry(), entry(1), answers={0: live(), 1: live()})
    assert remarks(told) == []
    lines = drawn(told).splitlines()
    assert lines[0] == "Pool p: running, m, engine dense, 2 workers, pid 1, up 1m 05s"
    assert lines[1].split() == [
        "worker",
        "pid",
        "device",
        "state",
        *["running", "queued", "tokens/s", "memory", "uptime"],
    ]
    assert lines[2].split() == ["0", "10", "cpu", "ready", "3", "2", "120", "-", "-"]
    assert len(lines) == 4


def test_what_is_out_of_the_ordinary_is_remarked() -> None:
    told = report(
        entry(0, stalled_s=61.0),
        entry(1, state="restarting", detail="was killed by SIGKILL", restarts=3, hangs=1),
        answers={0: live(out_of_memory=2, batch_lowered_to=16)},
        problem="The supervisor did not answer.",
        replacing=[0],
    )
    assert remarks(told) == [
        "  The supervisor did not answer.",
        "  being replaced or removed: 1 worker",
        "  worker 0: no progress for 1m 01s",
        "  worker 0: ran out of memory in 2 steps; at most 16 requests at a time for now",
        "  worker 1: was killed by SIGKILL",
        "  worker 1: hung once",
        "  its log: samplerpool logs p --worker 1",
    ]
    assert "restarts" in drawn(told)
    assert drawn(told).splitlines()[3].split()[:4] == ["1", "-", "cpu", "restarting"]


def test_a_model_on_several_devices_is_remarked() -> None:
    answers = {index: live(split_mode="layer", devices=2) for index in range(2)}
    assert remarks(report(entry(), entry(1), answers=answers)) == [
        "  each worker's model lies on 2 devices, split mode layer"
    ]


def test_several_pools_and_none() -> None:
    assert drawn(report(entry()), report(entry(), pool="q")).splitlines()[3:5] == [
        "",
        "Pool q: running, m, engine dense, 1 worker, pid 1, up 1m 05s",
    ]
    assert drawn() == "No pool is running. Start one with: samplerpool launch --detach\n"


def test_a_name_in_brackets_is_no_markup() -> None:
    assert "[red]m[/]" in drawn(report(entry(), model="[red]m[/]"))


def test_a_line_for_those_who_have_changed() -> None:
    stream = io.StringIO()
    view = PlainView(stream, lambda: "12:00:00")
    one = report(entry(), answers={0: live()})
    other = report(entry(detail="loading weights", state="loading"), pool="q", state="starting")
    for pools in ([], [], [one], [one], [{**one, "uptime_s": 99.0}, other], [other], []):
        view.show(pools)
    assert stream.getvalue().splitlines() == [
        "12:00:00 no pool is running",
        "12:00:00 p: running | worker 0 ready, 3 running, 2 queued, 120 tokens/s",
        "12:00:00 q: starting | worker 0 loading; loading weights",
        "12:00:00 p: not running",
        "12:00:00 q: not running",
    ]


def test_a_line_tells_why_the_figures_are_missing() -> None:
    assert plain_line(report(problem="No answer.")) == "p: running (No answer.)"
