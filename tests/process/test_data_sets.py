"""Data sets of every kind, answered by a real worker with the scripted engine."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from torch.utils.data import Dataset, IterableDataset

from samplerpool import BaseSampler, DataEngine, ModelArguments, SampleArguments, SyncSampler, run_chat
from samplerpool.config.arguments import EngineConfig
from samplerpool.data.sources import open_source
from samplerpool.engine.scripted import ScriptedEngine, ScriptedRenderer

TIMEOUT_S = 60.0
ROWS = [{"instruction": "Say it.", "input": f"[[say:{n}]]", "output": f"no {n}", "id": n} for n in range(20)]


class MapStyle(Dataset[dict[str, Any]]):
    """With an end that raises nothing."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index % len(ROWS)]


class Streamed(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from ROWS


def kinds(folder: Path) -> dict[str, Any]:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS))
    (folder / "info.yaml").write_text("rows: {path: rows.json, converter: alpaca, streaming: true}\n")
    return {
        "list": ROWS,
        "map-style": MapStyle(),
        "iterable": Streamed(),
        "datasets": datasets.Dataset.from_list(ROWS),
        "datasets, streamed": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        "path": path,
        "engine": DataEngine(path),
        "engine, streamed": DataEngine(folder / "info.yaml"),
        "engine, for training": DataEngine(path, form="training"),
    }


def check(samples: list[Any], kind: str) -> None:
    assert [sample["generation"]["text"] for sample in samples] == [str(n) for n in range(20)], kind
    assert [sample["generation"]["index"] for sample in samples] == list(range(20)), kind
    assert [sample["id"] for sample in samples] == list(range(20)), kind
    assert [sample["reference"]["content"][0]["value"] for sample in samples] == [f"no {n}" for n in range(20)], kind


@pytest.fixture
def sampler() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", devices="cpu", workers=1) as sampler:
        yield sampler


def batch(sampler: SyncSampler, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert sampler.connection_file is not None
    command = [sys.executable, "-m", "samplerpool", "batch", "--pool", sampler.connection_file.pool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def answers(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_data_sets_of_every_kind(sampler: SyncSampler, tmp_path: Path) -> None:
    for kind, dataset in kinds(tmp_path).items():
        check(sampler.batch_infer(dataset), kind)


def test_the_command_reads_tables_and_several_sets(sampler: SyncSampler, tmp_path: Path) -> None:
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "id"])
        writer.writeheader()
        writer.writerows({"question": f"[[say:{n}]]", "id": n} for n in range(3))
    datasets.Dataset.from_list(ROWS[:2]).to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "converters_of_mine.py").write_text("def ask(row):\n    return {'messages': row['question']}\n")
    (tmp_path / "info.yaml").write_text(
        "table: {path: rows.csv, converter: converters_of_mine.ask}\nalpaca: {path: rows.parquet}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2] / 'src'}")
        run = batch(sampler, str(tmp_path / "info.yaml"), "--output", str(tmp_path / "out.jsonl"))
    assert run.returncode == 0, run.stderr
    rows = answers(tmp_path / "out.jsonl")
    assert [row["generation"]["text"] for row in rows] == ["0", "1", "2", "0", "1"]
    assert [row["_dataset_name"] for row in rows] == ["table"] * 3 + ["alpaca"] * 2
    assert rows[1]["question"] == "[[say:1]]"
    assert "rows.parquet: converter alpaca, chosen by the columns instruction, input, output" in run.stderr

    run = batch(sampler, str(tmp_path / "rows.csv"), "--converter", "openai", "--output", str(tmp_path / "bad.jsonl"))
    assert run.returncode == 3, run.stderr
    assert answers(tmp_path / "bad.jsonl")[0]["generation"]["error"] == (
        "BadRow: rows.csv, line 2: a row needs a column messages; this one has: question, id."
    )

    source = str(tmp_path / "rows.csv")
    run = batch(sampler, source, "--output", source, "--overwrite", "--output-format", "jsonl")
    assert (run.returncode, "are the same file" in run.stderr) == (2, True)
    run = batch(sampler, source, "--converter", "alpacca", "--output", str(tmp_path / "none.jsonl"))
    assert (run.returncode, "Did you mean 'alpaca'" in run.stderr) == (2, True)


def test_the_command_chooses_rows_and_writes_what_was_asked_for(sampler: SyncSampler, tmp_path: Path) -> None:
    requests = [
        {"messages": [{"role": "user", "content": "[[say:a]]"}], "max_tokens": 64},
        {"messages": [{"role": "user", "content": "[[say:b]]"}], "audio": {}},
        {"messages": [{"role": "user", "content": "[[say:long answer]]"}], "max_tokens": 4, "seed": 3},
        {"messages": [{"role": "user", "content": "[[say:d]]"}], "n": 3},
    ]
    source = tmp_path / "requests.jsonl"
    lines = [{"custom_id": f"r{n}", "url": "/v1/chat/completions", "body": body} for n, body in enumerate(requests)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out.jsonl.gz"
    arguments = [str(source), "--output", str(output), "--output-format", "openai", "--n", "2"]
    run = batch(sampler, *arguments)
    assert run.returncode == 3, run.stderr
    assert "converter openai_batch, chosen by the columns custom_id, url, body" in run.stderr
    found = [json.loads(line) for line in gzip.decompress(output.read_bytes()).splitlines()]
    assert [line["custom_id"] for line in found] == ["r0", "r1", "r2", "r3"]
    assert [line["response"]["status_code"] for line in found] == [200, 400, 200, 400]
    bodies = [line["response"]["body"] for line in found]
    assert [[c["message"]["content"] for c in body.get("choices", ())] for body in bodies[::2]] == [
        ["a"] * 2,
        ["long"] * 2,
    ]
    assert bodies[2]["choices"][0]["finish_reason"] == "length"
    assert "run it with --n 3" in bodies[3]["error"]["message"]
    before = output.read_bytes()
    run = batch(sampler, *arguments, "--retry-errors")  # which fail again, to the same bytes
    assert (run.returncode, output.read_bytes()) == (3, before), run.stderr

    chosen = ["--prompt-template", "{{ body.messages[0].content }}", "--select", "custom_id != 'r1'"]
    output = tmp_path / "out.parquet"
    run = batch(sampler, str(source), "--output", str(output), *chosen, "--shuffle-seed", "1", "--limit", "2")
    assert run.returncode == 0, run.stderr
    indexes = [record.columns["generation"]["index"] for record in open_source(str(output))]
    assert len(set(indexes) & {0, 2, 3}) == 2
    assert indexes == sorted(indexes)
    run = batch(
        sampler, str(source), "--output", str(output), *chosen, "--shuffle-seed", "2", "--limit", "2", "--resume"
    )
    assert (run.returncode, "shuffle_seed: was 1, is 2" in run.stderr) == (1, True)


def test_run_chat_answers_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds(tmp_path)
    output = tmp_path / "out.jsonl"
    run_chat({"sample_backend": "scripted", "train_dataset": str(tmp_path / "info.yaml"), "output": str(output)})
    check(answers(output), "run_chat")
    assert "20 rows, 0 with errors" in capsys.readouterr().err


def test_base_sampler_takes_them_too(tmp_path: Path) -> None:
    sampler = BaseSampler(
        SampleArguments(),
        ModelArguments(),
        None,
        ScriptedRenderer(),
        engine=ScriptedEngine(EngineConfig(engine="scripted")),
    )
    try:
        for kind, dataset in kinds(tmp_path).items():
            check(asyncio.run(sampler.batch_infer(dataset)), kind)
    finally:
        sampler.close()
