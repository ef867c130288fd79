"""What a dry run makes of counted prompts: groups, histograms, estimates, and what is said of them."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.preflight import BUCKETS, Bucket, Preflight, Prices, Probe, estimate, round_width
from samplerpool.batch.problems import SHOWN_ROWS, Problems, Rows
from samplerpool.cli.batch_dry_run import output_state
from samplerpool.cli.preflight_view import Report, report_json, report_lines
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.rows import Row
from samplerpool.errors import BadRow, PromptTooLong, UsageError, WorkerDied
from samplerpool.types import PromptCount

PROBE = Probe(answers=10, prompt_tokens=200, completion_tokens=300, cut_off=4, elapsed_s=6.0, workers=2, places=2)


def counted(
    index: int,
    tokens: int,
    *,
    most: int = 100,
    limit: int = 1000,
    escaped: tuple[str, ...] = (),
    expected: int | None = None,
) -> RowResult:
    count = PromptCount(tokens, most, limit, [(token, "message 1 (user)") for token in escaped])
    answer = Answer("", "stop", tokens, 0, 0, None, count=count)
    return RowResult(Row(index, expected_tokens=expected), 0, 0, answer)


def failed(index: int, error: BadRow | PromptTooLong | WorkerDied, *, transient: bool = False) -> RowResult:
    return RowResult(Row(index), 0, None, None, error, transient)


def preflight(*results: RowResult, samples: int = 1, probe: int = 0) -> Preflight:
    checked = Preflight(samples, probe)
    for result in results:
        checked.add(result)
    return checked


@given(st.permutations(range(9)))
def test_the_first_rows_are_the_lowest_in_whatever_order_they_come(order: list[int]) -> None:
    rows, problems = Rows(), Problems()
    for number in [*order, *order]:  # two answers a row
        rows.add(number)
        problems.add(number, BadRow(f"row {number}"))
    assert (rows.count, rows.first) == (18, list(range(SHOWN_ROWS)))
    (kind,) = problems
    assert (kind.code, kind.rows, kind.sentence) == ("BadRow", rows, "row 0")


def test_rows_are_grouped_by_what_would_become_of_them() -> None:
    checked = preflight(
        failed(7, BadRow("seven")),
        counted(1, 950),
        failed(3, BadRow("three")),
        counted(2, 900, escaped=("<a>", "<b>")),
        failed(4, PromptTooLong("long")),
        counted(0, 20, escaped=("<a>",)),
        failed(5, WorkerDied("gone"), transient=True),
    )
    assert [(kind.code, kind.rows.first, kind.sentence) for kind in checked.problems] == [
        ("BadRow", [3, 7], "three"),
        ("PromptTooLong", [4], "long"),
    ]
    assert [kind.code for kind in checked.not_counted] == ["WorkerDied"]
    assert (checked.rows, checked.good) == (7, 3)
    assert checked.cut == Rows(1, [1])  # 900 tokens and 100 new ones just fit
    assert checked.escaped == Rows(2, [0, 2])
    assert [(one.row, one.token) for one in checked.examples] == [(0, "<a>"), (2, "<a>"), (2, "<b>")]
    assert (checked.prompt_tokens, checked.most_out) == (1870, 50 + 100 + 100)


@given(st.lists(st.integers(1, 5000), min_size=1))
def test_percentiles_and_histograms_hold_all_rows(lengths: list[int]) -> None:
    checked = preflight(*(counted(n, tokens, limit=9999) for n, tokens in enumerate(lengths)))
    ordered = sorted(lengths)
    assert (checked.percentile(0), checked.percentile(100)) == (ordered[0], ordered[-1])
    assert checked.percentile(50) == ordered[(len(ordered) - 1) // 2]
    buckets = checked.histogram()
    assert len(buckets) <= BUCKETS + 1
    assert buckets[0].low <= ordered[0]
    assert buckets[-1].high >= ordered[-1]
    assert all(one.high + 1 == other.low for one, other in itertools.pairwise(buckets))
    assert [one.rows for one in buckets] == [sum(one.low <= n <= one.high for n in lengths) for one in buckets]


def test_one_long_row_does_not_flatten_the_histogram() -> None:
    checked = preflight(*(counted(n, 10 + n % 20) for n in range(400)), counted(400, 900))
    assert checked.histogram()[0] == Bucket(10, 11, 40)
    assert checked.histogram()[-1] == Bucket(30, 900, 1)
    assert preflight().histogram() == []
    assert [round_width(least) for least in (0.1, 1, 1.5, 3, 6, 11, 21, 51)] == [1, 1, 2, 5, 10, 20, 50, 100]


def test_the_probe_s_rows_are_the_same_ones_in_whatever_order_rows_come() -> None:
    results = [counted(n, 10) for n in range(200)]
    kept = [row.index for row in preflight(*results, probe=8).probe_rows]
    random.Random(3).shuffle(results)
    assert [row.index for row in preflight(*results, probe=8).probe_rows] == kept
    assert len(kept) == 8
    assert max(kept) > 100
    assert preflight(*results[:3], failed(999, BadRow("bad")), probe=8).probe_rows == sorted(
        (result.row for result in results[:3]), key=lambda row: row.index
    )


def test_an_estimate_says_no_more_than_is_known() -> None:
    checked = preflight(counted(0, 20), counted(1, 40), failed(2, BadRow("bad")), counted(3, 960), samples=2)
    whole = estimate(checked, total=4, probe=None, prices=Prices(1.0, 10.0))
    assert (whole.answers, whole.tokens_in, whole.most_out) == (6, 2 * 1020, 2 * 240)
    assert (whole.expected_out, whole.seconds, whole.device_hours) == (None, None, None)
    assert (whole.cost_in, whole.most_cost_out, whole.expected_cost_out) == (0.00204, 0.0048, None)
    assert list(whole.basis) == []
    part = estimate(checked, total=400, probe=None, prices=Prices())
    assert (part.answers, part.tokens_in, part.cost_in) == (600, 204_000, None)
    assert list(part.basis) == ["Of 400 rows 4 were looked at; the others are held to be like them."]
    unknown = estimate(checked, total=None, probe=None, prices=Prices())
    assert unknown.answers == 6
    assert "not known" in unknown.basis[0]


def test_an_estimate_rests_on_a_probe_or_on_what_a_column_says() -> None:
    checked = preflight(*(counted(n, 20) for n in range(100)))
    whole = estimate(checked, total=100, probe=PROBE, prices=Prices(None, 10.0))
    assert (whole.expected_out, whole.seconds) == (3000, 60.0)
    assert whole.device_hours == pytest.approx(120 / 3600)
    assert whole.expected_cost_out == pytest.approx(0.03)
    assert whole.basis[1] == "Speed: 10 answers took 6 s."
    few = estimate(checked, total=100, probe=replace(PROBE, places=64), prices=Prices())
    assert "(--probe 256 would tell more)" in few.basis[1]
    foretold = preflight(counted(0, 20, expected=10), counted(1, 20, expected=500), counted(2, 20))
    told = estimate(foretold, total=3, probe=PROBE, prices=Prices())
    assert (told.expected_out, told.seconds) == (210, pytest.approx(4.2))
    assert "of 2 of 3 rows" in told.basis[0]
    nothing = estimate(preflight(failed(0, BadRow("bad"))), total=1, probe=None, prices=Prices(1.0))
    assert (nothing.answers, nothing.tokens_in, nothing.seconds, nothing.cost_in) == (0, 0, None, 0.0)


def test_a_report_for_people_and_one_for_programs(tmp_path: Path) -> None:
    checked = preflight(counted(0, 20, escaped=("<a>",)), counted(1, 950), failed(2, BadRow("line 3: no")))
    prices = Prices(2.0, None)
    whole = estimate(checked, total=3, probe=PROBE, prices=prices)
    state = output_state(tmp_path / "out.jsonl", None, overwrite=False)
    report = Report("in.jsonl", checked, 3, "all", whole, PROBE, prices, state)
    lines = list(report_lines(report))
    assert lines[:6] == [
        "3 rows looked at, nothing answered or written",
        "would become error rows: 1",
        "  BadRow: 1 row (2): line 3: no",
        "cut short by the model's length before --max-new-tokens: answers of 1 row (1)",
        "special tokens in texts, which are broken up: 1 row (0)",
        "  row 0: <a> in message 1 (user)",
    ]
    assert "the whole batch: 2 answers, 970 tokens in, at most 150 tokens out, about 60 expected" in lines
    assert "time: about 1.2 s on 2 workers (0.00 device-hours)" in lines
    assert "cost: 0.00194 in, at 2 a million tokens" in lines
    assert lines[-1] == f"output {tmp_path / 'out.jsonl'}: it is free"
    told = json.loads(report_json(report))
    assert told["errors"] == [{"code": "BadRow", "rows": 1, "first": [2], "sentence": "line 3: no"}]
    assert told["cut"] == {"rows": 1, "first": [1]}
    assert told["escaped"]["examples"] == [{"row": 0, "token": "<a>", "place": "message 1 (user)"}]
    assert sum(bucket["rows"] for bucket in told["prompt_tokens"]["histogram"]) == 2
    assert (told["estimate"]["tokens_in"], told["probe"]["answers"]) == (970, 10)
    assert told["output"] == {"path": str(tmp_path / "out.jsonl"), "free": True, "sentence": "it is free"}


def test_nothing_is_said_of_lengths_where_there_is_no_good_row() -> None:
    checked = preflight(failed(0, BadRow("bad")))
    whole = estimate(checked, total=1, probe=None, prices=Prices())
    report = Report("in.jsonl", checked, 1, "all", whole, None, Prices(), None)
    assert list(report_lines(report)) == [
        "1 row looked at, nothing answered or written",
        "would become error rows: 1",
        "  BadRow: 1 row (0): bad",
    ]
    assert json.loads(report_json(report))["prompt_tokens"] is None


def test_whether_an_output_is_free(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "left.jsonl.journal").touch()
    out.touch()
    there = [output_state(out, None, overwrite=yes) for yes in (False, True)]
    assert [state.free for state in there] == [False, True]
    assert "--overwrite would replace it" in there[0].sentence
    left = [output_state(tmp_path / "left.jsonl", None, overwrite=yes) for yes in (False, True)]
    assert [state.free for state in left] == [False, True]
    assert "--resume goes on with it" in left[0].sentence
    assert "does not exist" in output_state(tmp_path / "no" / "out.jsonl", None, overwrite=False).sentence
    assert "is no file" in output_state(tmp_path, "jsonl", overwrite=False).sentence
    with pytest.raises(UsageError, match=r"\.csv"):
        output_state(tmp_path / "out.csv", None, overwrite=False)
