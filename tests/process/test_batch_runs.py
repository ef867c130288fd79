"""Batch runs against real worker processes with the scripted engine, killed and interrupted in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool.batch.history import read_history
from samplerpool.batch.journal import HEADER, Journal
from samplerpool.batch.runner import run_batch
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import rows_from_dataset
from samplerpool.errors import BatchError, UnsupportedParameter
from samplerpool.samplers.sync_sampler import SyncSampler
from tests.process.conftest import eventually

DEADLINE_S = 60.0


@contextmanager
def pool(workers: int = 2, **arguments: Any) -> Iterator[SyncSampler]:
    with SyncSampler.launch(workers=workers, engine="scripted", devices="cpu", **arguments) as sampler:
        yield sampler


def pids(sampler: SyncSampler) -> dict[int, int]:
    assert sampler.connection_file is not None
    return {worker.index: worker.process.pid for worker in sampler.connection_file.workers}


def running(sampler: SyncSampler) -> int:
    """Requests that the workers still have, of any client."""
    return sum(sampler.connection.describe(worker.index)["live"] for worker in sampler.connection.workers())


# ---- within this process --------------------------------------------------------------------------------------------


def test_many_rows_over_two_workers_come_back_each_once_as_they_finish() -> None:
    """Lengths differ, so answers overtake one another."""
    prompts = [f"[[say:answer {i} {'x' * (i * 37 % 50)}]]" for i in range(200)]
    results: list[RowResult] = []
    with pool(max_batch=8) as sampler:
        summary = run_batch(
            sampler.connection, rows_from_dataset(prompts), params={}, on_result=results.append, total=200
        )
    assert [r.row.index for r in results] != list(range(200))
    results.sort(key=lambda result: result.row.index)
    assert [r.row.index for r in results] == list(range(200))
    texts = [r.answer.text for r in results if r.answer]
    assert texts == [f"answer {i} {'x' * (i * 37 % 50)}" for i in range(200)]
    assert summary.complete
    assert summary.rows == 200
    assert [worker.rows > 0 for worker in summary.workers] == [True, True]
    assert sum(worker.rows for worker in summary.workers) == 200
    assert summary.completion_tokens == sum(len(text) + 1 for text in texts)


def test_without_a_worker_left_the_run_ends_and_says_how_far_it_came() -> None:
    prompts = [f"[[tokens:10]][[pace:0.005]] {i}" for i in range(400)]
    results: list[RowResult] = []
    with pool(max_batch=4, max_restarts=0) as sampler:

        def on_result(result: RowResult) -> None:
            results.append(result)
            if len(results) == 10:
                for pid in pids(sampler).values():
                    os.kill(pid, signal.SIGKILL)

        with pytest.raises(BatchError, match="No worker of the pool is left") as caught:
            run_batch(sampler.connection, rows_from_dataset(prompts), params={}, on_result=on_result)
    assert 10 <= len(results) < 400
    assert caught.value.data == {"rows": len(results)}
    assert f" {len(results)} rows were finished" in caught.value.message


def test_batch_infer_answers_any_dataset_and_marks_what_cannot_be_answered() -> None:
    dataset = [
        {"id": "a", "prompt": "Hello"},
        {"id": "b", "text": "no prompt"},
        {"id": "c", "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"id": "d", "prompt": "[[fail]]"},
        {"id": "e", "messages": [{"role": "user", "content": [{"type": "image_url", "value": "x.png"}]}]},
    ]
    with pool(workers=1) as sampler:
        samples: list[Any] = sampler.batch_infer(iter(dataset))
        assert sampler.batch_infer([]) == []
    assert [sample["id"] for sample in samples] == ["a", "b", "c", "d", "e"]
    assert [sample["generation"]["text"] for sample in samples] == ["Hello", "", "2+2?", "", ""]
    assert samples[0]["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "value": "Hello"}]}
    assert samples[2]["reference"]["content"] == [{"type": "text", "value": "4"}]
    assert len(samples[2]["messages"]) == 2
    errors = [sample["generation"]["error"] for sample in samples]
    assert errors[0] is errors[2] is None
    assert errors[1].startswith("BadRow: Row 1: a row needs a messages or a prompt column")
    assert errors[3].startswith("EngineError: ")
    assert errors[4].startswith("RenderError: ")


def test_several_samples_a_row_differ_and_repeat_with_the_seed() -> None:
    with pool() as sampler:
        once: list[Any] = sampler.batch_infer(["[[random:8]]", "[[random:8]]"], num_return_sequences=3, seed=9)
        again = sampler.batch_infer(["[[random:8]]", "[[random:8]]"], n=3, seed=9)
        other: list[Any] = sampler.batch_infer(["[[random:8]]", "[[random:8]]"], num_return_sequences=3, seed=10)
    places = [(s["generation"]["index"], s["generation"]["sample"]) for s in once]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert once == again
    assert len({s["generation"]["text"] for s in [*once, *other]}) == 12


def test_a_parameter_that_the_engine_does_not_know_ends_the_run_at_once() -> None:
    with pool(workers=1) as sampler, pytest.raises(UnsupportedParameter, match="repetition_penalty"):
        sampler.batch_infer(["Hello"] * 10, repetition_penalty=1.5)


def test_an_error_in_the_consumer_stops_the_workers_too() -> None:
    def on_result(result: RowResult) -> None:
        raise ZeroDivisionError

    with pool(workers=1) as sampler:
        rows = rows_from_dataset(["short", *["[[tokens:20000]][[pace:0.05]]"] * 10])
        params = {"max_new_tokens": 20000}
        with pytest.raises(ZeroDivisionError):
            run_batch(sampler.connection, rows, params=params, on_result=on_result)
        eventually(lambda: running(sampler) == 0, "the worker has dropped the rows")


# ---- the command, as a user types it --------------------------------------------------------------------------------


class Batch:
    """``samplerpool batch`` as a child process."""

    def __init__(
        self, folder: Path, *arguments: str, source: str = "in.jsonl", output: str = "out.jsonl", stdin: Any = None
    ) -> None:
        self.output = folder / output
        self.journal = folder / f"{output}.journal"
        self._said = [folder.with_name(f"{folder.name}-{output}.{name}") for name in ("stdout", "stderr")]
        source = source if source == "-" else str(folder / source)
        command = [sys.executable, "-m", "samplerpool", "batch", source, "--output", str(self.output)]
        with self._said[0].open("wb") as stdout, self._said[1].open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
            )

    @property
    def stdout(self) -> str:
        return self._said[0].read_text()

    @property
    def stderr(self) -> str:
        return self._said[1].read_text()

    def interrupt(self) -> None:
        """Ctrl-C in a terminal reaches the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()

    def has_rows(self) -> bool:
        return self.journal.exists() and self.journal.stat().st_size > len(HEADER)

    def rows(self) -> list[Any]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def finished(self) -> list[Any]:
        """The rows that an interrupted run has left, in order."""
        with Journal(self.journal, 1) as journal:
            return [json.loads(line) for line in journal.lines()]


