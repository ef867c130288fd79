"""The file that tells how a run went over time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.history import HistoryFile, Point, Session, history_path, read_history, thinned
from samplerpool.batch.report.timeline import pauses, running_s, spans, worker_uses
from samplerpool.batch.tally import Progress, WorkerTally


def progress(second: float, *, utilisation: float = 0.5) -> Progress:
    done = int(10 * second)
    workers = (WorkerTally(0, done, 5 * done, 4, utilisation=utilisation), WorkerTally(3, utilisation=0.0))
    return Progress(done, None, 1, 5 * done, 1.0, second, None, workers, 0, 0, 7 * done)


def write(output: Path, seconds: list[float], began: float, *, resumed: bool = False) -> None:
    with HistoryFile(output, resumed=resumed, clock=lambda: began) as history:
        for second in seconds:
            history.update(progress(second))


def test_what_was_done_is_noted_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    write(output, [tenth / 10 for tenth in range(34)], 1000.0)
    (session,) = read_history(output)
    assert [point.elapsed_s for point in session.points] == [1.0, 2.0, 3.0, 3.3]
    last = session.points[-1]
    assert (last.rows, last.errors, last.prompt_tokens, last.completion_tokens) == (34, 1, 231, 165)
    assert [(share.index, share.rows, share.filled_s) for share in last.workers] == [(0, 33, 1.65), (3, 0, 0.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.history.jsonl"]


def test_a_night_fits_into_a_bounded_number_of_moments_and_sums_stay_exact(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    write(output, [float(second) for second in range(1, 30_001)], 0.0)
    (session,) = read_history(output)
    assert 500 <= len(session.points) <= 2000
    assert session.points[-1].elapsed_s == 30_000.0
    gaps = [after.elapsed_s - before.elapsed_s for before, after in pairwise(session.points)]
    assert max(gaps) <= 2 * 33
    found = spans([session])
    assert 100 <= len(found) <= 121
    assert sum(span.rows * (span.end_s - span.begin_s) for span in found) == pytest.approx(300_001)
    assert all(span.filled == {0: pytest.approx(0.5, abs=1e-3), 3: 0.0} for span in found)


def test_processes_of_a_run_follow_one_another_and_a_new_run_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    write(output, [1.0, 2.0, 4.0], 1000.0)
    with history_path(output).open("a") as torn:
        torn.write("[5.0,50,1,")
    write(output, [1.0, 3.0], 1060.0, resumed=True)
    sessions = read_history(output)
    assert [(s.number, s.began, len(s.points)) for s in sessions] == [(1, 1000.0, 3), (2, 1060.0, 2)]
    assert running_s(sessions) == 7.0
    assert [(pause.at_s, pause.seconds) for pause in pauses(sessions)] == [(4.0, 56.0)]
    assert [(span.begin_s, span.end_s) for span in spans(sessions)] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 7)]
    use, idle = worker_uses(sessions)
    assert (use.index, use.rows, use.completion_tokens, use.filled) == (0, 70, 350, 0.5)
    assert (idle.index, idle.rows, idle.filled) == (3, 0, 0.0)
    write(output, [1.0], 2000.0)
    assert [session.number for session in read_history(output)] == [1]


def test_of_a_run_that_was_begun_very_often_the_last_processes_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for number in range(105):
        write(output, [0.5, 1.0, 2.0], 10.0 * number, resumed=number > 0)
    numbers = [session.number for session in read_history(output)]
    assert numbers == list(range(6, 106))


@given(st.lists(st.lists(st.floats(0.1, 1e6), max_size=40), min_size=1, max_size=9), st.integers(36, 100))
def test_leaving_out_moments_keeps_the_last_of_each_process_and_their_order(
    times: list[list[float]], most: int
) -> None:
    sessions = [Session(n, 0.0, [Point(t, 0, 0, 0, 0) for t in sorted(each)]) for n, each in enumerate(times)]
    kept, _ = thinned(sessions, 1.0, most)
    assert sum(len(session.points) for session in kept) <= max(most // 2, 9)
    for before, after in zip(sessions, kept, strict=True):
        assert after.points[-1:] == before.points[-1:]
        assert after.points == [point for point in before.points if any(point is each for each in after.points)]


def test_a_run_goes_on_where_it_cannot_be_written_and_says_so_once(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = tmp_path / "gone"
    with HistoryFile(folder / "out.jsonl", resumed=True, note=notes.append) as history:
        for second in range(5):
            history.update(progress(float(second)))
    assert len(notes) == 1
    assert "out.jsonl.history.jsonl cannot be written (No such file or directory); the batch goes on" in notes[0]


@pytest.mark.parametrize("text", ["", "{", "[1,2]\n", '{"format": 9}\n', '{"format": 1}\n', "\x00\xff", "7\n"])
def test_what_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    output = tmp_path / "out.jsonl"
    history_path(output).write_text(text, encoding="latin-1")
    assert read_history(output) == []
    write(output, [1.0], 5.0, resumed=True)
    assert [session.number for session in read_history(output)] == [1]
    assert all(json.loads(line) for line in history_path(output).read_text().splitlines())
