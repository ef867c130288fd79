"""The commands that look at a batch from beside it, over real processes with the scripted engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool import SyncSampler
from samplerpool.batch.history import read_history
from samplerpool.data.answers import row_seed
from tests.process.conftest import DEADLINE_S, eventually
from tests.process.test_batch_runs import Batch, connect, write_rows


def beside(command: str, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``samplerpool batch COMMAND OUTPUT``, as typed."""
    words = [sys.executable, "-m", "samplerpool", "batch", command, str(output), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S)


def test_an_output_is_reported_and_compared_and_with_another_model_it_is_not(
    tmp_path: Path, sampler: SyncSampler
) -> None:
    write_rows(tmp_path / "in.jsonl", [f"[[random:6]] {i}" for i in range(30)])
    pool, output = connect(sampler), tmp_path / "out.jsonl"
    assert Batch(tmp_path, *pool, "--temperature", "0.8", "--n", "2").ends() == 0
    (session,) = read_history(output)
    assert session.points[-1].rows == sum(share.rows for share in session.points[-1].workers) == 60
    report = beside("report", output)
    assert report.stdout.startswith(f"{output}.report.html is written: 60 rows counted, 60 to read, "), report.stderr

    check = beside("verify", output, "--rows", "12", *pool)
    assert check.returncode == 0, check.stderr
    lines = check.stdout.splitlines()
    assert len(lines) == 13
    assert all(line.startswith("row ") and line.endswith(": equal") for line in lines[:-1])
    assert lines[-1] == "12 of 60 answers compared: 12 equal"

    rows = [json.loads(line) for line in output.read_text().splitlines()]
    rows[7]["generation"]["text"] += "!"
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = beside("verify", output, "--rows", "60", *pool)
    assert check.returncode == 3, check.stderr
    assert "row 3, sample 1: differs (character 6): was '!', is the end" in check.stdout
    assert "cannot be told: UnsupportedParameter" in check.stdout  # this engine cannot be asked for near-ties
    assert check.stdout.endswith("60 of 60 answers compared: 59 equal, 1 differs\n")

    (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    check = beside("verify", output, *pool)
    assert check.returncode == 2
    assert "in.jsonl" in check.stderr
    moved = ("--input", str(tmp_path / "moved.jsonl"), *pool, "--rows", "60")
    assert beside("verify", output, *moved).returncode == 3
    manifest = tmp_path / "out.jsonl.run.json"
    noted = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**noted, "model": {**noted["model"], "name": "other"}}))
    check = beside("verify", output, *moved)
    assert check.returncode == 1
    assert 'This pool would not answer as the run\'s did. model.name: was "other", is ' in check.stderr
    assert beside("verify", output, *moved, "--accept-changes").returncode == 3


