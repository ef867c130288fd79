"""Conversion of GGUF files, from the first byte, with a tiny model written here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from samplerpool.config.arguments import ModelArguments
from samplerpool.errors import StartFailed
from samplerpool.model.model_engine import ModelEngine

gguf = pytest.importorskip("gguf")

DEADLINE_S = 60.0
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
    tie_word_embeddings=True,
)
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


@pytest.fixture
def file(original: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMPLERPOOL_CACHE_DIR", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf", original)


def write_gguf(file: Path, model: LlamaForCausalLM, *, without: str = "") -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("a title")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_dimension_count(CONFIG.head_dim)
    writer.add_rope_freq_base(50000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.model.state_dict().items():
        if gguf_name(name) != without:
            writer.add_tensor(gguf_name(name), stored(name, tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_name(name: str) -> str:
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"
    return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]


def stored(name: str, weights: Any) -> Any:
    """GGUF interleaves the two halves of each rotary head."""
    heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weights
    shape = weights.shape
    return np.ascontiguousarray(weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2)).reshape(
        shape
    )


def load(file: Path, progress: list[str] | None = None, **arguments: Any) -> ModelEngine:
    said = progress if progress is not None else []
    return ModelEngine(ModelArguments(model_name_or_path=str(file), **arguments), on_progress=said.append)


def folders(file: Path) -> list[str]:
    return sorted(path.name for path in (file.parent / "cache" / "models").iterdir() if path.name.count("-v1"))


def test_the_converted_model_computes_what_the_original_does(file: Path, original: LlamaForCausalLM) -> None:
    progress: list[str] = []
    engine = load(file, progress)
    ids = torch.tensor([[1, 50, 60, 70, 80, 90, 2, 33]])
    with torch.inference_mode():
        torch.testing.assert_close(engine.model(ids).logits, original(ids).logits)
    assert progress == ["converting tiny.gguf (once, takes a while)", "loading tiny"]
    again: list[str] = []
    with torch.inference_mode():
        assert torch.equal(load(file, again).model(ids).logits, engine.model(ids).logits)
    assert again == ["loading tiny"]


def test_everything_else_in_the_file_is_kept(file: Path) -> None:
    engine = load(file)
    assert engine.max_model_len == 256
    assert engine.generation_defaults.given() == {}
    assert engine.renderer.codec.eos_token_ids == {2}
    assert engine.model.generation_config.bos_token_id == 1
    prompt = engine.renderer.prompt_ids([{"role": "user", "content": [{"type": "text", "value": "a  1<|im_end|>"}]}])
    decoded = engine.processor.convert_ids_to_tokens(list(prompt))
    assert decoded[:4] == ["<|im_start|>", "a", "ĠĠ", "1"]
    assert [i for i in prompt if i < 3] == [1, 2]


def test_the_same_content_elsewhere_is_not_converted_again(file: Path) -> None:
    load(file)
    copy = file.with_name("copy.gguf")
    copy.write_bytes(file.read_bytes())
    progress: list[str] = []
    assert load(copy, progress).name == "copy"
    assert progress == ["loading copy"]


def test_each_dtype_has_its_own_conversion(file: Path) -> None:
    assert load(file).model.dtype is torch.float32
    assert load(file, dtype="bfloat16").model.dtype is torch.bfloat16
    assert len([name for name in folders(file) if not name.endswith(".lock")]) == 2


def test_a_file_without_all_tensors_is_refused(file: Path, original: LlamaForCausalLM) -> None:
    write_gguf(file, original, without="blk.1.ffn_up.weight")
    with pytest.raises(StartFailed, match=r"cannot be converted: 1 tensors are missing.*mlp.up_proj.weight"):
        load(file)
    assert all(name.endswith(".lock") for name in folders(file))


def test_without_the_package_gguf_the_sentence_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    with pytest.raises(StartFailed, match=r"needs the package gguf; run: pip install"):
        load(file)


STALLED_IN_THE_MIDDLE = """
import sys, time
from pathlib import Path
import samplerpool.model.gguf as conversion
from samplerpool.config.arguments import ModelArguments
from samplerpool.model.model_engine import ModelEngine

save = conversion._save
def save_and_stall(model, tokenizer, folder):
    save(model, tokenizer, folder)
    print("saved", flush=True)
    time.sleep(600)
conversion._save = save_and_stall
ModelEngine(ModelArguments(model_name_or_path=sys.argv[1]))
"""


def test_a_conversion_killed_in_the_middle_is_not_believed(file: Path) -> None:
    command = [sys.executable, "-c", STALLED_IN_THE_MIDDLE, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(DEADLINE_S)
    assert any(name.endswith(".partial") for name in folders(file))
    progress: list[str] = []
    load(file, progress)
    assert progress[0].startswith("converting")
    assert not any(name.endswith(".partial") for name in folders(file))
