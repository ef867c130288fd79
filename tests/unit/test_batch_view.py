"""What a run shows: live, plain, and at the end."""

import dataclasses
import io
import os
import re

from samplerpool.batch.problems import Problems
from samplerpool.batch.tally import BatchSummary, Progress, WorkerTally, duration
from samplerpool.cli.batch_view import LiveView, PlainView, plain_line, summary_lines
from samplerpool.errors import BadRow, PromptTooLong

WORKERS = (WorkerTally(0, 60, 1200, 4, True, utilisation=0.974), WorkerTally(1, 59, 1180, 0, False, restarts=2))
PROGRESS = Progress(120, 1500, 1, 2380, 238.0, 10.0, 115.0, WORKERS, 0, 0, 9000, 901.2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_plain_line_has_all_figures():
    assert plain_line(PROGRESS) == (
        "120/1,500 rows, 2,380 tokens, out 238 tokens/s, in 901 tokens/s, 10 s so far, about 1 min 55 s left, "
        "1 error row, 2 restarts"
        " | worker 0: 60 rows, 1,200 tokens, 97% full | worker 1: 59 rows, 1,180 tokens (down), 0% full"
    )
    mortal = dataclasses.replace(PROGRESS, errors=0, deaths=2, suspects=7)
    assert "left, 2 worker deaths (7 rows are suspected), 2 restarts" in plain_line(mortal)
    unknown = Progress(7, None, 0, 9, 3.0, 3.0, None, ())
    assert plain_line(unknown) == "7 rows, 9 tokens, out 3 tokens/s, in 0 tokens/s, 3.0 s so far"


def test_plain_lines_come_every_few_seconds():
    now = [0.0]
    stream = io.StringIO()
    with PlainView(stream, lambda: now[0]) as view:
        for second in range(12):
            now[0] = float(second)
            view.update(PROGRESS)
        view.say("done")
    assert stream.getvalue().splitlines() == [plain_line(PROGRESS)] * 2 + ["done"]


def test_the_live_view_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with LiveView(stream) as view:
        coming = dataclasses.replace(WORKERS[1], coming=True, index=10)
        view.update(dataclasses.replace(PROGRESS, deaths=1, suspects=12, workers=(*WORKERS, coming)))
        view.say("[bold]said[/bold]")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()
    assert any(line.endswith(" 120/1,500 rows, 8%, about 1 min 55 s left") for line in shown)
    assert "  out 238 tokens/s, in 901 tokens/s; 2,380 tokens in 10 s" in shown
    assert "  1 error row, 1 worker death (12 rows are suspected), 4 restarts" in shown
    workers = [line.split() for line in shown if line.startswith("  worker")]
    assert workers[-3:] == [
        ["worker", "0", "60", "rows", "1,200", "tokens", "97%", "full", "4", "running"],
        ["worker", "1", "59", "rows", "1,180", "tokens", "0%", "full", "down", "2", "restarts"],
        ["worker", "10", "59", "rows", "1,180", "tokens", "0%", "full", "coming", "back", "2", "restarts"],
    ]
    assert any("[bold]said[/bold]" in line for line in shown)
    assert max(map(len, shown)) <= 80


def test_durations():
    assert [duration(s) for s in (0.0, 9.94, 10.4, 60, 3599.6, 7500)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_the_summary_names_errors_by_kind_and_the_seed():
    problems = Problems()
    for row in (9, 3, 12, 7, 5, 1, 8):
        problems.add(row, PromptTooLong(f"Row {row} is\ntoo long."))
    problems.add(4, BadRow("x" * 400))
    errors = {kind.code: kind.rows.count for kind in problems}
    summary = BatchSummary(200, errors, 4000, 2380, 10.0, WORKERS, 42, True, kinds=tuple(problems))
    assert summary_lines(summary) == [
        "200 rows in 10 s: 192 answered, 8 with errors",
        "  PromptTooLong: 7 rows (1, 3, 5, 7, 8, ...): Row 1 is too long.",
        f"  BadRow: 1 row (4): {'x' * 297}...",
        "4,000 prompt tokens, 2,380 completion tokens, 238 tokens/s",
        "worker 0: 60 rows, 1,200 tokens",
        "worker 1: 59 rows, 1,180 tokens (down)",
        "run seed 42 (--seed 42 draws the same again)",
    ]


def test_the_summary_tells_of_deaths():
    summary = BatchSummary(200, {}, 4000, 2380, 10.0, WORKERS, 42, True, deaths=3)
    assert summary_lines(summary)[4] == "3 worker deaths; what was being answered there was run again"


def test_a_terminal_that_has_just_been_closed_does_not_end_the_run():
    ours, theirs = os.openpty()
    with open(theirs, "w") as stream:
        view = LiveView(stream)
        with view:
            view.update(PROGRESS)
            os.close(ours)
            for _ in range(3):
                view.update(PROGRESS)
                view.say("Stopping")
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), theirs
        )  # as the signal's handler does; what is left must go somewhere
