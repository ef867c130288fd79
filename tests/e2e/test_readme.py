"""What the README shows, as it stands there: its pieces of Python in one process, its commands one after the other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import save_tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
PLUGIN = next(text for text in PYTHON if "PLUGIN = " in text)
TIMEOUT_S = 240.0


def command_line(beginning: str) -> list[str]:
    """The words of a command that the README shows, without its comment."""
    line = next(line for line in README.splitlines() if line.startswith(f"$ {beginning}"))
    return shlex.split(line[2:], comments=True)


def run(folder: Path, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A command as typed, with this interpreter."""
    words = [sys.executable, *command[1:]] if command[0] == "python" else [sys.executable, "-m", *command]
    done = subprocess.run(
        words,
        cwd=folder,
        input=stdin,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{folder}", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the examples are about: a model, data, a plugin."""
    save_tiny_model(tmp_path / "path-or-hub-id")
    (tmp_path / "my_package.py").write_text(PLUGIN)
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "[[say:four]]", "output": "4"}]))
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"conversations": turns * 2}) + "\n")
    (tmp_path / "info.yaml").write_text("some: {path: alpaca.json}\nchats: {path: chats.jsonl, converter: sharegpt}\n")
    (tmp_path / "cat.png").write_bytes(b"a picture, which clients only read")
    (tmp_path / "config.yaml").write_text("model: path-or-hub-id\nmax_new_tokens: 3\n")
    return tmp_path


def test_the_examples(folder: Path) -> None:
    checks = """
assert data[0]["messages"][-1]["content"] == [{"type": "text", "value": "4"}]
assert len(DataEngine("chats.jsonl", form="training")) == 2
assert [sample["generation"]["text"] for sample in samples] == ["four"]
assert Renderer(renderer.processor, template="my_package:PLUGIN").render_messages(messages, is_generate=True)
assert engine.model_config.hidden_size == 32
sampler.close()
print("all of it ran")
"""
    assert len(PYTHON) >= 5
    (folder / "examples.py").write_text("\n".join([*PYTHON, checks]))
    run(folder, "samplerpool", "launch", "--pool", "my-pool", "--engine", "scripted", "--detach")
    try:
        assert run(folder, "python", "examples.py").stdout.endswith("all of it ran\n")
    finally:
        run(folder, "samplerpool", "stop", "my-pool")


def test_the_module_with_a_file_and_overrides(folder: Path) -> None:
    done = run(folder, *command_line("python -m samplerpool.samplers.cli_sampler config.yaml"), stdin="Hello\n")
    assert "path-or-hub-id" in done.stderr


@pytest.mark.full
def test_the_five_things_to_type_next(tmp_path: Path) -> None:
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    for command, stdin in (("launch", ""), ("status", ""), ("chat", "Hello\nexit\n"), ("batch", ""), ("stop", "")):
        done = run(tmp_path, *command_line(f"samplerpool {command}"), stdin=stdin)
        assert done.stdout or done.stderr, command
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 32
