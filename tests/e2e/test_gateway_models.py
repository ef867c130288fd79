"""The HTTP gateway over a real (tiny) model: its adapters are models, and its tokens have texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai

from tests.lora import generated, save_adapter, with_adapters
from tests.model_zoo import build
from tests.process.gateways import Served
from tests.tiny_tokenizer import tiny_tokenizer

TOKENS = 12
WIDE = {"vocab_size": 320}


def test_adapters_are_models(tmp_path: Path) -> None:
    build("llama", **WIDE).save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer("{{ messages[0].content }}")
    tokenizer.save_pretrained(tmp_path / "model")
    one = save_adapter(build("llama", **WIDE), tmp_path / "one", 1)
    adapted = with_adapters(build("llama", **WIDE), {"one": one})
    ids = {adapter: generated(adapted, adapter, tokenizer.encode("Hello"), TOKENS) for adapter in ("base", "one")}
    assert ids["base"] != ids["one"]
    asked: Any = {"max_tokens": TOKENS, "temperature": 0, "logprobs": True, "extra_body": {"ignore_eos": True}}
    options = ("--model", str(tmp_path / "model"), "--lora", f"one={one}", "--devices", "cpu", "--workers", "1")
    with (
        Served(*options, "--model-name", "house") as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["house", "one"]
        for model, adapter in (("house", "base"), ("one", "one")):
            told = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}], **asked)
            (choice,) = told.choices
            assert told.model == model
            assert choice.message.content == tokenizer.decode(ids[adapter], skip_special_tokens=True)
            assert choice.logprobs is not None
            assert choice.logprobs.content is not None
            data = b"".join(bytes(entry.bytes or b"") for entry in choice.logprobs.content)
            assert data.decode("utf-8", "replace") == tokenizer.decode(ids[adapter], skip_special_tokens=False)
