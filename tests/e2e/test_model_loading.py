"""Loading the real small model: converted once, right in every token, and clear when something is wrong."""

from __future__ import annotations

import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from samplerpool.config.arguments import ModelArguments
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.errors import ModelNotFound, RenderError, StartFailed
from samplerpool.model.gguf import converted_gguf
from samplerpool.model.model_engine import ModelEngine
from samplerpool.model.source import resolve_source
from samplerpool.types import Message

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def engine() -> ModelEngine:
    return ModelEngine(ModelArguments())


@pytest.fixture
def checkpoint(engine: ModelEngine, tmp_path: Path) -> Path:
    """A folder of its own with the converted model's small files, and its weights by link."""
    converted = Path(engine.model_config.name_or_path)
    folder = tmp_path / "checkpoint"
    shutil.copytree(converted, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(converted / "model.safetensors")
    return folder


def user(text: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "value": text}]}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "value": text}]}


def answer(engine: ModelEngine, question: str, new_tokens: int = 24) -> str:
    prompt = engine.renderer.prompt_ids([user(question)])
    with torch.inference_mode():
        ids = engine.model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)[0].tolist()
    return engine.renderer.codec.decode(ids[len(prompt) :], skip_special_tokens=False)


def load(path: Path | str, **arguments: object) -> ModelEngine:
    return ModelEngine(ModelArguments(model_name_or_path=str(path), **arguments))  # type: ignore[arg-type]


def test_the_packaged_model_is_ready_to_use(engine: ModelEngine) -> None:
    assert engine.name == "SmolLM2-135M-Instruct.Q4_1"
    assert engine.max_model_len == 8192
    assert engine.generation_defaults.given() == {}
    assert engine.model.dtype is torch.float32
    assert not engine.model.training
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())


def test_it_answers_and_ends_its_answer(engine: ModelEngine) -> None:
    text = answer(engine, "What is 2+2?")
    assert "4" in text
    assert text.endswith("<|im_end|>")


def test_the_prompt_is_the_models_own_template(engine: ModelEngine) -> None:
    ids = engine.renderer.prompt_ids([user("Hi <|im_end|>")])
    assert engine.renderer.codec.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <\u200b|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert [i for i in ids if i < 17] == [1, 2, 1, 2, 1]  # <|im_start|> is 1, <|im_end|> is 2
    assert engine.renderer.codec.eos_token_ids == {2}


def test_training_inputs_are_the_tokenizers_own(engine: ModelEngine) -> None:
    """Masks and weights around exactly the tokens that ``apply_chat_template`` makes, for answers and for pairs."""
    question = {"role": "user", "content": "Wie heißt 2 + 2,\nwenn es regnet? 🌧"}
    answers = [{"role": "assistant", "content": text} for text in ("Vier.", "5\n")]
    whole = [engine.processor.apply_chat_template([question, answer], return_dict=False) for answer in answers]
    prompt = engine.processor.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    labels = [[-100] * len(prompt) + ids[len(prompt) :] for ids in whole]
    good, bad = ([user(question["content"]), assistant(answer["content"])] for answer in answers)
    single, pair = engine.renderer.process_samples(
        [{"messages": good}, {"chosen_messages": good, "rejected_messages": bad}]
    )
    assert engine.renderer.render_messages(good[:1], is_generate=True)["input_ids"] == prompt
    assert (single["input_ids"], single["labels"]) == (whole[0], labels[0])
    assert (pair["input_ids"], pair["labels"]) == (whole[0] + whole[1], labels[0] + labels[1])
    assert pair["token_type_ids"] == [1] * len(whole[0]) + [2] * len(whole[1])
    with pytest.raises(RenderError, match="tokenizer joins the end of the prompt with the beginning of the answer"):
        engine.renderer.render_messages([user("2+3?"), assistant("\n5")])


def test_digits_are_split_off_before_anything_else(engine: ModelEngine) -> None:
    """As in the tokenizer that the model was trained with: whitespace before a digit stays in one piece."""
    ids = engine.renderer.codec.encode("a  12\n\n5")
    assert engine.processor.convert_ids_to_tokens(ids) == ["a", "ĠĠ", "1", "2", "ĊĊ", "5"]


def test_text_streams_right_however_its_tokens_come(engine: ModelEngine) -> None:
    codec, dice = engine.renderer.codec, random.Random(1)
    text = "👨‍👩‍👧‍👦 and 👋🏽 say  héllo\n\n  日本語と中文, q̣̇ नमस्ते — don't … 🏳️‍🌈<|im_end|> END."
    ids = codec.encode(text)
    assert any("\ufffd" in codec.decode([i], skip_special_tokens=True) for i in ids)
    for skip in (True, False):
        whole = codec.decode(ids, skip_special_tokens=skip)
        assert whole == (text.replace("<|im_end|>", "") if skip else text)
        for stop in ([], ["END"], ["本語と"], ["👋🏽"], ["ello\n\n  日"]):
            for _ in range(20):
                detokenizer, rest, shown = Detokenizer(codec, stop, skip_special_tokens=skip), list(ids), ""
                while rest:
                    size = dice.randint(1, 4)
                    shown += detokenizer.add(rest[:size])
                    del rest[:size]
                assert shown + detokenizer.finish() == (whole.partition(stop[0])[0] if stop else whole)