def write_rows(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": f"r{i}", "prompt": prompt}) + "\n" for i, prompt in enumerate(prompts)))


def connect(sampler: SyncSampler) -> tuple[str, str]:
    assert sampler.connection_file is not None
    return "--pool", sampler.connection_file.pool


def test_a_broken_line_is_an_error_row_that_names_it(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "prompt": f"[[say:{i}]]"}) for i in range(50)]
    lines[24] = '{"id": 24, "prompt": '
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    batch = Batch(tmp_path, "--model", "none", "--engine", "scripted", "--workers", "2", "--seed", "4")
    assert batch.ends() == 3, batch.stderr
    rows = batch.rows()
    assert [row["generation"]["index"] for row in rows] == list(range(50))
    assert [row["generation"]["text"] for row in rows] == [str(i) if i != 24 else "" for i in range(50)]
    assert rows[24] == {"generation": {**rows[24]["generation"], "index": 24, "finish_reason": "error"}}
    assert rows[24]["generation"]["error"].startswith("BadRow: in.jsonl, line 25: not valid JSON")
    assert "50 rows in " in batch.stdout
    assert "49 answered, 1 with errors\n  BadRow: 1 row (24): in.jsonl, line 25: not valid JSON" in batch.stdout
    assert "run seed 4 " in batch.stdout
    assert "to try the 1 errors again: samplerpool batch " in batch.stdout


