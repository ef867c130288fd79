"""The journal of a batch, what run it is of, and the output that is put together of it."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.journal import HEADER, Journal, Outcome, row_hash
from samplerpool.batch.journal_tail import JournalTail
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.order import InOrder
from samplerpool.batch.output import BatchOutput
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.rows import Row, row_from
from samplerpool.errors import BadRow, BatchError, FingerprintMismatch, LeaseExpired, OutputExists

MANIFEST = Manifest("in.jsonl", 10, None, None, None, {}, {"name": "m", "weights": "ab"}, "1", 7)


def row(index: int, prompt: str = "Is it?") -> Row:
    return row_from({"id": index, "prompt": prompt}, index, f"Row {index}")


def answered(index: int, text: str = "Yes.", sample: int = 0) -> RowResult:
    return RowResult(row(index), sample, 11, Answer(text, "stop", 3, 2, 11, None))


def rows_in(path: Path, samples: int = 1) -> list[bytes]:
    with Journal(path, samples) as journal:
        return list(journal.lines())


# ---- the journal ----------------------------------------------------------------------------------------------------


def test_lines_come_back_in_the_order_of_rows_each_once_and_the_last_one_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", 2) as journal:
        for place, line in ((3, b"d\n"), (0, b"a\n"), (2, b"old\n"), (2, b"c\n")):
            journal.append(place // 2, place % 2, Outcome.ANSWERED, b"h" * 8, line)
        assert list(journal.lines()) == [b"a\n", b"c\n", b"d\n"]
        assert (journal.finished.count, journal.finished.text_bytes, journal.finished.rows) == (3, 6, 2)
    assert rows_in(tmp_path / "j", 2) == [b"a\n", b"c\n", b"d\n"]


def test_a_journal_that_is_cut_anywhere_keeps_what_is_whole_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = [b"%d\n" % number for number in range(4)]
    ends = [len(HEADER)]
    with Journal(path, 1) as journal:
        for number, line in enumerate(lines):
            journal.append(number, 0, Outcome.ANSWERED, b"h" * 8, line)
            journal.flush()
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        left = sum(end <= length for end in ends[1:])
        with Journal(path, 1) as journal:
            assert list(journal.lines()) == lines[:left]
            journal.append(9, 0, Outcome.ANSWERED, b"h" * 8, b"more\n")
        assert rows_in(path) == [*lines[:left]]  # what was not flushed is gone
        assert path.stat().st_size == ends[left]


def test_a_journal_is_followed_as_it_grows_is_begun_anew_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with JournalTail(path) as tail:

        def new() -> list[bytes]:
            return [record.line for record in tail.new()]

        assert new() == []
        assert not tail.gone
        with Journal(path, 1) as journal:
            for number in range(3):
                journal.append(number, 0, Outcome.ANSWERED, b"h" * 8, b"%d\n" % number)
                journal.flush()
                assert new() == [b"%d\n" % number]
            assert new() == []
        whole = path.read_bytes()
        path.write_bytes(whole + whole[len(HEADER) : -1])  # two more, and one that is not all there yet
        assert new() == [b"0\n", b"1\n"]
        path.write_bytes(whole + whole[len(HEADER) :])
        assert new() == [b"2\n"]
        with Journal(path, 1, fresh=True) as journal:
            journal.append(7, 0, Outcome.ANSWERED, b"h" * 8, b"7\n")
            journal.sync()
            assert new() == [b"7\n"]
            journal.append(8, 0, Outcome.ANSWERED, b"h" * 8, b"8\n")
            journal.sync()
            path.unlink()
        assert new() == [b"8\n"]
        assert tail.gone
        path.write_bytes(whole)
        assert len(new()) == 3
        assert not tail.gone


@given(st.data())
def test_nothing_behind_the_first_damage_is_believed(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, 1) as journal:
        for number in range(5):
            journal.append(number, 0, Outcome.ANSWERED, b"h" * 8, b"%d\n" % number)
        journal.sync()
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(len(HEADER), len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    record = (len(content) - len(HEADER)) // 5
    assert rows_in(path) == [b"%d\n" % number for number in range((at - len(HEADER)) // record)]


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"x" * 100)
    with pytest.raises(BatchError, match="is no journal"):
        Journal(tmp_path / "j", 1)
    assert (tmp_path / "j").read_bytes() == b"x" * 100


def test_damage_that_appears_later_is_told_and_not_passed_on(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", 1) as journal:
        journal.append(0, 0, Outcome.ANSWERED, b"h" * 8, b"a\n")
        journal.flush()
        with open(tmp_path / "j", "r+b") as file:
            file.seek(-6, 2)
            file.write(b"b")
        with pytest.raises(BatchError, match="damaged at byte 47"):
            list(journal.lines())


def test_a_full_disk_costs_no_finished_row(tmp_path: Path) -> None:
    """A limit on the file's size stands in for the full disk: the system writes a part of a row, then refuses."""
    path, line = tmp_path / "j", b"x" * 100 + b"\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, 1) as journal:
        for number in range(10):
            journal.append(number, 0, Outcome.ANSWERED, b"h" * 8, line)
        journal.flush()
        record = (path.stat().st_size - len(HEADER)) // 10
        for number in range(10, 20):
            journal.append(number, 0, Outcome.ANSWERED, b"h" * 8, line)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(HEADER) + record * 15 + 30, hard))
        try:
            with pytest.raises(BatchError, match="cannot be written: File too large"):
                journal.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (journal.finished.count, len(list(journal.lines()))) == (15, 15)
    assert len(rows_in(path)) == 15


