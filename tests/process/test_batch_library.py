"""``SyncSampler.batch_infer`` and ``batch_iter`` with an output: the same samples, on disk as well."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from samplerpool import DataEngine, SyncSampler
from samplerpool.errors import BatchError, FingerprintMismatch, OutputExists, UsageError
from samplerpool.types import Sample
from tests.process.test_batch_runs import connect

PROMPTS = [f"{number} [[random:8]]" for number in range(60)] + ["[[fail]]"]

IN_A_PROCESS = """
import sys
from samplerpool import SyncSampler

sampler = SyncSampler.connect(sys.argv[1])
prompts = [f"{number} [[random:8]][[pace:0.01]]" for number in range(200)]
for index, sample in sampler.batch_iter(prompts, output=sys.argv[2], seed=3):
    print(index, sample["generation"]["text"], flush=True)
"""


def texts(samples: list[Sample]) -> list[str]:
    return [sample["generation"]["text"] for sample in samples]


def rows_in(path: Path) -> list[Sample]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_output_holds_what_is_returned(two_workers: SyncSampler, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    seen: dict[int, Sample] = {}
    samples = two_workers.batch_infer(PROMPTS, output=output, on_result=seen.__setitem__, seed=3)
    assert samples == two_workers.batch_infer(PROMPTS, seed=3) == rows_in(output)
    assert [seen[index] for index in range(len(PROMPTS))] == samples
    assert [sample["generation"]["error"] is None for sample in samples] == [True] * 60 + [False]
    again = two_workers.batch_infer(PROMPTS, output=output, resume=True, seed=3)
    assert again == samples  # read, not answered
    for others in (["another", *PROMPTS[1:]], PROMPTS[:-1], [*PROMPTS, "one more"]):
        with pytest.raises(FingerprintMismatch, match=r"The input is not the one that .* give overwrite=True"):
            two_workers.batch_infer(others, output=output, resume=True)
    with pytest.raises(UsageError, match="resume goes on with an output"):
        two_workers.batch_infer(PROMPTS, resume=True)
    with pytest.raises(FingerprintMismatch, match=r"has the seed 3, not 4; leave seed out\."):
        two_workers.batch_infer(PROMPTS, output=output, resume=True, seed=4)


def test_what_the_chat_template_is_told_is_part_of_the_run(two_workers: SyncSampler, tmp_path: Path) -> None:
    prompts = ["[[say:Yes.]]"]
    thinking = {"enable_thinking": True}

    def kinds(samples: list[Sample]) -> list[str]:
        return [block["type"] for block in samples[0]["messages"][-1]["content"]]

    output = tmp_path / "answers.jsonl"
    assert kinds(two_workers.batch_infer(prompts)) == ["text"]
    assert kinds(two_workers.batch_infer(prompts, output=output, template_options=thinking)) == ["reasoning"]
    assert kinds(two_workers.batch_infer(prompts, output=output, template_options=thinking, resume=True)) == [
        "reasoning"
    ]
    with pytest.raises(FingerprintMismatch, match=r"template_options\.enable_thinking: was true, is null"):
        two_workers.batch_infer(prompts, output=output, resume=True)


def test_a_loop_that_is_left_early_is_gone_on_with(two_workers: SyncSampler, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    first = list(islice(two_workers.batch_iter(PROMPTS, output=output, seed=3), 7))
    assert len(first) == 7
    assert not output.exists()
    with pytest.raises(OutputExists, match=r"To go on with it, give resume=True; to begin anew, give overwrite=True\."):
        two_workers.batch_infer(PROMPTS, output=output, seed=3)
    seen: list[int] = []
    with pytest.raises(FingerprintMismatch, match=r"top_k: was null, is 5\. .* give accept_changes=True"):
        two_workers.batch_infer(
            PROMPTS, output=output, resume=True, top_k=5, on_result=lambda index, _sample: seen.append(index)
        )
    assert seen == []  # nothing is taken for this run's that is another's
    done = first[0][0]
    changed = [*PROMPTS[:done], "another", *PROMPTS[done + 1 :]]
    with pytest.raises(FingerprintMismatch, match=f"Row {done} of the input is not what it was"):
        two_workers.batch_infer(changed, output=output, resume=True)
    rest = list(two_workers.batch_iter(PROMPTS, output=output, resume=True))
    assert sorted(index for index, _ in rest) == list(range(len(PROMPTS)))
    assert {index for index, _ in first} <= {index for index, _ in rest[: len(PROMPTS) - 1]}
    assert [sample for _, sample in sorted(rest, key=lambda one: one[0])] == rows_in(output)
    assert texts(rows_in(output)) == texts(two_workers.batch_infer(PROMPTS, seed=3))


def test_a_data_set_without_a_length_is_written_too(sampler: SyncSampler, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:5]))
    (tmp_path / "data.yaml").write_text("sets: {path: in.jsonl, streaming: true}\n")
    data = DataEngine(str(tmp_path / "data.yaml"))
    with pytest.raises(TypeError):
        len(data)
    samples = sampler.batch_infer(data, output=tmp_path / "out.jsonl", seed=3)
    assert texts(samples) == texts(sampler.batch_infer(PROMPTS[:5], seed=3))


def test_errors_are_tried_again_and_an_output_replaced_when_asked_for(sampler: SyncSampler, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    sampler.batch_infer(PROMPTS[-3:], output=output, num_return_sequences=2)
    tried: list[int] = []
    again = sampler.batch_infer(
        PROMPTS[-3:],
        output=output,
        retry_errors=True,
        num_return_sequences=2,
        on_result=lambda index, _sample: tried.append(index),
    )
    assert tried[-2:] == [2, 2]
    assert again == rows_in(output)
    with pytest.raises(BatchError, match=r"2 answers a row, not 1 \(num_return_sequences\)"):
        sampler.batch_infer(PROMPTS[-3:], output=output, retry_errors=True)
    replaced = sampler.batch_infer(PROMPTS[:2], output=output, overwrite=True)
    assert replaced == rows_in(output)


def test_what_a_killed_program_has_seen_is_there(two_workers: SyncSampler, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    program = [sys.executable, "-c", IN_A_PROCESS, connect(two_workers)[1], str(output)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [line.split(" ", 1) for line in islice(process.stdout, 30)]
        process.send_signal(signal.SIGKILL)
    prompts = [f"{number} [[random:8]][[pace:0.01]]" for number in range(200)]
    all_rows = dict(two_workers.batch_iter(prompts, output=output, resume=True))
    assert len(all_rows) == 200
    for index, text in seen:
        assert all_rows[int(index)]["generation"]["text"] == text.rstrip("\n")
