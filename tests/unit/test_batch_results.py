"""Output rows, their file, and the figures of a run."""

import resource
from pathlib import Path

import pytest

from samplerpool.batch.output import OutputFile
from samplerpool.batch.tally import Tally, WorkerTally
from samplerpool.data.answers import Answer, RowResult, output_row
from samplerpool.data.json_text import to_json
from samplerpool.data.rows import Row, row_from
from samplerpool.errors import BadRow, BatchError, OutputExists


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


def test_the_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "out.jsonl"
    with OutputFile(path) as output:
        output.write({"a": 1})
        output.flush()
        assert not path.exists()
        assert output.partial.read_text() == '{"a":1}\n'
        output.write({"a": 2})
        output.finish()
    assert path.read_text() == '{"a":1}\n{"a":2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_existing_output_is_refused_before_anything_is_touched(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(OutputExists, match="--overwrite"):
        OutputFile(path)
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    with OutputFile(path, overwrite=True) as output:
        output.write({"a": 1})
        assert path.read_text() == "old"
        output.finish()
    assert path.read_text() == '{"a":1}\n'


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out.jsonl"
    with OutputFile(path) as output:
        output.write({"a": 1})
        path.write_text("somebody else's")
        with pytest.raises(OutputExists, match="appeared"):
            output.finish()
    assert path.read_text() == "somebody else's"
    assert (tmp_path / "out.jsonl.partial").read_text() == '{"a":1}\n'


def test_what_an_interrupted_run_left_is_not_lost(tmp_path):
    path = tmp_path / "out.jsonl"
    with OutputFile(path) as output:
        output.write({"a": 1})  # and leave without finish
    partial = tmp_path / "out.jsonl.partial"
    assert partial.read_text() == '{"a":1}\n'
    with pytest.raises(OutputExists, match="interrupted run left it"):
        OutputFile(path)
    assert partial.read_text() == '{"a":1}\n'
    with OutputFile(path, overwrite=True) as output:
        output.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_interrupted_run_without_rows_leaves_nothing(tmp_path):
    with OutputFile(tmp_path / "out.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_the_same_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with OutputFile(path) as output:
        output.write({"a": 1})
        output.flush()
        with pytest.raises(OutputExists, match="Another batch"):
            OutputFile(path, overwrite=True)
        output.finish()
    assert path.read_text() == '{"a":1}\n'


def test_places_where_nothing_can_be_written(tmp_path):
    with pytest.raises(BatchError, match=r"folder .*none does not exist"):
        OutputFile(tmp_path / "none" / "out.jsonl")
    with pytest.raises(BatchError, match="not a regular file"):
        OutputFile(Path("/dev/null"), overwrite=True)
    with pytest.raises(BatchError, match="not a regular file"):
        OutputFile(tmp_path)


def test_a_full_disk_costs_no_finished_row(tmp_path):
    """A limit on the file's size stands in for the full disk: the system writes a part of a row, then refuses."""
    row = {"a": "x" * 100}
    line = to_json(row) + b"\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = OutputFile(tmp_path / "out.jsonl")
    with output:
        for _ in range(10):
            output.write(row)
        output.flush()
        for _ in range(10):
            output.write(row)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) * 15 + 30, hard))
        try:
            with pytest.raises(BatchError, match=r"File too large.* 15 complete rows are kept"):
                output.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.partial.read_bytes() == line * 15
    assert not output.path.exists()


def test_figures_of_a_run():
    tally = Tally(100.0, total=4)
    tally.workers = {1: WorkerTally(1), 0: WorkerTally(0)}
    for worker in (0, 1, 0):
        tally.answer(worker, answered("q", tokens=5).answer)
    tally.emitted(answered("q"))
    tally.emitted(RowResult(Row(1), 0, None, None, BadRow("bad")))
    progress = tally.progress(110.0, [(0, 2), (1, 0)], frozenset({0}))
    assert (progress.done, progress.total, progress.errors) == (4, 4, 1)
    assert (progress.completion_tokens, progress.tokens_per_s, progress.left_s) == (15, 1.5, 0.0)
    assert progress.workers == (WorkerTally(0, 2, 10, 2, True), WorkerTally(1, 1, 5, 0, False))
    summary = tally.summary(110.0, 42, complete=True)
    assert (summary.rows, summary.errors, summary.error_rows) == (2, {"BadRow": 1}, 1)
    assert (summary.prompt_tokens, summary.tokens_per_s, summary.run_seed) == (9, 1.5, 42)


def test_time_left_is_told_from_the_rows_done():
    tally = Tally(0.0, total=10)
    assert tally.progress(5.0, [], frozenset()).left_s is None
    tally.workers = {0: WorkerTally(0)}
    for _ in range(4):
        tally.answer(0, answered("q").answer)
    assert tally.progress(8.0, [], frozenset()).left_s == 12.0
    assert Tally(0.0).progress(5.0, [], frozenset()).left_s is None
