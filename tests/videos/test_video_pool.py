"""Videos through a real pool: streams, batches, the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samplerpool import ModelArguments, SyncSampler
from samplerpool.errors import RenderError
from samplerpool.model.model_engine import ModelEngine
from samplerpool.types import Message
from tests.media_zoo import data_url
from tests.videos import reference
from tests.videos.zoo import checkpoint, film

TIMEOUT_S = 120
TOKENS = 24
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": TOKENS, "ignore_eos": True}


def question(video: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "video_url", "value": video}, {"type": "text", "value": "What?"}]}]


def test_a_pool_answers_about_videos(tmp_path: Path) -> None:
    model = ModelEngine(ModelArguments(model_name_or_path=str(checkpoint(tmp_path / "model", "qwen2_5_vl"))))

    def expected(number: int, **options: Any) -> str:
        ids = reference.answer(model, film(number), "What?", tokens=TOKENS, **options)
        return model.renderer.codec.decode(ids, skip_special_tokens=True)

    answers = [expected(number) for number in range(3)]
    assert len(set(answers)) == 3
    (tmp_path / "videos").mkdir()
    paths = [tmp_path / "videos" / f"{number}.mp4" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(film(number))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "empty.mp4").touch()
    videos = ["videos/0.mp4", data_url(film(1), "video/mp4"), paths[2].as_uri(), "broken.mp4", "empty.mp4", "none.mp4"]
    rows = [{"messages": question(video)} for video in videos]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with SyncSampler.launch(model=str(tmp_path / "model"), devices="cpu") as sampler:
        assert "".join(sampler.generate(question(str(paths[2])), **GREEDY)) == answers[2]
        four = sampler.generate(question(str(paths[2])), template_options={"num_frames": 4}, **GREEDY)
        assert "".join(four) == expected(2, num_frames=4) != answers[2]
        with pytest.raises(RenderError, match="Invalid data found"):
            list(sampler.generate(question(str(tmp_path / "broken.mp4")), **GREEDY))
        assert sampler.connection_file is not None
        output = _batch(tmp_path, sampler.connection_file.pool)

    assert [row["generation"]["text"] for row in output[:3]] == answers
    errors = [row["generation"]["error"] or "" for row in output]
    assert not any(errors[:3])
    assert "The video in message 1 (user) cannot be used: Invalid data found" in errors[3]
    assert "empty.mp4' has no bytes" in errors[4]
    assert "none.mp4' cannot be read: No such file" in errors[5]


def _batch(folder: Path, pool: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "samplerpool", "batch", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    options = ("--pool", pool, "--temperature", "0", "--max-new-tokens", str(TOKENS), "--ignore-eos")
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 3, run.stderr
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