# ---- what run it is -------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_and_says_what_has_changed(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path / "m")
    assert Manifest.read(tmp_path / "m") == MANIFEST
    now = replace(MANIFEST, run_seed=8, source="other.jsonl", params={"top_k": 5}, model={"name": "m", "weights": "cd"})
    assert MANIFEST.changes(now) == ['model.weights: was "ab", is "cd"', "params.top_k: was null, is 5"]
    assert MANIFEST.changes(MANIFEST) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 99}', '{"format": 1}'])
def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    with pytest.raises(BatchError, match=r"manifest .* cannot be read"):
        Manifest.read(tmp_path / "m")


# ---- the output -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def begun(path: Path, *finished: RowResult, **options: Any) -> BatchOutput:
    output = BatchOutput(path, **options)
    output.begin(replace(MANIFEST, overwrite=options.get("overwrite", False)))
    for result in finished:
        output.write(result)
    return output


def test_the_file_appears_only_at_the_end_and_in_order(path: Path) -> None:
    with begun(path, answered(1), answered(0)) as output:
        output.keep_safe()
        assert names(path) == ["out.jsonl.journal", "out.jsonl.run.json"]
        output.assemble()
    assert [line[:7] for line in path.read_text().splitlines()] == ['{"id":0', '{"id":1']
    assert names(path) == ["out.jsonl", "out.jsonl.run.json"]


def test_an_existing_output_is_refused_before_anything_is_touched(path: Path) -> None:
    path.write_text("old")
    with pytest.raises(OutputExists, match="--overwrite"):
        BatchOutput(path)
    assert names(path) == ["out.jsonl"]
    with begun(path, answered(0), overwrite=True) as output:
        assert path.read_text() == "old"
        output.assemble()
    assert path.read_text().startswith('{"id":0')


def test_what_is_to_be_replaced_is_replaced_also_by_the_run_that_goes_on(path: Path) -> None:
    path.write_text("old")
    begun(path, answered(0), overwrite=True).close()
    with begun(path, answered(1), resume=True) as output:
        output.assemble()
    assert len(path.read_text().splitlines()) == 2


def test_an_output_that_appears_meanwhile_is_not_replaced(path: Path) -> None:
    with begun(path, answered(0)) as output:
        path.write_text("somebody else's")
        with pytest.raises(OutputExists, match="appeared"):
            output.assemble()
    assert path.read_text() == "somebody else's"
    path.unlink()
    with BatchOutput(path, resume=True) as output:
        output.assemble()
    assert path.read_text().startswith('{"id":0')


def test_putting_it_together_can_be_done_again(path: Path) -> None:
    """As after a kill between the file's appearance and the journal's end."""
    begun(path, answered(0)).close()
    journal = (path.parent / "out.jsonl.journal").read_bytes()
    with BatchOutput(path, resume=True) as output:
        output.assemble()
    (path.parent / "out.jsonl.journal").write_bytes(journal)
    for _ in range(2):
        with BatchOutput(path, resume=True) as output:
            assert output.complete
        assert names(path) == ["out.jsonl", "out.jsonl.run.json"]


