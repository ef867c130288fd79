"""Tiny models of many architectures, which nobody trained, and what transformers itself says about them.

Weights are drawn so that answers vary and attention matters: with the library's own small initial weights, or with tied
embeddings, a model repeats one token whatever it attends to, and would hide a wrong mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 200
WINDOW = 8
"""Sliding windows and attention chunks: shorter than most prompts."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FEW_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
FALCON: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
XGLM: dict[str, Any] = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    **FEW_EXPERTS,
}


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        model_type: as transformers calls it.
        method: how the engines run it: ``packed`` (the dense engine), ``padded`` or ``sequential``.
        options: of its configuration, beside ``COMMON``.
        common: whether it calls its sizes as most do.
    """

    model_type: str
    method: str = "packed"
    options: dict[str, Any] = field(default_factory=dict)
    common: bool = True


ZOO: dict[str, Entry] = {
    "llama": Entry("llama"),
    "llama3-rope": Entry(
        "llama",
        options={
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "qwen2": Entry("qwen2"),
    "qwen2-window": Entry(
        "qwen2", options={"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL}
    ),
    "qwen3": Entry("qwen3"),
    "mistral": Entry("mistral", options={"sliding_window": None}),
    "mistral-window": Entry("mistral", options={"sliding_window": WINDOW}),
    "olmo2": Entry("olmo2"),
    "olmo3-window": Entry("olmo3", options={"sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL}),
    "gemma2": Entry(
        "gemma2",
        options={
            "sliding_window": WINDOW,
            "layer_types": SLIDING_AND_FULL,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": Entry(
        "gemma3_text",
        options={"sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL, "query_pre_attn_scalar": 8},
    ),
    "gpt-oss": Entry(
        "gpt_oss",
        options={"sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL, "num_local_experts": 4, **FEW_EXPERTS},
    ),
    "cohere": Entry("cohere", options={"logit_scale": 0.5, "use_qk_norm": True}),
    "cohere2": Entry(
        "cohere2", options={"logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL}
    ),
    "phi": Entry("phi", options={"num_key_value_heads": 4}),
    "phi3": Entry("phi3", options={"pad_token_id": 0, "sliding_window": None}),
    "gpt2": Entry("gpt2", options=GPT, common=False),
    "gpt-neox": Entry("gpt_neox"),
    "opt": Entry("opt", options={"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "stablelm": Entry("stablelm"),
    "granite": Entry(
        "granite", options={"logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
    ),
    "smollm3": Entry("smollm3", options={"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "llama4": Entry(
        "llama4_text",
        options={
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "num_local_experts": 4,
            "intermediate_size_mlp": 48,
            "moe_layers": [1],
            "floor_scale": 16,
        },
    ),
    "mixtral": Entry("mixtral", options={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen3-moe": Entry("qwen3_moe", options={"num_experts": 4, **FEW_EXPERTS}),
    "glm4": Entry("glm4", options={"pad_token_id": 0}),
    "gpt-j": Entry("gptj", "padded", {**GPT, "rotary_dim": 4}, common=False),
    "codegen": Entry("codegen", "padded", {**GPT, "n_ctx": 512, "rotary_dim": 4}, common=False),
    "falcon": Entry("falcon", "padded", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, False),
    "falcon-multi-query": Entry("falcon", "padded", FALCON, common=False),
    "falcon-alibi": Entry(
        "falcon", "padded", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}, False
    ),
    "bloom": Entry("bloom", "padded", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, common=False),
    "mpt": Entry("mpt", "padded", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}, common=False),
    "gpt-neox-japanese": Entry("gpt_neox_japanese", "padded", {"intermediate_multiple_size": 2}),
    "xglm": Entry("xglm", "padded", XGLM, common=False),
    "deepseek-v2": Entry("deepseek_v2", options=LATENT),
    "deepseek-v3": Entry("deepseek_v3", options=LATENT),
    "phi3-longrope": Entry(
        "phi3",
        "sequential",
        {
            "pad_token_id": 0,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama-dynamic": Entry(
        "llama",
        "sequential",
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "gpt-neo": Entry(
        "gpt_neo",
        "sequential",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 512,
        },
        common=False,
    ),
    "mamba": Entry("mamba", "sequential", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, common=False),
    "rwkv": Entry(
        "rwkv", "sequential", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 512}, common=False
    ),
    "qwen3-next": Entry(
        "qwen3_next",
        "sequential",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            **FEW_EXPERTS,
        },
    ),
}


def config_of(name: str, **changes: Any) -> Any:
    """A new configuration of a model of the zoo, with changes if there are any."""
    entry = ZOO[name]
    options = {**(COMMON if entry.common else {"vocab_size": VOCABULARY}), **entry.options, **changes}
    return AutoConfig.for_model(
        entry.model_type, **{"bos_token_id": 1, "eos_token_id": None, "tie_word_embeddings": False, **options}
    )


def build(name: str, **changes: Any) -> Any:
    """A new model of the zoo, always with the same weights: float32, in evaluation mode, on the CPU."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, **changes), dtype=torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            _draw_weights(parameter_name, parameter)
    return model.eval().requires_grad_(False)


def _draw_weights(name: str, parameter: Tensor) -> None:
    """Weights that keep the size of what flows through them, with queries and keys large enough for sharp attention."""
    if parameter.ndim < 2 or any(word in name for word in ("A_log", "conv", "time_")):
        return
    is_embedding = any(word in name for word in ("embed", "wte", "wpe", "embeddings"))
    parameter.normal_(0.0, 1.0 if is_embedding else 1.5 / math.sqrt(parameter.shape[-1]))


def prompt_of(length: int, number: int = 0) -> list[int]:
    """Token ids of a prompt, of its own for each number."""
    generator = torch.Generator().manual_seed(1000 * number + length)
    return list(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())


@dataclass(frozen=True)
class Reference:
    """What transformers says: greedy tokens, and the logits they were taken from, float32 [tokens, vocabulary]."""

    token_ids: list[int]
    logits: Tensor


@torch.no_grad()
def reference_greedy(model: Any, prompt_ids: list[int], new_tokens: int) -> Reference:
    """The greedy answer of ``model.generate``, alone and never ending."""
    output = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = output.sequences[0, len(prompt_ids) :].tolist()
    return Reference(token_ids, torch.cat(output.logits).float())


NEAR_TIE = 1e-3
LOGITS_TOLERANCE = 1e-3


def assert_same_answer(found: Reference, wanted: Reference) -> None:
    """Tokens and logits are equal up to rounding, and where the tokens part, that was a near-tie."""
    assert len(found.token_ids) == len(wanted.token_ids)
    for at, (token, expected) in enumerate(zip(found.token_ids, wanted.token_ids, strict=True)):
        wrong = (found.logits[at] - wanted.logits[at]).abs().max().item()
        assert wrong < LOGITS_TOLERANCE, f"the logits of token {at} are wrong by {wrong:.2g}"
        if token != expected:
            gap = (wanted.logits[at][expected] - wanted.logits[at][token]).item()
            assert gap < NEAR_TIE, f"token {at} is {token} instead of {expected}, whose score is {gap:.2g} higher"
            return


def assert_varied(answers: list[Reference]) -> None:
    """Answers that would show a wrong mask: not all alike, and not one token over and over."""
    assert len({tuple(answer.token_ids) for answer in answers}) == len(answers)
    kinds = [len(set(answer.token_ids)) / len(answer.token_ids) for answer in answers]
    assert sum(kinds) / len(kinds) > 0.4, f"the share of different tokens in the answers is {kinds}"