def test_a_dry_run_finds_what_the_run_would_find_and_leaves_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"[[say:{i}]]" + "x" * (i * 7 % 90)}) for i in range(60)]
    lines[7], lines[9] = '{"id": 24, "prompt": ', '{"text": "no prompt"}'
    lines[20], lines[21] = (json.dumps({"prompt": "[[say:long]]" + "x" * length}) for length in (600, 480))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with pool(max_model_len=520) as sampler:
        command = [sys.executable, "-m", "samplerpool", "batch", str(tmp_path / "in.jsonl"), *connect(sampler)]
        dry = [*command, "--dry-run", "--json", "--probe", "5", "--max-new-tokens", "30"]
        looked = subprocess.run(dry, capture_output=True, text=True, timeout=DEADLINE_S)
        assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
        some = subprocess.run([*dry, "--rows", "3"], capture_output=True, text=True, timeout=DEADLINE_S)
        batch = Batch(tmp_path, *connect(sampler), "--max-new-tokens", "30")
        assert (looked.returncode, batch.ends()) == (3, 3), looked.stderr
    rows = [row["generation"] for row in batch.rows()]
    bad = [row for row in rows if row["error"]]
    told = json.loads(looked.stdout)
    assert [(kind["code"], kind["first"]) for kind in told["errors"]] == [("BadRow", [7, 9]), ("PromptTooLong", [20])]
    assert [f"{kind['code']}: {kind['sentence']}" for kind in told["errors"]] == [bad[0]["error"], bad[2]["error"]]
    assert told["prompt_tokens"]["sum"] == sum(row["prompt_tokens"] for row in rows)
    assert told["cut"] == {"rows": 1, "first": [21]}
    assert told["estimate"]["most_out"] == 56 * 30 + 520 - rows[21]["prompt_tokens"]
    assert (told["way"], told["probe"]["answers"]) == ("all", 5)
    assert told["estimate"]["seconds"] > 0
    sample = json.loads(some.stdout)
    assert (sample["way"], sample["rows"], sample["total"]) == ("drawn", 3, 60)


def test_an_error_stops_the_batch_where_that_is_asked_for(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["one", "two", "[[fail]]", "four"])
    batch = Batch(tmp_path, "--model", "none", "--engine", "scripted", "--on-error", "stop", "--system", "Be brief.")
    assert batch.ends() == 1
    assert "Error: Row 2 failed, and --on-error is stop: EngineError:" in batch.stderr
    finished = batch.finished()
    assert [row["generation"]["text"] for row in finished] == ["one", "two", "four"]  # what was running was finished
    assert all(row["messages"][0]["role"] == "system" and not row["generation"]["error"] for row in finished)
    assert not batch.output.exists()


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["one"])
    (tmp_path / "out.jsonl").write_text("precious")
    batch = Batch(tmp_path, "--pool", "no-such-pool")
    assert batch.ends() == 1
    assert re.fullmatch(
        r"Error: The output file .*out\.jsonl is there already\. To replace it, give --overwrite; .*\n", batch.stderr
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert batch.output.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool", "no-such-pool"], "There is no pool 'no-such-pool'"),
        (["--pool", "a", "--model", "b"], "just one of --pool and --model"),
        (["--pool", "a", "--workers", "2"], "--workers is for a pool that is started here"),
        (["--overwrite", "--output", "in.jsonl"], "the same file"),
        (["--temperature", "-1"], "temperature must be at least 0"),
    ],
)
def test_wrong_usage_says_so_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "in.jsonl", ["one"])
    batch = Batch(tmp_path, *arguments)
    assert batch.ends() == 2, batch.stderr
    assert words in batch.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_two_batches_at_once_against_one_pool(tmp_path: Path) -> None:
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", [f"[[say:{name}{i}]][[pace:0.002]]" for i in range(150)])
    with pool() as sampler:
        batches = [Batch(tmp_path, *connect(sampler), source=f"{n}.jsonl", output=f"{n}.out.jsonl") for n in "ab"]
        assert [batch.ends() for batch in batches] == [0, 0]
    for name, batch in zip("ab", batches, strict=True):
        assert [row["generation"]["text"] for row in batch.rows()] == [f"{name}{i}" for i in range(150)]


def test_ctrl_c_finishes_what_runs_and_keeps_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [f"[[tokens:10]][[pace:0.01]] {i}" for i in range(3000)])
    batch = Batch(tmp_path, "--model", "none", "--engine", "scripted", "--workers", "2", "--max-batch", "8")
    eventually(batch.has_rows, "some rows are written")
    batch.interrupt()
    assert batch.ends() == 130, batch.stderr
    assert "Stopping: the " in batch.stderr
    assert re.search(
        rf"interrupted; \d+ answers are in {batch.journal}; to go on: samplerpool .* --resume", batch.stdout
    )
    rows = batch.finished()
    assert 0 < len(rows) < 3000
    assert all(row["generation"]["text"] and row["generation"]["error"] is None for row in rows)
    assert not batch.output.exists()


