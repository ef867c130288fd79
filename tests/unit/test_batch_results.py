"""Output rows, and the figures of a run."""

import pytest

from samplerpool.batch.tally import Tally, WorkerTally
from samplerpool.data.answers import Answer, RowResult, output_row
from samplerpool.data.rows import Row, row_from
from samplerpool.errors import BadRow


def text(role, value):
    return {"role": role, "content": [{"type": "text", "value": value}]}


def answered(value, index=0, *, message=None, reply="Yes.", tokens=2):
    return RowResult(row_from(value, index, "Line 1"), 0, 11, Answer(reply, "stop", 3, tokens, 11, message))


def test_an_answered_row_keeps_its_columns_and_gains_the_answer():
    assert output_row(answered({"id": "a", "prompt": "Is it?"}, 4)) == {
        "id": "a",
        "prompt": "Is it?",
        "messages": [text("user", "Is it?"), text("assistant", "Yes.")],
        "generation": {
            "index": 4,
            "text": "Yes.",
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "seed": 11,
            "error": None,
        },
    }


def test_the_parsed_turn_and_the_reference():
    parsed = {"role": "assistant", "content": [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "t"}]}
    row = {"messages": [text("user", "q"), text("assistant", "ref")]}
    output = output_row(answered(row, message=parsed))
    assert output["messages"] == [text("user", "q"), parsed]
    assert output["reference"] == text("assistant", "ref")
    assert row == {"messages": [text("user", "q"), text("assistant", "ref")]}


def test_what_could_not_be_parsed_is_told_of_the_row():
    output = output_row(answered("q", message={**text("assistant", "<tool_call>{"), "parse_error": "cut off"}))
    assert output["messages"][-1] == text("assistant", "<tool_call>{")
    assert output["generation"]["parse_error"] == "cut off"
    assert "parse_error" not in output_row(answered("q", message=text("assistant", "t")))["generation"]


def test_with_several_samples_the_row_says_which_one():
    assert "sample" not in output_row(answered("q"))["generation"]
    assert output_row(answered("q"), samples=2)["generation"]["sample"] == 0


def test_an_error_row_keeps_what_could_be_read():
    row = row_from({"id": 5, "text": "a"}, 3, "Line 9")
    output = output_row(RowResult(row, 0, None, None, row.error))
    assert {name: output[name] for name in ("id", "text")} == {"id": 5, "text": "a"}
    assert "messages" not in output
    assert output["generation"] == {
        "index": 3,
        "text": "",
        "finish_reason": "error",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "seed": None,
        "error": "BadRow: Line 9: a row needs a messages or a prompt column, or columns that a converter knows; "
        "this one has: id, text.",
    }


def test_figures_of_a_run():
    tally = Tally(100.0, total=4)
    tally.workers = {1: WorkerTally(1), 0: WorkerTally(0)}
    for worker in (0, 1, 0):
        tally.emitted(answered("q", tokens=5), worker)
    tally.emitted(RowResult(Row(1), 0, None, None, BadRow("bad")), None)
    progress = tally.progress(110.0, [(0, 2), (1, 0)], frozenset({0}))
    assert (progress.done, progress.total, progress.errors) == (4, 4, 1)
    assert (progress.completion_tokens, progress.tokens_per_s, progress.left_s) == (15, 1.5, 0.0)
    assert progress.workers == (WorkerTally(0, 2, 10, 2, True, utilisation=1.0), WorkerTally(1, 1, 5, 0, False))
    assert (progress.prompt_tokens, progress.prompt_tokens_per_s) == (9, 0.9)
    summary = tally.summary(110.0, 42, complete=True)
    assert (summary.rows, summary.errors, summary.error_rows) == (4, {"BadRow": 1}, 1)
    assert (summary.prompt_tokens, summary.tokens_per_s, summary.run_seed) == (9, 1.5, 42)


def test_time_left_is_told_from_the_rows_done():
    tally = Tally(0.0, total=10)
    assert tally.progress(5.0, [], frozenset()).left_s is None
    tally.workers = {0: WorkerTally(0)}
    for _ in range(4):
        tally.emitted(answered("q"), 0)
    assert tally.progress(8.0, [], frozenset()).left_s == 12.0
    assert Tally(0.0).progress(5.0, [], frozenset()).left_s is None


def test_rows_of_an_earlier_run_are_done_but_tell_nothing_of_the_time_left():
    tally = Tally(0.0, total=10, before=4)
    tally.workers = {0: WorkerTally(0)}
    for _ in range(2):
        tally.emitted(answered("q"), 0)
    progress = tally.progress(8.0, [], frozenset())
    assert (progress.done, progress.left_s) == (6, 16.0)


def test_rates_and_the_time_left_follow_the_last_minute():
    tally = Tally(0.0, total=1000)
    tally.worker_up(0, 4, another=False)
    for second in range(1, 301):  # a row of two tokens a second, then one every ten
        if second <= 200 or second % 10 == 0:
            tally.emitted(answered("q", tokens=2), 0)
        progress = tally.progress(float(second), [(0, 1)], frozenset({0}))
        if second == 200:
            assert (progress.tokens_per_s, progress.left_s) == (2.0, 800.0)
    assert progress.tokens_per_s == pytest.approx(0.2, abs=0.04)
    assert progress.left_s == pytest.approx(790 / 0.1, rel=0.2)
    for second in range(301, 401):
        progress = tally.progress(float(second), [(0, 1)], frozenset({0}))
    assert (progress.tokens_per_s, progress.left_s) == (0.0, None)


def test_how_full_a_worker_is_and_what_becomes_of_it():
    tally = Tally(0.0)
    tally.worker_up(3, 8, another=False)
    for tenth in range(1000):
        (worker,) = tally.progress(tenth / 10, [(3, 6 if tenth % 2 else 2)], frozenset({3})).workers
    assert (worker.state, round(worker.utilisation, 1), worker.restarts) == ("busy", 0.5, 0)
    (worker,) = tally.progress(100.0, [(3, 20)], frozenset({3})).workers
    assert worker.utilisation < 1.0
    assert tally.progress(200.0, [(3, 20)], frozenset({3})).workers[0].utilisation == pytest.approx(1.0, abs=1e-3)
    (worker,) = tally.progress(201.0, [(3, 0)], frozenset(), frozenset({3})).workers
    assert worker.state == "coming"
    tally.worker_up(3, 8, another=True)
    progress = tally.progress(202.0, [(3, 0)], frozenset({3}))
    assert (progress.workers[0].state, progress.restarts) == ("idle", 1)
    assert tally.progress(203.0, [(3, 0)], frozenset()).workers[0].state == "gone"
