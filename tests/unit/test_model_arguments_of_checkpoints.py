"""What is read from a checkpoint's configuration, and how failures of loading are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, GenerationConfig, GPT2Config, LlamaConfig

from samplerpool.config.arguments import ModelArguments
from samplerpool.errors import InvalidParameter
from samplerpool.model.failures import failure_line
from samplerpool.model.model_engine import (
    ModelEngine,
    eos_token_ids,
    generation_defaults,
    max_model_len,
    torch_dtype,
)

UNLIMITED = SimpleNamespace(model_max_length=10**30)


def test_generation_defaults_are_only_what_the_checkpoint_says() -> None:
    assert generation_defaults(GenerationConfig(eos_token_id=2)).given() == {}
    assert generation_defaults(None).given() == {}
    said = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05)
    assert generation_defaults(said).given() == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }


def test_values_that_nobody_can_take_are_left_out() -> None:
    assert generation_defaults(GenerationConfig(do_sample=True, top_p=1.5)).given() == {"do_sample": True}


@pytest.mark.parametrize(
    ("config", "tokenizer", "length"),
    [
        (LlamaConfig(max_position_embeddings=777), UNLIMITED, 777),
        (GPT2Config(n_positions=555), UNLIMITED, 555),
        (BloomConfig(), SimpleNamespace(model_max_length=2048), 2048),
        (BloomConfig(), UNLIMITED, 4096),
    ],
)
def test_max_model_len(config: Any, tokenizer: Any, length: int) -> None:
    assert max_model_len(config, tokenizer) == length


def test_eos_of_all_configurations() -> None:
    assert eos_token_ids(GenerationConfig(eos_token_id=[1, 2]), LlamaConfig(eos_token_id=3), None) == {1, 2, 3}
    assert eos_token_ids(SimpleNamespace(eos_token_id=None)) == frozenset()


def test_dtypes() -> None:
    assert torch_dtype("auto", "cpu") is torch.float32
    assert torch_dtype("auto", "cuda:0") is torch.bfloat16
    assert torch_dtype("float16", "cpu") is torch.float16
    for wrong in ("int8", "float33", "nn"):
        with pytest.raises(InvalidParameter, match=repr(wrong)):
            torch_dtype(wrong, "cpu")


def test_failures_are_told_in_one_line() -> None:
    assert failure_line(OSError("No weights.\n\nPages of advice.")) == "No weights"
    assert failure_line(ValueError()) == "ValueError"
    assert failure_line(KeyError("x")) == "KeyError 'x'"
    assert len(failure_line(ValueError("y" * 999))) == 240


def test_what_would_not_be_done_is_refused_before_anything_is_loaded() -> None:
    arguments = ModelArguments(model="/absent", init_config={"name": "magic"}, kernel_config={"name": "auto", "x": 1})
    with pytest.raises(InvalidParameter) as caught:
        ModelEngine(arguments)
    assert caught.value.message == (
        "init_config has no 'magic'; there is init_on_default, init_on_meta, init_on_rank0. "
        "kernel_config 'auto' takes nothing else; leave x out."
    )
