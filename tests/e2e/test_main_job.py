"""The main job on the real small model, as a user types it, and the forms of the seed's interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool import BaseSampler, ModelArguments, SampleArguments, SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.data.answers import RowResult, error_text
from samplerpool.data.rows import rows_from_dataset
from samplerpool.model.model_engine import ModelEngine

TIMEOUT_S = 240
QUESTION = [{"role": "user", "content": [{"type": "text", "value": "What is the capital of France?"}]}]


def samplerpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samplerpool", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def test_launch_batch_chat_status_stop(tmp_path: Path) -> None:
    launched = samplerpool("launch", "--pool", "e2e", "--workers", "2", "--devices", "cpu", "--detach")
    assert launched.returncode == 0, launched.stderr
    try:
        _answer_a_file(tmp_path)
        _ask_once()
        _ask_each_worker()
        _talk()
        (pool,) = json.loads(samplerpool("status", "e2e", "--json").stdout)
        assert (pool["state"], pool["engine"]) == ("running", "dense")
        assert [worker["state"] for worker in pool["workers"]] == ["ready", "ready"]
        assert sum(worker["tokens"] for worker in pool["workers"]) > 20
    finally:
        stopped = samplerpool("stop", "e2e")
    assert stopped.returncode == 0, stopped.stderr
    assert samplerpool("status", "--json").stdout.strip() == "[]"


def _answer_a_file(folder: Path) -> None:
    rows = [{"id": n, "prompt": f"Count from 1 to {n + 2}."} for n in range(5)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(2, "{broken")
    (folder / "in.jsonl").write_text("\n".join(lines))
    options = ("--pool", "e2e", "--max-new-tokens", "12", "--temperature", "0")
    run = samplerpool("batch", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"), *options)
    assert run.returncode == 3, run.stderr
    answers = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [answer["generation"]["index"] for answer in answers] == list(range(6))
    assert "in.jsonl, line 3" in answers[2]["generation"]["error"]
    good = [answer for answer in answers if answer["generation"]["error"] is None]
    assert [answer["id"] for answer in good] == list(range(5))
    for answer in good:
        assert answer["generation"]["completion_tokens"] > 0
        assert answer["messages"][-1]["content"] == [{"type": "text", "value": answer["generation"]["text"]}]
    check = samplerpool("batch", "verify", str(folder / "out.jsonl"), "--pool", "e2e")
    assert check.returncode == 0, check.stdout + check.stderr
    assert "5 of 6 answers compared: " in check.stdout


def _ask_once() -> None:
    once = samplerpool("chat", "--pool", "e2e", "--temperature", "0", "--once", "What is the capital of France?")
    assert once.returncode == 0, once.stderr
    assert "Paris" in once.stdout


def _ask_each_worker() -> None:
    """The same seed gives the same text at either worker, also one that a worker has drawn."""

    def ask(sampler: SyncSampler, **seed: int) -> tuple[int | None, str]:
        wanted = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 20, **seed}
        text = "".join(sampler.generate("Tell me about a town by the sea.", **wanted))
        assert sampler.last is not None
        return sampler.last.seed, text

    with SyncSampler.connect("e2e", worker=0) as first, SyncSampler.connect("e2e", worker=1) as second:
        given = ask(first, seed=7)
        assert ask(second, seed=7) == given
        drawn = ask(first)
        assert drawn[0] is not None
        assert drawn[1] != given[1]
        assert ask(second, seed=drawn[0]) == drawn


def _talk() -> None:
    chat = pexpect.spawn(
        sys.executable,
        ["-m", "samplerpool", "chat", "--pool", "e2e", "--temperature", "0", "--max-new-tokens", "60"],
        encoding="utf-8",
        timeout=TIMEOUT_S,
        dimensions=(24, 80),
    )
    try:
        chat.expect("User: ")
        chat.sendline("What is the capital of France?")
        chat.expect("Assistant: .*Paris")
        chat.expect("User: ")
        chat.sendline("Write a very long story about a river.")
        chat.expect("Assistant: .*river")
        chat.sendcontrol("c")
        chat.expect("User: ")
        chat.sendline("exit")
        chat.expect(pexpect.EOF)
    finally:
        chat.close()
    assert chat.exitstatus == 0


@pytest.fixture(scope="module")
def loaded() -> ModelEngine:
    return ModelEngine(ModelArguments())


def test_a_loaded_model_is_sampled_through_a_socket(loaded: ModelEngine) -> None:
    arguments = SampleArguments(temperature=0.0, max_new_tokens=16)
    with SyncSampler(arguments, ModelArguments(), loaded.model, loaded.renderer) as sampler:
        pieces = list(sampler.generate(QUESTION))
        assert "Paris" in "".join(pieces)
        assert len(pieces) > 2
        samples = sampler.batch_infer([{"messages": QUESTION}, {"prompt": "Say hello."}])
    assert [sample["generation"]["index"] for sample in samples] == [0, 1]
    assert samples[0]["generation"]["text"] == "".join(pieces)


def test_an_answer_begins_as_wanted_goes_on_later_and_its_prompt_is_shown(loaded: ModelEngine) -> None:
    arguments, begun = SampleArguments(max_new_tokens=24), "The capital of France is"
    codec = loaded.renderer.codec
    with SyncSampler(arguments, ModelArguments(), loaded.model, loaded.renderer) as sampler:
        shown = sampler.render(QUESTION, prefill=begun)
        assert "".join(shown.pieces) == codec.decode(shown.token_ids, skip_special_tokens=False)
        assert "".join(shown.pieces).endswith(f"assistant\n{begun}")
        text = "".join(sampler.generate(QUESTION, prefill=begun, temperature=0.0, max_new_tokens=4))
        assert text.startswith(" Paris")
        last = sampler.last
        assert last is not None
        assert last.prompt_ids == list(shown.token_ids)
        assert last.message == {"role": "assistant", "content": [{"type": "text", "value": begun + text}]}

        whole = "".join(sampler.generate("Tell me a story.", temperature=0.7, seed=3))
        assert sampler.last is not None
        tokens = sampler.last.token_ids
        text = "".join(sampler.generate("Tell me a story.", temperature=0.7, seed=3, max_new_tokens=5))
        for more in (1, 6, 12):
            text += "".join(sampler.go_on(sampler.last, more))
        assert (text, sampler.last.text, sampler.last.token_ids) == (whole, whole, tokens)


def test_counted_prompts_are_those_of_the_run(loaded: ModelEngine) -> None:
    rows: list[Any] = [
        {"messages": QUESTION},
        {"prompt": "Say <|im_end|> hello."},
        {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION], "tools": [{"name": "f"}]},
        {"prompt": "word " * 10_000},
        {"nothing": 1},
    ]
    found: dict[int, RowResult] = {}
    with SyncSampler(SampleArguments(max_new_tokens=2), ModelArguments(), loaded.model, loaded.renderer) as sampler:
        generations = [sample["generation"] for sample in sampler.batch_infer(rows)]
        run_batch(
            sampler.connection,
            rows_from_dataset(rows),
            params={},
            on_result=lambda result: found.update({result.row.index: result}),
            count_only=True,
        )
    assert len(found) == len(rows)
    for generation in generations:
        result = found[generation["index"]]
        if result.error is not None:
            assert generation["error"] == error_text(result.error)
        else:
            assert result.answer is not None
            assert result.answer.count is not None
            assert result.answer.count.prompt_tokens == generation["prompt_tokens"]
            assert result.answer.count.max_new_tokens == 2
    assert [bool(found[index].error) for index in range(5)] == [False, False, False, True, True]
    escaped = [answer.count.escaped for n in range(3) if (answer := found[n].answer) and answer.count]
    assert escaped == [[], [("<|im_end|>", "message 1 (user)")], []]


async def test_the_async_form(loaded: ModelEngine) -> None:
    arguments = SampleArguments(temperature=0.8, max_new_tokens=12, seed=5)
    sampler = BaseSampler(arguments, ModelArguments(), loaded.model, loaded.renderer)
    try:
        once = [piece async for piece in sampler.generate(QUESTION)]
        again = [piece async for piece in sampler.generate(QUESTION)]
        assert once == again
        samples: list[Any] = await sampler.batch_infer([{"messages": QUESTION}, {"prompt": ""}, {"nothing": 1}])
    finally:
        sampler.close()
    assert [sample["generation"]["error"] is None for sample in samples][::2] == [True, False]
