"""Scripts for the sampler whose interface this one has: they run after a change of their import lines.

The tiny model lies at relative paths that look like the names in the scripts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import save_tiny_model

TIMEOUT_S = 120.0
SOURCE = Path(__file__).parents[2] / "src"

COMMAND = "python -m samplerpool.samplers.cli_sampler --model_name_or_path my_model"

PROGRAMMATIC = """\
from samplerpool.samplers.cli_sampler import run_chat
run_chat({"model_name_or_path": "Qwen/Qwen2-7B", "sample_backend": "hf"})
"""

DIRECT = """\
from samplerpool.samplers.cli_sampler import SyncSampler
sampler = SyncSampler(sample_args, model_args, model, renderer)
messages = [{"role": "user", "content": [{"type": "text", "value": "What is 2+2?"}]}]
for token in sampler.generate(messages):
    print(token, end="", flush=True)
"""

LOADING = """\
from samplerpool import ModelArguments, ModelEngine, SampleArguments
sample_args = SampleArguments(max_new_tokens=12, temperature=0.0)
model_args = ModelArguments(model="my_model")
engine = ModelEngine(model_args)
model, renderer = engine.model, engine.renderer
"""

WHOLE_PROGRAM = """\
import sys
from samplerpool import DataEngine, ModelEngine, SyncSampler, get_args
model_args, data_args, _, sample_args = get_args()
model_engine = ModelEngine(model_args)
sampler = SyncSampler(sample_args, model_args, model_engine.model, model_engine.renderer)
if data_args.train_dataset is not None:
    for sample in sampler.batch_infer(DataEngine(data_args.train_dataset)):
        print(sample["generation"]["completion_tokens"], sample["reference"]["content"][0]["value"])
messages = [{"role": "user", "content": [{"type": "text", "value": "again"}]}]
answer = "".join(sampler.generate(messages))
messages.append(model_engine.renderer.parse_message(answer))
print(messages[-1]["role"], len(messages))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "my_model")
    shutil.copytree(folder / "my_model", folder / "Qwen" / "Qwen2-7B")
    rows = [{"instruction": "Say one.", "output": "one"}, {"instruction": "Say two.", "output": "two"}]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    return folder


def run(folder: Path, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_command(folder: Path) -> None:
    done = run(folder, *COMMAND.split()[1:], stdin="Hello\nclear\nexit\n")
    assert done.stdout.endswith("\n")
    assert "my_model" in done.stderr


def test_run_chat_with_a_dict(folder: Path) -> None:
    done = run(folder, "-c", PROGRAMMATIC, stdin="Hello\n")
    assert done.stdout.endswith("\n")
    assert "Qwen2-7B" in done.stderr


def test_the_sampler_itself(folder: Path) -> None:
    count = "import sys\nprint(f'{sampler.last.completion_tokens} {sampler.last.text}', end='', file=sys.stderr)\n"
    done = run(folder, "-c", LOADING + DIRECT + count)
    assert done.stdout
    assert done.stderr.endswith(f"12 {done.stdout}")


def test_a_whole_program(folder: Path) -> None:
    config = {"model": "my_model", "train_dataset": "alpaca.json", "sample_backend": "hf", "max_new_tokens": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "program.py").write_text(WHOLE_PROGRAM)
    done = run(folder, "program.py", "config.json", "max_new_tokens=5", "--temperature", "0", "ignore_eos=true")
    assert done.stdout.splitlines() == ["5 one", "5 two", "assistant 2"]