def test_what_an_interrupted_run_left_is_not_lost(path: Path) -> None:
    begun(path, answered(0)).close()
    with pytest.raises(OutputExists, match="To go on with it, give --resume"):
        BatchOutput(path)
    assert len(rows_in(path.with_name("out.jsonl.journal"))) == 1
    with begun(path, overwrite=True):
        pass
    assert names(path) == []


def test_two_runs_do_not_write_the_same_file(path: Path) -> None:
    with begun(path, answered(0)), pytest.raises(OutputExists, match="Another batch"):
        BatchOutput(path, overwrite=True)
    with pytest.raises(OutputExists, match="--resume"):
        BatchOutput(path)


def test_another_run_s_input_is_left_alone(path: Path) -> None:
    with begun(path, answered(0)) as output:
        output.spool_path.write_text("the only copy")
        with pytest.raises(OutputExists, match="Another batch"):
            BatchOutput(path, overwrite=True)
        assert output.spool_path.read_text() == "the only copy"


def test_an_output_that_no_run_has_made_is_not_called_complete(path: Path) -> None:
    path.write_text("old")
    for options in ({"resume": True}, {"retry_errors": True}):
        with pytest.raises(OutputExists, match="--overwrite"):
            BatchOutput(path, **options)
    assert names(path) == ["out.jsonl"]


def test_a_complete_output_is_that_of_its_settings_alone(path: Path) -> None:
    with begun(path, answered(0)) as output:
        output.assemble()
    with BatchOutput(path, resume=True) as output:
        assert output.complete
        output.check_settings(limit=None, params={})
        with pytest.raises(FingerprintMismatch, match=r"limit: was null, is 5\. Undo that, or choose another --output"):
            output.check_settings(limit=5)


def test_a_complete_output_is_that_of_its_input_alone(path: Path) -> None:
    with begun(path, answered(1), answered(0)) as output:
        output.assemble()
    with BatchOutput(path, resume=True) as output:
        assert output.complete
        output.check_input([row(1), row(0)])
        for others in ([row(0), row(1, "Changed?")], [row(0)], [row(0), row(1), row(2)]):
            with pytest.raises(FingerprintMismatch, match=r"The input is not the one that .* was made of"):
                output.check_input(others)


def test_a_torn_length_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, 1) as journal:
        journal.append(0, 0, Outcome.ANSWERED, b"h" * 8, b"a\n")
        journal.flush()
    with path.open("ab") as file:
        file.write(b"\xff" * 40)
    assert rows_in(path) == [b"a\n"]


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"folder .*none does not exist"):
        BatchOutput(tmp_path / "none" / "out.jsonl")
    with pytest.raises(BatchError, match="not a regular file"):
        BatchOutput(Path("/dev/null"), overwrite=True)
    with pytest.raises(BatchError, match="not a regular file"):
        BatchOutput(tmp_path)


