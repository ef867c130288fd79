"""LoRA adapters for tiny models, drawn and not trained, and what transformers and PEFT themselves answer with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.model.adapters import load_adapters


def save_adapter(model: Any, folder: Path, seed: int, targets: Any = "all-linear", **config: Any) -> Path:
    """An adapter that changes the model's answers; the model is not to be used any more.

    Args:
        folder: where it is saved.
        targets: layers that it changes.
    """
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM", **config}
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def with_adapters(model: Any, folders: dict[str, Path]) -> Any:
    """The model, with these adapters for requests to choose."""
    return load_adapters(model, adapter_plan({"name": "lora", "adapter_name_or_path": folders}))


def generated(adapted: Any, adapter: str, prompt_ids: Sequence[int], tokens: int) -> list[int]:
    """The greedy answer of ``generate``, with PEFT's own layers.

    Args:
        adapted: a ``PeftModel`` that no engine has.
        adapter: ``base`` for none.
    """
    if adapter != BASE_ADAPTER:
        adapted.base_model.enable_adapter_layers()
        adapted.set_adapter(adapter)
        return _generated(adapted, prompt_ids, tokens)
    with adapted.disable_adapter():
        return _generated(adapted, prompt_ids, tokens)


def _generated(model: Any, prompt_ids: Sequence[int], tokens: int) -> list[int]:
    ids = torch.tensor([list(prompt_ids)])
    mask = torch.ones_like(ids)  # otherwise generate takes some tokens for padding
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in out[0, len(prompt_ids) :]]