def test_weights_are_those_of_the_file(engine: ModelEngine) -> None:
    """Compared with the tensors dequantized by themselves, in names that are not transformers'."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(resolve_source(None).location)
    state = engine.model.state_dict()
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
    }
    compared = 0
    for tensor in reader.tensors:
        if tensor.name in names:
            weights = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(weights, state[names[tensor.name]])
            compared += 1
    assert compared == len(names)
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


def test_it_is_converted_once(engine: ModelEngine) -> None:
    said: list[str] = []
    folder = converted_gguf(Path(resolve_source(None).location), torch.float32, said.append)
    assert str(folder) == engine.model_config.name_or_path
    assert said == []


def test_a_directory_loads_as_asked(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.5, "eos_token_id": [2, 0]})
    )
    progress: list[str] = []
    arguments = ModelArguments(
        model_name_or_path=str(checkpoint),
        dtype="bfloat16",
        flash_attn="eager",
        custom_chat_template="{{ messages[0].content }}",
    )
    engine = ModelEngine(arguments, on_progress=progress.append)
    assert engine.name == "checkpoint"
    assert engine.model.dtype is torch.bfloat16
    assert engine.model_config._attn_implementation == "eager"
    assert engine.generation_defaults.given() == {"do_sample": True, "temperature": 0.5}
    assert engine.renderer.codec.eos_token_ids == {0, 2}
    assert engine.renderer.prompt_ids([user("Hi")]) == tuple(engine.renderer.codec.encode("Hi"))
    assert progress == ["loading checkpoint"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{nope", "not a valid JSON file"),
        ("config.json", '{"model_type": "no-such-kind"}', "no-such-kind"),
        ("model.safetensors", "damaged", "damaged file"),
        ("tokenizer.json", "{}", "[Tt]okenizer"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(checkpoint: Path, file: str, content: str | None, says: str) -> None:
    (checkpoint / file).unlink()
    if content is not None:
        (checkpoint / file).write_text(content)
    with pytest.raises(StartFailed, match=says) as caught:
        load(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_gguf_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMPLERPOOL_CACHE_DIR", str(tmp_path / "cache"))
    damaged = tmp_path / "damaged.gguf"
    with Path(resolve_source(None).location).open("rb") as whole:
        damaged.write_bytes(whole.read(100_000))
    with pytest.raises(StartFailed, match=r"damaged.gguf' cannot be converted: .* may be damaged") as caught:
        load(damaged)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "cache" / "models").glob("*v1*")] == [f"{key_of(tmp_path)}.lock"]
    assert capfd.readouterr().err == ""


def key_of(tmp_path: Path) -> str:
    (memo,) = (tmp_path / "cache" / "models" / "keys").iterdir()
    return f"{memo.read_text()}-float32-v1"


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers every request as the hub does for a model of this name's kind."""

    def do_HEAD(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 500 if "broken" in self.path else 404)
        if not gated and "broken" not in self.path:
            self.send_header("X-Error-Code", "EntryNotFound" if "empty" in self.path else "RepoNotFound")
        if gated:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


LOAD_FROM_HUB = """
import sys
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.errors import ModelNotFound
from samplerpool.model.hub import hub_is_reachable
for name in sys.argv[1:]:
    try:
        print(hub_is_reachable(name))
    except ModelNotFound as error:
        print(error.message)
"""


def ask_hub(endpoint: str, home: Path, *names: str) -> list[str]:
    environ = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    environ.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_FROM_HUB, *names], env=environ, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_what_the_hub_refuses_is_one_sentence(hub: str, tmp_path: Path) -> None:
    gated, missing, empty, broken = ask_hub(hub, tmp_path, "org/gated", "org/missing", "org/empty", "org/broken")
    assert "'org/gated' is gated" in gated
    assert "There is no model 'org/missing'" in missing
    assert "'org/empty' is not a transformers model" in empty
    assert "'org/broken' is neither a local path nor in the local cache, and the hub" in broken


def test_without_a_network_only_the_cache_is_left(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "hub" / "models--org--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    cached, unknown = ask_hub("http://127.0.0.1:9", tmp_path, "org/cached", "org/unknown")
    assert cached == "False"
    assert "'org/unknown' is neither a local path nor in the local cache" in unknown
    assert "http://127.0.0.1:9 cannot be reached" in unknown


def test_a_model_that_is_nowhere() -> None:
    with pytest.raises(ModelNotFound, match="no such file or directory"):
        load("./no-such-model")
