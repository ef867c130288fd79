"""Images through a real pool: streams, batches, the command line; what clients read, and what workers refuse."""

from __future__ import annotations

import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from samplerpool import ModelArguments, SampleArguments, SyncSampler
from samplerpool.errors import PromptTooLong, RenderError
from samplerpool.model.model_engine import ModelEngine
from samplerpool.types import Message
from tests.media_zoo import checkpoint, data_url, drawing
from tests.process.gateways import Served

TIMEOUT_S = 120
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in ``model``, drawings and a file of questions about them beside it."""
    folder = tmp_path_factory.mktemp("media")
    checkpoint(folder / "model", "qwen2_5_vl")
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(drawing(number))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelEngine:
    return ModelEngine(ModelArguments(model_name_or_path=str(folder / "model")))


def question(image: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image_url", "value": image}, {"type": "text", "value": "What?"}]}]


def expected(model: ModelEngine, number: int, tokens: int = 24) -> str:
    """What transformers itself answers."""
    blocks = [{"type": "image", "image": Image.open(io.BytesIO(drawing(number)))}, {"type": "text", "text": "What?"}]
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": blocks}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=-1)[0]
    return model.renderer.codec.decode(ids[inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    handler = partial(_Quiet, directory=str(folder / "images"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_pool_answers_about_images(folder: Path, model: ModelEngine, site: str) -> None:
    answers = [expected(model, number) for number in range(3)]
    assert len(set(answers)) == 3
    rows = [
        {"messages": question("images/0.png")},
        {"messages": question(data_url(drawing(1)))},
        {"messages": question((folder / "images" / "2.png").as_uri())},
        {"messages": question("images/none.png")},
        {"messages": question(f"{site}/1.png")},
        {"prompt": "Just text."},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with SyncSampler.launch(model=str(folder / "model"), devices="cpu") as sampler:
        path = folder / "images" / "2.png"
        assert "".join(sampler.generate(question(str(path)), **GREEDY)) == answers[2]
        with pytest.raises(RenderError, match="No such file"):
            sampler.generate(question("/nowhere.png"))
        broken: Any = question(data_url(b"no image"))
        with pytest.raises(RenderError, match="cannot be decoded"):
            list(sampler.generate(broken))

        large = f"data:image/png;base64,{'A' * 17 * 2**20}"
        with pytest.raises(PromptTooLong, match="larger --max-request-bytes"):
            list(sampler.generate(question(large)))

        samples = sampler.batch_infer(folder / "in.jsonl", **GREEDY)
        assert [sample["generation"]["text"] for sample in samples[:3]] == answers
        errors = [sample["generation"]["error"] or "" for sample in samples]
        assert "images/none.png' cannot be read" in errors[3]
        assert "--fetch-media" in errors[4]
        assert not any((*errors[:3], errors[5]))
        assert samples[0]["messages"][0] == rows[0]["messages"][0]  # type: ignore[index]

        assert sampler.connection_file is not None
        output = _batch(folder, "--pool", sampler.connection_file.pool, "--fetch-media")
        assert [row["generation"]["text"] for row in output[:3]] == answers
        assert output[4]["generation"]["text"] == answers[1]
        assert [bool(row["generation"]["error"]) for row in output] == [False] * 3 + [True, False, False]

        with Served("--pool", sampler.connection_file.pool, "--fetch-media") as served:
            assert [_asked_over_http(served, url) for url in (data_url(drawing(1)), f"{site}/2.png")] == answers[1:]
            with pytest.raises(openai.BadRequestError, match="reads no files"):
                _asked_over_http(served, str(path))


def _asked_over_http(served: Served, url: str) -> str | None:
    content: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        told = client.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=24,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
    return told.choices[0].message.content


def _batch(folder: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "samplerpool", "batch", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    greedy = ("--temperature", "0", "--max-new-tokens", "24", "--ignore-eos")
    run = subprocess.run([*command, *options, *greedy], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert run.returncode == 3, run.stderr
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_model_that_is_loaded_here_answers_about_images(folder: Path, model: ModelEngine) -> None:
    arguments = (SampleArguments(), ModelArguments(), model.model, model.renderer)
    answers = [expected(model, number) for number in range(2)]
    with SyncSampler(*arguments) as sampler:
        assert "".join(sampler.generate(question(data_url(drawing(1))), **GREEDY)) == answers[1]
        paths = [str(folder / "images" / f"{number}.png") for number in range(2)]
        samples = sampler.batch_infer([question(path) for path in paths], **GREEDY)
        assert [sample["generation"]["text"] for sample in samples] == answers


async def test_base_sampler_answers_about_images(folder: Path, model: ModelEngine) -> None:
    from samplerpool import BaseSampler

    answers = [expected(model, number) for number in range(3)]
    sampler = BaseSampler(SampleArguments(), ModelArguments(), model.model, model.renderer)
    try:
        paths = [str(folder / "images" / f"{number}.png") for number in range(3)]
        parts = [text async for text in sampler.generate(question(paths[0]), **GREEDY)]
        assert "".join(parts) == answers[0]
        samples = await sampler.batch_infer([question(path) for path in (*paths, "/nowhere.png")], **GREEDY)
        assert [sample["generation"]["text"] for sample in samples] == [*answers, ""]
        assert "/nowhere.png' cannot be read" in (samples[3]["generation"]["error"] or "")
    finally:
        sampler.close()


@pytest.mark.full
def test_a_stream_about_an_image_survives_its_worker(folder: Path, model: ModelEngine) -> None:
    whole = expected(model, 1, tokens=600)
    with SyncSampler.launch(model=str(folder / "model"), devices="cpu") as sampler:
        stream = sampler.generate(question(data_url(drawing(1))), **{**GREEDY, "max_new_tokens": 600})
        text = next(stream)
        os.kill(sampler.connection.describe(0)["pid"], signal.SIGKILL)
        text += "".join(stream)
        assert text == whole
        assert sampler.last is not None
        assert sampler.last.calls == 2


def test_a_client_that_reads_images_stays_light(folder: Path) -> None:
    code = (
        "import sys\n"
        "from samplerpool import SyncSampler\n"
        "from samplerpool.data.media import with_media_read\n"
        f"image = {{'type': 'image_url', 'value': {str(folder / 'images' / '0.png')!r}}}\n"
        "assert with_media_read([{'role': 'user', 'content': [image]}])[0]['content'][0]['value'].startswith('data:')\n"
        "heavy = {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert child.returncode == 0, child.stderr