def test_a_folder_that_may_not_be_written_in_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    child = os.fork()
    if child == 0:  # as somebody who is not root, to whom nothing is forbidden
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            else:
                folder.chmod(0o555)
            BatchOutput(folder / "out.jsonl")
        except BatchError as error:
            os._exit(0 if "cannot be written: Permission denied" in error.message else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_the_missing_answers_are_asked_for(path: Path) -> None:
    def rows() -> Iterator[Row]:
        return map(row, range(4))

    manifest = replace(MANIFEST, params={"num_return_sequences": 2})
    with BatchOutput(path, 2) as output:
        output.begin(manifest)
        for index, sample in ((0, 0), (0, 1), (2, 1)):
            output.write(answered(index, sample=sample))
    with BatchOutput(path, 2, resume=True) as output:
        assert [(r.index, sorted(r.finished)) for r in output.missing(rows())] == [(1, []), (2, [1]), (3, [])]
        with pytest.raises(FingerprintMismatch, match="Row 2 of the input is not what it was"):
            list(output.missing(row(index, "Is it not?" if index == 2 else "Is it?") for index in range(4)))
        with pytest.raises(FingerprintMismatch, match="The input has 2 rows, and there were at least 3"):
            list(output.missing(itertools.islice(rows(), 2)))
        assert [r.index for r in output.missing(itertools.islice(rows(), 2), whole=False)] == [1]
    with pytest.raises(BatchError, match="has 2 answers a row, not 1"):
        BatchOutput(path, 1, resume=True)


def test_an_error_of_the_row_is_finished_and_one_that_passes_is_not(path: Path) -> None:
    with begun(path) as output:
        output.write(RowResult(row(0), 0, None, None, BadRow("bad")))
        output.write(RowResult(row(1), 0, 5, None, LeaseExpired("late"), transient=True))
        assert (output.unanswered, output.finished.count, output.finished.errors) == (1, 1, 1)
        assert [r.index for r in output.missing(map(row, range(2)))] == [1]


def test_errors_can_be_tried_again_and_the_output_is_replaced_if_it_is_the_run_s_own(path: Path) -> None:
    error = RowResult(row(1), 0, None, None, BadRow("bad"))
    with begun(path, answered(0), error) as output:
        output.assemble()
    first = path.read_bytes()
    assert names(path) == ["out.jsonl", "out.jsonl.journal", "out.jsonl.run.json"]
    with BatchOutput(path, resume=True) as output:
        assert output.complete
    with BatchOutput(path, retry_errors=True) as output:
        mended = row(1, "Is it so?")  # what was wrong with it may have been mended
        assert [r.index for r in output.missing([row(0), mended])] == [1]
        output.write(answered(1))
        output.assemble()
    assert path.read_bytes() != first
    assert names(path) == ["out.jsonl", "out.jsonl.run.json"]


def test_an_output_that_was_edited_is_not_replaced_by_another_try(path: Path) -> None:
    with begun(path, answered(0), RowResult(row(1), 0, None, None, BadRow("bad"))) as output:
        output.assemble()
    path.write_text("edited")
    with BatchOutput(path, retry_errors=True) as output:
        output.write(answered(1))
        with pytest.raises(OutputExists, match="appeared"):
            output.assemble()
    assert path.read_text() == "edited"


def test_what_has_changed_is_refused_unless_accepted(path: Path) -> None:
    begun(path, answered(0)).close()
    other = replace(MANIFEST, system="Be brief.", run_seed=8)
    with BatchOutput(path, resume=True) as output:
        with pytest.raises(FingerprintMismatch, match=r'system: was null, is "Be brief\."\. Undo that'):
            output.begin(other)
        assert output.begin(other, accept_changes=True).run_seed == MANIFEST.run_seed


def test_of_long_settings_the_place_that_differs_is_shown() -> None:
    long = "Answer the following question as well as you can, in one sentence. " * 3
    (said,) = replace(MANIFEST, prompt_template=long + "{{ a }}").changes(replace(MANIFEST, prompt_template=long))
    assert said.startswith("prompt_template: was ...")
    assert "{{ a }}" in said
    assert len(said) < 170


def test_the_input_s_length_is_that_of_its_highest_row_in_whatever_order(path: Path) -> None:
    with BatchOutput(path) as output:
        output.begin(MANIFEST)
        output.write(answered(2))
    with BatchOutput(path, resume=True) as output:
        assert [each.index for each in output.missing([row(2), row(1), row(0)])] == [1, 0]
        with pytest.raises(FingerprintMismatch, match="The input has 2 rows"):
            list(output.missing([row(1), row(0)]))


def test_a_row_is_known_by_all_of_its_columns() -> None:
    assert row_hash({"a": 1, "b": "x"}) == row_hash({"a": 1, "b": "x"})
    assert len({row_hash(columns) for columns in ({}, {"a": 1}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 1})}) == 5


@given(st.permutations(range(8)))
def test_results_are_given_back_in_order_whatever_order_they_come_in(places: list[int]) -> None:
    order = InOrder(2)
    taken = [row(index) for index in (7, 2, 0, 5)]  # of which the input may have more, in another order
    assert list(order.noting(iter(taken))) == taken
    results = [answered(each.index, sample=sample) for each in taken for sample in range(2)]
    assert [result for place in places for result in order.take(results[place])] == results
    assert order.rest() == []


def test_results_behind_a_gap_come_last() -> None:
    order = InOrder()
    list(order.noting(row(index) for index in range(3)))
    assert [order.take(answered(index)) for index in (2, 1)] == [[], []]
    assert [result.row.index for result in order.rest()] == [1, 2]
