"""What a worker counts of its requests, and how a supervisor adds it up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samplerpool.config.arguments import ClientLimits, host_and_port
from samplerpool.engine.loop import Admitted, Prepared, RequestOutput
from samplerpool.errors import EngineError, InvalidParameter
from samplerpool.pool.metrics import Metric, MetricsBook, WorkerState
from samplerpool.types import PromptCount, RenderedPrompt
from samplerpool.wire.figures import BOUNDS, FIRST_TOKEN_S, TOKEN_S, Buckets, FigureReport, Histogram
from samplerpool.wire.messages import Failed, Generate, Pong, TokenPrompt
from samplerpool.worker.figures import ENGINE_COUNTERS, GAUGES, Ended, Figures
from samplerpool.worker.request_log import RequestLog, request_line
from samplerpool.worker.session import AbortRun, Send, Session, Submit

CLIENT = b"client"


def request(request_id: int = 1) -> Generate:
    return Generate(request_id=request_id, incarnation="i1", prompt=TokenPrompt([1]), params={})


def submitted(*request_ids: int, now: float = 0.0) -> Figures:
    figures = Figures()
    assert figures.acted([Submit((1, number), request(number)) for number in request_ids], now) == []
    return figures


def token(count: int = 1, reason: Any = None, error: Any = None, *, request_id: int = 1) -> RequestOutput:
    return RequestOutput((1, request_id), 0, [5] * count, "a", reason, error)


# ---- a worker's figures -------------------------------------------------------------------------------------------


def test_a_request_that_is_answered() -> None:
    figures = submitted(1, now=10.0)
    assert figures.produced([Admitted((1, 1), (7, 8, 9), 0)], 10.25) == []
    assert figures.produced([token()], 10.5) == []
    assert figures.produced([token(2)], 11.5) == []
    assert figures.produced([token(1, "stop")], 12.0) == [Ended((1, 1), "stop", "", 3, 4, 0.25, 0.5, 2.0)]
    report = figures.report({})
    assert report.outcomes == {"stop": 1}
    assert report.counters == {"prompt_tokens": 3, "completion_tokens": 4}
    assert report.histograms[FIRST_TOKEN_S] == in_buckets(FIRST_TOKEN_S, 0.5)
    assert report.histograms[TOKEN_S] == in_buckets(TOKEN_S, 0.5, 0.5, 0.5)  # two tokens a second apart, then one


def test_a_prompt_that_is_only_counted_is_none_that_was_read() -> None:
    figures = submitted(1, now=10.0)
    ended = Ended((1, 1), "counted", "", 7, 0, 0.5, None, 0.5)
    assert figures.produced([Prepared((1, 1), PromptCount(7, 128, 2048))], 10.5) == [ended]
    report = figures.report({})
    assert (report.outcomes, report.counters["prompt_tokens"]) == ({"counted": 1}, 0)


def test_a_prompt_that_is_only_shown_is_told_apart() -> None:
    figures = submitted(1, now=10.0)
    ended = Ended((1, 1), "rendered", "", 2, 0, 0.5, None, 0.5)
    assert figures.produced([Prepared((1, 1), RenderedPrompt((5, 6), ["a", "b"]))], 10.5) == [ended]


def in_buckets(name: str, *values: float) -> Buckets:
    histogram = Histogram(BOUNDS[name])
    for value in values:
        histogram.observe(value)
    return Buckets(tuple(histogram.counts), histogram.total)


def test_a_request_that_fails_before_its_first_token() -> None:
    figures = submitted(1)
    [ended] = figures.produced([token(0, "error", EngineError("It broke."))], 2.0)
    assert ended == Ended((1, 1), "EngineError", "It broke.", 0, 0, None, None, 2.0)
    assert figures.report({}).outcomes == {"EngineError": 1}


def test_aborts_and_lost_clients_and_refusals_are_told_apart() -> None:
    figures = submitted(1, 2, 3)
    aborted = [AbortRun((1, 1)), Send(CLIENT, [Failed(1, "Aborted", "By its client.")])]
    lost = [AbortRun((1, 2))]
    refused = [Send(CLIENT, [Failed(9, "QueueFull", "Wait.")])]
    ended = figures.acted([*aborted, *lost, *refused, Send(CLIENT, [Pong(1, "i1", 0, [])])], 1.0)
    assert [(each.request_id, each.outcome) for each in ended] == [((1, 1), "Aborted"), ((1, 2), "Unreachable")]
    assert figures.acted([AbortRun((1, 3))], 1.0)[0].outcome == "Unreachable"
    assert figures.report({}).outcomes == {"Aborted": 1, "Unreachable": 2, "QueueFull": 1}


def test_nothing_is_counted_twice_or_after_the_end() -> None:
    figures = submitted(1)
    figures.acted([AbortRun((1, 1)), Send(CLIENT, [Failed(1, "Aborted", "")])], 1.0)
    assert figures.produced([token(3), token(1, "stop")], 2.0) == []
    assert figures.acted([AbortRun((1, 1))], 3.0) == []
    report = figures.report({})
    assert report.outcomes == {"Aborted": 1}
    assert report.counters["completion_tokens"] == 0


def test_what_a_real_session_does_is_understood() -> None:
    figures, session = Figures(), Session("i1", ClientLimits(lease_s=5.0, max_queue_per_client=3))
    figures.acted(session.received(CLIENT, [request(n) for n in (1, 2, 3, 4)], 0.0), 0.0)
    assert figures.report({}).outcomes == {"QueueFull": 1}
    session.produced([token(1, "stop", request_id=1)])
    figures.produced([token(1, "stop", request_id=1)], 0.5)
    assert [ended.outcome for ended in figures.acted(session.tick(6.0), 6.0)] == ["LeaseExpired", "LeaseExpired"]
    figures.acted(session.received(CLIENT, [request(1)], 7.0), 7.0)
    assert [ended.outcome for ended in figures.acted(session.unreachable(CLIENT), 8.0)] == ["Unreachable"]
    figures.acted(session.received(CLIENT, [request(1), request(2)], 9.0), 9.0)
    assert [ended.outcome for ended in figures.acted(session.stop("Bye."), 9.0)] == ["WorkerDraining"] * 2
    expected = {"QueueFull": 1, "stop": 1, "LeaseExpired": 2, "Unreachable": 1, "WorkerDraining": 2}
    assert figures.report({}).outcomes == expected


def test_an_engine_s_own_figures_are_taken_over() -> None:
    description = {"running": 3, "queued": 4, "cache_tokens": 100, "prefix_hits": 5, "engine": "dense", "steps": 9}
    report = Figures().report(description)
    assert report.gauges == {"running": 3.0, "queued": 4.0, "cache_tokens": 100.0}
    assert report.counters["prefix_hits"] == 5


def test_a_report_fits_into_one_write_to_a_pipe() -> None:
    figures = Figures()
    names = [f"{'SomeLongErrorName'}{n}" for n in range(40)]
    figures.acted([Send(CLIENT, [Failed(n, name, "")]) for n, name in enumerate(names, 1)], 0.0)
    big = 10**15
    names = (*GAUGES, *ENGINE_COUNTERS)
    plain = figures.report(dict.fromkeys(names, big)).to_plain()
    plain["histograms"] = {name: [big] * (len(bounds) + 2) for name, bounds in BOUNDS.items()}
    plain["outcomes"] = dict.fromkeys(plain["outcomes"], 10**9)
    assert len(json.dumps({"event": "metrics", **plain})) < 4096  # PIPE_BUF: more might be cut in two


# ---- the line in the log ------------------------------------------------------------------------------------------


def test_the_line_of_a_request() -> None:
    ended = Ended((3, 17), "stop", "", 12, 40, 0.0012, 0.25, 1.5)
    expected = "request=3.17 outcome=stop prompt_tokens=12 completion_tokens=40 "
    assert request_line(ended, "") == expected + "prepared_ms=1.2 first_token_ms=250.0 total_ms=1500.0"
    failed = Ended((3, 17), "EngineError", 'It said "no"\nand left.', 0, 0, None, None, 0.5)
    assert request_line(failed, "w2").startswith("request=w2.3.17 outcome=EngineError ")
    assert request_line(failed, "w2").endswith('total_ms=500.0 error="It said \\"no\\"\\nand left."')
    assert len(request_line(Ended((1, 1), "EngineError", "x" * 10_000, 0, 0, None, None, 0.5), "")) < 500


@pytest.mark.parametrize(
    ("which", "logged"),
    [
        ("none", []),
        ("errors", ["EngineError", "LeaseExpired"]),
        ("all", ["stop", "Aborted", "EngineError", "LeaseExpired"]),
    ],
)
def test_which_requests_are_logged(which: str, logged: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "samplerpool.request")
    for outcome in ("stop", "Aborted", "EngineError", "LeaseExpired"):
        RequestLog(which, "w0").on_ended(Ended((1, 1), outcome, "", 0, 0, None, None, 0.0))
    assert [record.getMessage().split()[1].removeprefix("outcome=") for record in caplog.records] == logged


# ---- the supervisor's book ----------------------------------------------------------------------------------------


def report(stop: int, tokens: int, running: int = 0, first: tuple[float, ...] = ()) -> dict[str, Any]:
    histograms = {FIRST_TOKEN_S: in_buckets(FIRST_TOKEN_S, *first)}
    return FigureReport(
        {"stop": stop}, {"completion_tokens": tokens}, histograms, {"running": float(running)}
    ).to_plain()


def samples(book: MetricsBook, name: str) -> Any:
    found: dict[str, Metric] = {metric.name: metric for metric in book.metrics()}
    return found[f"samplerpool_{name}"].samples


def test_counts_go_on_over_a_restart() -> None:
    book = MetricsBook()
    assert book.take(0, "a", report(3, 30, first=(0.02, 7.0)))
    assert book.take(0, "a", report(5, 50, first=(0.02, 7.0, 7.0)))
    assert book.take(0, "b", report(0, 0))
    assert samples(book, "requests") == {("0", "stop"): 5}
    assert book.take(0, "b", report(2, 20, first=(0.02,)))
    assert book.take(0, "c", report(1, 10))
    assert samples(book, "requests") == {("0", "stop"): 8}
    assert samples(book, "completion_tokens") == {("0",): 80}
    assert samples(book, "time_to_first_token_seconds") == {("0",): in_buckets(FIRST_TOKEN_S, 0.02, 0.02, 7.0, 7.0)}


def test_each_worker_has_its_own() -> None:
    book = MetricsBook()
    book.take(1, "a", report(1, 10))
    book.take(0, "b", report(2, 20))
    assert samples(book, "completion_tokens") == {("0",): 20, ("1",): 10}


def test_gauges_are_of_workers_that_are_ready() -> None:
    book = MetricsBook()
    book.take(0, "a", report(1, 10, running=4))
    book.take(1, "b", report(1, 10, running=5))
    book.workers((WorkerState(0, "ready", 0), WorkerState(1, "restarting", 2)))
    assert samples(book, "requests_running") == {("0",): 4.0}
    assert samples(book, "worker_ready") == {("0",): 1.0, ("1",): 0.0}
    assert samples(book, "worker_restarts") == {("0",): 0, ("1",): 2}
    assert samples(book, "completion_tokens") == {("0",): 10, ("1",): 10}


def test_restarts_go_on_where_a_worker_is_removed_and_another_comes() -> None:
    book = MetricsBook()
    for states in ([0, 3], [0, 4], [0], [0], [0, 0], [0, 1], [0], [0, 2]):
        book.workers(tuple(WorkerState(index, "ready", restarts, 1) for index, restarts in enumerate(states)))
    assert samples(book, "worker_restarts") == {("0",): 0, ("1",): 7}
    assert samples(book, "worker_hangs") == {("0",): 1, ("1",): 3}


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": {"stop": "many"}},
        {"outcomes": None},
        {"histograms": {FIRST_TOKEN_S: [1, 2]}},
        {"histograms": {"other": [1, 2]}},
        {"gauges": {"running": []}},
    ],
)
def test_what_is_no_report_changes_nothing(change: dict[str, Any]) -> None:
    book = MetricsBook()
    book.take(0, "a", report(3, 30))
    assert not book.take(0, "b", {**report(1, 1), **change})
    assert samples(book, "requests") == {("0", "stop"): 3}


def test_a_report_survives_json() -> None:
    made = submitted(1)
    made.produced([token(2, "stop")], 0.5)
    plain = json.loads(json.dumps(made.report({"running": 1}).to_plain()))
    assert FigureReport.from_plain(plain) == made.report({"running": 1})


# ---- the address --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:9100", ("127.0.0.1", 9100)), ("[::1]:0", ("::1", 0)), ("node-7:80", ("node-7", 80))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert host_and_port("metrics", text) == expected


@pytest.mark.parametrize("text", ["", "9100", ":9100", "host:", "host:x", "host:70000", "::1:80", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidParameter, match="HOST:PORT"):
        host_and_port("metrics", text)
