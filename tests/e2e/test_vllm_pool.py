"""A pool whose worker hosts vLLM, with the real small model, as a user types it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not in this environment; the README says how to run these tests in another",
)
TIMEOUT_S = 240
QUESTION = "What is the capital of France?"


def samplerpool(*arguments: str) -> str:
    run = subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "samplerpool", *arguments]


def _worker() -> dict[str, Any]:
    (pool,) = json.loads(samplerpool("status", "v", "--json"))
    worker: dict[str, Any] = pool["workers"][0]
    return worker


def test_chat_and_a_batch_whose_worker_is_killed(tmp_path: Path) -> None:
    options = ("--engine-option", "enforce_eager=true", "--max-model-len", "512")
    samplerpool("launch", "--pool", "v", "--engine", "vllm", "--devices", "cpu", "--detach", *options)
    try:
        assert "Paris" in samplerpool("chat", "--pool", "v", "--temperature", "0", "--once", QUESTION)
        rows = [{"prompt": f"Tell me something about the number {number}."} for number in range(16)]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
        samplerpool(*_batch(tmp_path, "whole.jsonl"))
        before = _worker()
        batch = subprocess.Popen(_command(*_batch(tmp_path, "cut.jsonl")), stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + TIMEOUT_S
        while not _worker()["tokens"] - before["tokens"] > 50:
            assert batch.poll() is None, "the batch was over before its worker could be killed"
            assert time.monotonic() < deadline
        os.kill(before["pid"], signal.SIGKILL)
        _, told = batch.communicate(timeout=TIMEOUT_S)
        assert (batch.returncode, "1 worker death" in told) == (0, True), told
        assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        after = _worker()
        assert (after["engine"], after["restarts"]) == ("vllm", 1)
        logged = Path(after["log"]).read_text()
        assert "starting vLLM" in logged
        assert QUESTION not in logged
    finally:
        samplerpool("stop", "v")
    assert samplerpool("status", "--json").strip() == "[]"


def _batch(folder: Path, output: str) -> tuple[str, ...]:
    sampling = ("--temperature", "0.8", "--max-new-tokens", "64", "--seed", "3")
    return ("batch", str(folder / "in.jsonl"), "--output", str(folder / output), "--pool", "v", *sampling)