def test_the_end_of_the_terminal_is_like_the_first_ctrl_c(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [f"[[tokens:10]][[pace:0.05]] {i}" for i in range(2000)])
    journal = tmp_path / "out.jsonl.journal"
    with pool() as sampler:
        names = (str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), *connect(sampler))
        child = pexpect.spawn(
            sys.executable,
            ["-m", "samplerpool", "batch", *names],
            timeout=DEADLINE_S,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whoever started the tests may ignore it
        )
        eventually(lambda: journal.exists() and journal.stat().st_size > len(HEADER), "some rows are written")
        os.close(child.child_fd)
        child.child_fd = -1
        child.wait()
    assert (child.exitstatus, child.signalstatus) == (130, None)
    with Journal(journal, 1) as left:
        rows = [json.loads(line) for line in left.lines()]
    assert 0 < len(rows) < 2000
    assert all(row["generation"]["text"] for row in rows)


def test_ctrl_c_twice_stops_at_once_and_frees_the_workers(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["quick", *["[[tokens:20000]][[pace:0.05]]"] * 40])
    with pool() as sampler:
        batch = Batch(tmp_path, *connect(sampler), "--max-new-tokens", "20000")
        eventually(batch.has_rows, "the first row is written")
        batch.interrupt()
        eventually(lambda: "Stopping: the " in batch.stderr, "the first Ctrl-C is answered")
        batch.interrupt()
        assert batch.ends() == 130
        assert [row["generation"]["text"] for row in batch.finished()] == ["quick"]
        eventually(lambda: running(sampler) == 0, "the workers have dropped the rows")


