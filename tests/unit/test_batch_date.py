"""The date that chat templates are told: one for a run, on whatever day it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from samplerpool.batch.durable import run_durably
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.runner import run_batch
from samplerpool.client.connection import Call, PoolConnection, WorkerView
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import row_from
from samplerpool.rendering.renderer import Renderer
from samplerpool.wire.messages import ChatPrompt, Completed
from tests.tiny_tokenizer import tiny_tokenizer

RENDERER = Renderer(
    tiny_tokenizer("Today is {{ strftime_now('%A') }}. {% for m in messages %}{{ m.content }}{% endfor %}")
)
ROWS = [row_from({"prompt": f"row {index}"}, index, f"Row {index}") for index in range(40)]


class Echo:
    """In a pool's place: one worker, which answers with the prompt that it has rendered."""

    def workers(self) -> list[WorkerView]:
        return [WorkerView(0, True, 0, 0, incarnation="a")]

    def describe(self, _worker: int, _timeout_s: float = 0.0) -> dict[str, Any]:
        return {"max_batch": 1}

    def submit(self, worker: int, calls: Sequence[Call]) -> None:
        for call in calls:
            prompt = cast(ChatPrompt, call.prompt)
            ids = RENDERER.prompt_ids(prompt.messages, prompt.tools, prompt.options)
            call.worker = worker
            call.feed(Completed(1, "stop", len(ids), 1, 5, RENDERER.codec.decode(ids, skip_special_tokens=True)))
            call.on_update(call)

    def abort(self, _calls: Sequence[Call]) -> None:
        """Nothing runs."""


def go(output: BatchOutput, day: int, on_result: Callable[[RowResult], None] | None = None) -> bool:
    summary = run_durably(
        cast(PoolConnection, Echo()),
        list(ROWS),
        output,
        source="in.jsonl",
        params={},
        check=on_result,
        clock=lambda: datetime(2024, 2, day, 23, 59),
    )
    return summary.complete


def test_a_run_that_goes_on_the_next_day_has_the_same_prompts(tmp_path: Path) -> None:
    def fail(result: RowResult) -> None:
        if result.row.index == 7:
            raise OSError("the first night's end")

    path = tmp_path / "out.jsonl"
    with BatchOutput(path) as output:
        with pytest.raises(OSError, match="first night"):
            go(output, 28, fail)
        assert 0 < output.finished.count < len(ROWS)
    with BatchOutput(path, resume=True) as output:
        assert output.manifest is not None
        assert output.manifest.frozen_date == "2024-02-28T23:59:00"
        assert go(output, 29)
    answers = path.read_text().splitlines()
    assert len(answers) == len(ROWS)
    assert all("Today is Wednesday. row" in answer for answer in answers)


def test_without_a_manifest_a_run_has_one_date_too() -> None:
    asked: list[object] = []

    class Listening(Echo):
        def submit(self, worker: int, calls: Sequence[Call]) -> None:
            asked.extend(cast(ChatPrompt, call.prompt).options["strftime_now"] for call in calls)
            super().submit(worker, calls)

    run_batch(cast(PoolConnection, Listening()), list(ROWS), params={}, on_result=lambda _result: None)
    assert len(asked) == len(ROWS)
    assert len(set(asked)) == 1
