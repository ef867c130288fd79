"""A worker that comes later with another model gets no rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from samplerpool.batch.durable import run_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.client.connection import Call, PoolConnection, WorkerView
from samplerpool.data.rows import row_from
from samplerpool.errors import FingerprintMismatch, WrongIncarnation
from samplerpool.wire.messages import Completed

ROWS = [row_from({"prompt": f"row {index}"}, index, f"Row {index}") for index in range(40)]


class Restarted:
    """In a pool's place: one worker at a time, which is started again after ten answers, from changed weights."""

    def __init__(self, *weights: str) -> None:
        self.weights = weights
        self.answered: list[str] = []
        self.seen = 0

    @property
    def start(self) -> int:
        return min(len(self.answered) // 10, len(self.weights) - 1)

    def workers(self) -> list[WorkerView]:
        self.seen = self.start
        return [WorkerView(0, True, 0, 0, incarnation=str(self.start))]

    def describe(self, _worker: int, _timeout_s: float = 0.0) -> dict[str, Any]:
        return {"max_batch": 1, "fingerprint": {"weights": [self.weights[self.start]]}, "engine": "dense"}

    def submit(self, worker: int, calls: Sequence[Call]) -> None:
        for call in calls:
            call.worker = worker
            if self.seen == self.start:
                self.answered.append(self.weights[self.start])
                call.feed(Completed(1, "stop", 3, 1, 5, self.answered[-1]))
            else:  # the requests were for the one before
                call.fail(WrongIncarnation("It is another process now."))
            call.on_update(call)

    def abort(self, _calls: Sequence[Call]) -> None:
        """Nothing runs."""


def go(pool: Restarted, output: BatchOutput, *, accept_changes: bool = False) -> bool:
    connection = cast(PoolConnection, pool)
    options = {"source": "in.jsonl", "params": {}, "accept_changes": accept_changes}
    return run_durably(connection, list(ROWS), output, **options).complete  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _look_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samplerpool.batch.runner.WAIT_S", 0.0)


def test_a_worker_that_comes_back_with_another_model_ends_the_run_before_it_gets_rows(tmp_path: Path) -> None:
    path, pool = tmp_path / "out.jsonl", Restarted("old", "new")
    with BatchOutput(path) as output, pytest.raises(FingerprintMismatch) as refused:
        go(pool, output)
    assert 'Worker 0 does not run what this batch began with. model.weights: was ["old"], is ["new"].' in str(
        refused.value
    )
    assert "Give it the same model again, and give --resume; or give --accept-changes" in str(refused.value)
    assert "new" not in pool.answered
    with BatchOutput(path, resume=True) as output:
        assert 0 < output.finished.count < len(ROWS)
        assert go(Restarted("old"), output)
    assert path.read_text().count('"text":"old"') == len(ROWS)


def test_the_same_model_and_accepted_changes_go_on(tmp_path: Path) -> None:
    with BatchOutput(tmp_path / "same.jsonl") as output:
        assert go(Restarted("old", "old", "old"), output)
    with BatchOutput(tmp_path / "changed.jsonl") as output:
        assert go(Restarted("old", "new"), output, accept_changes=True)
