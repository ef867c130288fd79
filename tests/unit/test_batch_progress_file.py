"""The file that tells how far a run is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from samplerpool.batch.progress_file import ProgressFile, ProgressRead
from samplerpool.batch.tally import Progress, WorkerTally

PROGRESS = Progress(
    120, 1500, 1, 2380, 238.04, 10.0, 115.0, (WorkerTally(0, 60, 1200, 4, utilisation=0.97441, restarts=2),)
)


def test_it_is_replaced_as_a_whole_once_a_second_and_stays_with_the_end(tmp_path: Path) -> None:
    now, written = [0.0], []
    output = tmp_path / "out.jsonl"
    with ProgressFile(output, clock=lambda: now[0]) as file:
        assert ProgressRead(output).fields["state"] == "running"
        for tenth in range(30):
            now[0] = tenth / 10
            before = file.path.stat().st_ino
            file.update(PROGRESS)
            if file.path.stat().st_ino != before:
                written.append(tenth)
        read = ProgressRead(output)
        assert not read.ended
        assert read.process is not None
        assert read.process.pid == os.getpid()
        file.state = "complete"
    assert written == [0, 10, 20]
    fields = json.loads((tmp_path / "out.jsonl.progress.json").read_text())
    assert {name: fields[name] for name in ("state", "error", "done", "total", "errors", "left_s", "elapsed_s")} == {
        "state": "complete",
        "error": None,
        "done": 120,
        "total": 1500,
        "errors": 1,
        "left_s": 115.0,
        "elapsed_s": 10.0,
    }
    assert fields["workers"] == [
        {
            "index": 0,
            "state": "busy",
            "rows": 60,
            "completion_tokens": 1200,
            "running": 4,
            "utilisation": 0.974,
            "restarts": 2,
        }
    ]
    assert ProgressRead(output).ended
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.progress.json"]


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [(ValueError("oh"), "failed", "ValueError: oh"), (KeyboardInterrupt(), "interrupted", None)],
)
def test_it_says_how_a_run_failed(tmp_path: Path, error: BaseException, state: str, said: str | None) -> None:
    with pytest.raises(type(error)), ProgressFile(tmp_path / "x"):
        raise error
    fields = ProgressRead(tmp_path / "x").fields
    assert (fields["state"], fields["error"]) == (state, said)


def test_a_run_goes_on_where_it_cannot_be_written_and_says_so_once(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = tmp_path / "gone"
    folder.mkdir()
    with ProgressFile(folder / "out.jsonl", notes.append, clock=iter(range(0, 1000, 10)).__next__) as file:
        file.path.unlink()
        folder.rmdir()
        for _ in range(3):
            file.update(PROGRESS)
    assert len(notes) == 1
    assert notes[0].endswith(
        "out.jsonl.progress.json cannot be written (No such file or directory); the batch goes on without it."
    )


def test_a_run_whose_process_is_gone_has_ended(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert ProgressRead(output).fields == {}
    assert ProgressRead(output).ended
    file = ProgressFile(output)
    file.write()
    fields = json.loads(file.path.read_text())
    file.path.write_text(json.dumps({**fields, "pid_start_time": fields["pid_start_time"] - 1}))
    assert ProgressRead(output).ended
    assert ProgressRead(output).process is None
    file.path.write_text(json.dumps({**fields, "host": "elsewhere"}))
    assert not ProgressRead(output).ended
    file.path.write_text("{")
    assert ProgressRead(output).fields == {}