# ---- going on -------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_killed_over_and_over_gives_the_output_of_one_that_is_not(tmp_path: Path) -> None:
    prompts = [f"[[tokens:{5 + i % 7}]][[pace:0.02]] {i}" for i in range(2500)]
    prompts[7] = "[[fail]]"
    write_rows(tmp_path / "in.jsonl", prompts)
    dice = random.Random(5)
    with pool(workers=2) as sampler:
        options = (*connect(sampler), "--seed", "11")
        assert Batch(tmp_path, *options, output="whole.jsonl").ends() == 3
        kills = 0
        while True:
            batch = Batch(tmp_path, *options, "--resume")
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert batch.process.wait(0.9 + dice.random() / 2) == 3, batch.stderr
                break
            os.killpg(batch.process.pid, signal.SIGKILL)
            batch.process.wait()
            kills += 1
            if batch.has_rows():
                with batch.journal.open("ab") as journal:  # as a write that was cut off leaves it
                    journal.write(dice.randbytes(dice.randrange(60)))
    assert kills > 1
    assert batch.output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_going_on_with_something_changed_is_refused_and_says_what(tmp_path: Path) -> None:
    write_rows(
        tmp_path / "in.jsonl",
        ["one", "[[tokens:10]][[pace:0.05]][[fail:4]]", "three", *["[[tokens:40]][[pace:0.02]]"] * 20],
    )
    with pool() as sampler:
        stopped = Batch(tmp_path, *connect(sampler), "--seed", "1", "--temperature", "0.5", "--on-error", "stop")
        assert stopped.ends() == 1
        assert stopped.finished()
        assert "to go on: samplerpool batch" in stopped.stderr

        codes: list[int] = []

        def go_on(*arguments: str) -> Batch:
            batch = Batch(tmp_path, *connect(sampler), *arguments)
            codes.append(batch.ends())
            return batch

        plain = go_on("--seed", "1", "--temperature", "0.5")
        assert "To go on with it, give --resume" in plain.stderr
        other = go_on("--resume", "--seed", "2", "--top-k", "5", "--system", "Be brief.")
        for change in (
            'system: was null, is "Be brief."',
            "params.temperature: was 0.5, is null",
            "params.top_k: was null, is 5",
        ):
            assert change in other.stderr
        seeded = go_on("--resume", "--seed", "2", "--temperature", "0.5")
        assert "has the seed 1, not 2" in seeded.stderr
        rows = (tmp_path / "in.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "in.jsonl").write_text("".join(rows[:-1]))
        assert "input_bytes: was" in go_on("--resume", "--temperature", "0.5").stderr
        (tmp_path / "in.jsonl").write_text("".join([rows[0].replace("one", "two"), *rows[1:]]))
        edited = go_on("--resume", "--temperature", "0.5")
        assert "Row 0 of the input is not what it was" in edited.stderr
        (tmp_path / "in.jsonl").write_text("".join(rows))
        done = go_on("--resume", "--temperature", "0.5")
        assert len(done.rows()) == 23
        fewer = go_on("--resume", "--temperature", "0.5", "--limit", "3")
        assert "limit: was null, is 3" in fewer.stderr
        again = go_on("--resume", "--temperature", "0.5")
        assert again.stdout == f"{again.output} is complete already\n"
        assert codes == [1, 1, 1, 1, 1, 3, 1, 3]


def test_standard_input_is_kept_so_that_the_run_can_go_on_without_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["one", "two", *["[[tokens:60]][[pace:0.1]]"] * 20])
    with pool() as sampler:
        with subprocess.Popen(["cat", str(tmp_path / "in.jsonl")], stdout=subprocess.PIPE) as cat:
            batch = Batch(tmp_path, *connect(sampler), "--seed", "1", source="-", stdin=cat.stdout)
        eventually(batch.has_rows, "some rows are written")
        os.killpg(batch.process.pid, signal.SIGKILL)
        batch.process.wait()
        kept = tmp_path / "out.jsonl.input"
        assert kept.read_bytes() == (tmp_path / "in.jsonl").read_bytes()
        batch = Batch(tmp_path, *connect(sampler), "--resume", source="-", stdin=subprocess.DEVNULL)
        assert batch.ends() == 0, batch.stderr
    assert [row["id"] for row in batch.rows()] == [f"r{i}" for i in range(22)]
    assert [session.number for session in read_history(batch.output)] == [1, 2]
    left = ["in.jsonl", "out.jsonl", "out.jsonl.history.jsonl", "out.jsonl.progress.json", "out.jsonl.run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_input_that_is_cut_off_under_way_ends_the_run_which_goes_on_when_it_is_back(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [f"[[tokens:20]][[pace:0.01]] {i}" for i in range(3000)])
    whole = (tmp_path / "in.jsonl").read_bytes()
    with SyncSampler.launch(engine="scripted", devices="cpu") as sampler:
        batch = Batch(tmp_path, *connect(sampler))
        eventually(batch.has_rows, "some rows are written")
        with (tmp_path / "in.jsonl").open("r+b") as file:
            file.truncate(len(whole) * 2 // 3 + 5)
        assert batch.ends() == 2
        assert "in.jsonl changed while it was read: it had" in batch.stderr
        assert "to go on: samplerpool batch" in batch.stderr
        refused = Batch(tmp_path, *connect(sampler), "--resume")
        assert refused.ends() == 1
        assert "input_bytes: was" in refused.stderr
        (tmp_path / "in.jsonl").write_bytes(whole)
        again = Batch(tmp_path, *connect(sampler), "--resume")
        assert again.ends() == 0, again.stderr
    rows = [json.loads(line) for line in again.output.read_text().splitlines()]
    assert [row["generation"]["index"] for row in rows] == list(range(3000))
    assert all(row["generation"]["error"] is None for row in rows)


def test_errors_can_be_tried_again(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": f"[[say:{i}]]"} for i in range(5)]
    rows[2] = {"id": 2, "text": "?"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pool() as sampler:
        first = Batch(tmp_path, *connect(sampler), "--seed", "1")
        assert first.ends() == 3
        before = first.rows()
        rows[2] = {"id": 2, "prompt": "[[say:2]]"}
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        refused = Batch(tmp_path, *connect(sampler), "--retry-errors")
        assert refused.ends() == 1
        assert "input_bytes: was" in refused.stderr
        again = Batch(tmp_path, *connect(sampler), "--retry-errors", "--accept-changes")
        assert again.ends() == 0, again.stderr
    assert "1 rows in " in again.stdout
    after = again.rows()
    assert [row["generation"]["text"] for row in after] == ["0", "1", "2", "3", "4"]
    assert [*after[:2], *after[3:]] == [*before[:2], *before[3:]]
    left = ["in.jsonl", "out.jsonl", "out.jsonl.history.jsonl", "out.jsonl.progress.json", "out.jsonl.run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