def test_tail_shows_answers_while_they_come_and_afterwards(tmp_path: Path, sampler: SyncSampler) -> None:
    prompts = [f"[[say:answer {i}]]" if i < 5 else f"[[tokens:30]][[pace:0.05]] {i}" for i in range(40)]
    write_rows(tmp_path / "in.jsonl", [*prompts, "[[fail]]"])
    output = tmp_path / "out.jsonl"
    assert "There is no " in beside("tail", output).stderr
    batch = Batch(tmp_path, *connect(sampler))
    eventually(batch.has_rows, "some rows are written")
    words = [sys.executable, "-m", "samplerpool", "batch", "tail", str(output), "-f", "--json", "-n", "1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert beside("tail", output, "--row", "39", "-f").stdout.startswith("--- row 39 · stop · ")
        assert batch.ends() == 3, batch.stderr
        shown, said = following.communicate(timeout=DEADLINE_S)
    rows = [json.loads(line) for line in shown.splitlines()]
    assert sorted(row["generation"]["index"] for row in rows) == list(range(41))
    assert sorted(shown.splitlines()) == sorted(output.read_text().splitlines())
    assert said == f"complete: {output} is written\n"

    last = beside("tail", output, "--row", "40")
    assert "--- row 40 · error" in last.stdout
    assert "EngineError: " in last.stdout
    batch.journal.unlink()  # as where no row failed
    assert "[user]\n[[say:answer 3]]\n[assistant]\nanswer 3\n" in beside("tail", output, "--row", "3").stdout
    assert [line for line in beside("tail", output, "-n", "38").stdout.splitlines() if line[:3] != "---"][:2] == [
        "answer 3",
        "answer 4",
    ]
    assert beside("tail", output, "--row", "41").returncode == 1
    assert beside("tail", output, "--row", "4", "-n", "3").returncode == 2


def test_tail_shows_the_tokens_of_a_row_that_is_not_finished(tmp_path: Path, sampler: SyncSampler) -> None:
    paced = "[[random:40]][[pace:0.02]]"
    write_rows(
        tmp_path / "in.jsonl", ["[[say:quick]]", *[f"[[tokens:20]][[pace:0.05]] {i}" for i in range(2000)], paced]
    )
    output, pool = tmp_path / "out.jsonl", connect(sampler)
    batch = Batch(tmp_path, *pool)
    eventually(batch.has_rows, "some rows are written")
    words = [sys.executable, "-m", "samplerpool", "batch", "tail", str(output), "--row", "2001", "--live", *pool]
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as live:
        assert live.stdout is not None
        pieces = list(iter(lambda: os.read(live.stdout.fileno(), 100), b""))  # type: ignore[union-attr]
    assert len(pieces) > 5
    seed = json.loads(output.with_name("out.jsonl.run.json").read_text())["run_seed"]
    expected = "".join(sampler.generate(paced, seed=row_seed(seed, 2001, 0)))
    assert b"".join(pieces).decode() == f"{expected}\n"
    assert beside("tail", output, "--row", "0", "--live", *pool).stdout.endswith("[assistant]\nquick\n")
    assert "no row 5000" in beside("tail", output, "--row", "5000", "--live", *pool).stderr
    for wrong in (("--live",), ("--row", "3", "--live", "-f"), ("--row", "3", "--live", "--json")):
        assert beside("tail", output, *wrong).returncode == 2
    batch.interrupt()
    batch.interrupt()
    assert batch.ends() == 130


def test_a_detached_batch_outlives_its_terminal_and_is_stopped_from_another(
    tmp_path: Path, sampler: SyncSampler
) -> None:
    write_rows(tmp_path / "in.jsonl", [f"[[tokens:{i % 9}]][[pace:0.05]] {i}" for i in range(30_000)])
    output = tmp_path / "out.jsonl"
    words = ["-m", "samplerpool", "batch", str(tmp_path / "in.jsonl"), "-o", str(output), *connect(sampler), "--detach"]
    terminal = pexpect.spawn(sys.executable, words, timeout=DEADLINE_S)
    terminal.expect("as process ([0-9]+);")
    number = int(terminal.match[1])
    terminal.expect(pexpect.EOF)
    assert terminal.wait() == 0
    terminal.close()
    assert os.getsid(number) == number
    before = read(output)
    assert (before["pid"], before["state"]) == (number, "running")
    eventually(lambda: read(output)["done"] > before["done"], "it goes on")
    assert beside("tail", output, "-n", "1").stdout.startswith("--- row ")

    with pytest.raises(subprocess.TimeoutExpired):  # what follows does not hold it up
        subprocess.run([sys.executable, "-m", "samplerpool", "batch", "tail", str(output), "-f"], timeout=0.8)
    stopped = beside("stop", output)
    assert stopped.returncode == 0, stopped.stderr
    state = read(output)
    assert stopped.stdout == f"Process {number} has ended (interrupted); {state['done']:,} answers finished.\n"
    assert state["state"] == "interrupted"
    assert "interrupted; " in output.with_name("out.jsonl.log").read_text()
    again = beside("stop", output)
    assert (again.returncode, "the last one has ended (interrupted)" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--pool", "no-such-pool"), 2, "There is no pool 'no-such-pool'"),
        (("--model", "none", "--engine", "scripted", "--top-k", "0", "--min-new-tokens", "2"), 1, "min_new_tokens"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_before_a_batch_is_detached(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    write_rows(tmp_path / "in.jsonl", ["one"])
    batch = Batch(tmp_path, "--detach", *arguments)
    assert batch.ends() == code
    assert words in batch.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def read(output: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(output.with_name(output.name + ".progress.json").read_text())
    return fields
