"""Layers of few operations compute what the model computes, and are used just where they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import packed_linear, small_ops
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.fused_layers import FusedLayers, find_norm
from samplerpool.engine.packed_weight import why_not
from tests.engine_contract import drive, params
from tests.model_zoo import Reference, assert_same_answer, build, prompt_of
from tests.model_zoo import reference_greedy as greedy

pytestmark = [
    pytest.mark.skipif(small_ops.why_unavailable() is not None, reason=str(small_ops.why_unavailable())),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

LENGTHS = (3, 17, 30)
NEW_TOKENS = 12
WIDE: dict[str, Any] = {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Heads wide enough for the compiled rotation."""

EVERYTHING = {
    "llama": {},
    "llama3-rope": {},
    "qwen2": {},
    "qwen2-window": {},
    "qwen3": {},
    "mistral-window": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
    "granite": {"attention_bias": True, "mlp_bias": True},
}


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "SMALLEST", 1)


class Watched(DenseEngine):
    """Keeps the logits that each request's tokens were taken from."""

    def __init__(self, model: Any) -> None:
        self.seen: dict[Any, list[Tensor]] = {}
        config = EngineConfig(engine="dense", max_batch=8, options={"cache_gib": 0.05, "step_tokens": 40})
        super().__init__(model, config, eos_token_ids=frozenset(), max_model_len=64)

    @property
    def fused(self) -> FusedLayers:
        assert self._passes.fused is not None
        return self._passes.fused

    def _sample(self, rows: list[Any], logits: Tensor) -> Any:
        for row, values in zip(rows, logits, strict=True):
            self.seen.setdefault(row.request.request_id, []).append(values.clone())
        return super()._sample(rows, logits)

    def answers(self) -> list[Reference]:
        """To prompts of all lengths, decoded together."""
        requests = [
            EngineRequest((0, length), tuple(prompt_of(length)), params(max_new_tokens=NEW_TOKENS))
            for length in LENGTHS
        ]
        found = drive(self, requests)
        return [Reference(found[0, n].token_ids, torch.stack(self.seen[0, n])) for n in LENGTHS]


@pytest.mark.parametrize("name", EVERYTHING)
def test_all_layers_of_common_models_are_replaced_and_right(name: str) -> None:
    changes = {**WIDE, **EVERYTHING[name]}
    wanted = [greedy(build(name, **changes), prompt_of(length), NEW_TOKENS) for length in LENGTHS]
    model = build(name, **changes)
    engine = Watched(model)
    norms = sum("norm" in each.lower() for each, module in model.named_modules() if not list(module.children()))
    assert (engine.fused.attentions, engine.fused.blocks, engine.fused.norms) == (2, 2, norms)
    for answer, expected in zip(engine.answers(), wanted, strict=True):
        assert_same_answer(answer, expected)
    engine.close()


@pytest.mark.parametrize(
    ("name", "changes", "attentions", "blocks"),
    [
        ("cohere", WIDE, 0, 2),  # rotates neighbours
        ("olmo2", WIDE, 0, 2),  # norms over all heads
        ("smollm3", WIDE, 0, 2),  # one layer without rotation
        ("phi", WIDE, 0, 0),
        ("gpt2", {}, 0, 0),
        ("mixtral", WIDE, 2, 0),
        ("gpt-oss", WIDE, 0, 0),
        ("llama", {**WIDE, "head_dim": 8}, 0, 2),  # heads too narrow
        ("llama", {**WIDE, "hidden_act": "gelu"}, 2, 0),  # by the error function
        ("llama", {**WIDE, "hidden_act": "gelu_pytorch_tanh"}, 2, 2),
        ("llama", {**WIDE, "intermediate_size": 52}, 2, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_different_keeps_its_own_code(name: str, changes: dict[str, Any], attentions: int, blocks: int) -> None:
    wanted = [greedy(build(name, **changes), prompt_of(length), NEW_TOKENS) for length in LENGTHS]
    engine = Watched(build(name, **changes))
    assert (engine.fused.attentions, engine.fused.blocks) == (attentions, blocks)
    for answer, expected in zip(engine.answers(), wanted, strict=True):
        assert_same_answer(answer, expected)
    engine.close()


def test_code_that_looks_at_more_than_is_tried_is_left_alone() -> None:
    """Ministral 3 scales queries by their position, far behind any trial."""
    from transformers.models.ministral3.modeling_ministral3 import Ministral3Attention

    from samplerpool.engine.fused_layers import _ATTENTION_NAMES, _is_known

    module = Ministral3Attention.__new__(Ministral3Attention)
    assert not _is_known(module, _ATTENTION_NAMES)
    assert _is_known(build("llama").model.layers[0].self_attn, _ATTENTION_NAMES)


class LimitedBlock(nn.Module):
    """As some feed-forward blocks do: what passes the limit is cut off, which no small number shows."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = block.gate_proj, block.up_proj, block.down_proj
        self.act_fn = block.act_fn

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x).clamp(max=1e6), self.up_proj(x).clamp(min=-1e6, max=1e6)
        return self.down_proj(self.act_fn(gate) * up)  # type: ignore[no-any-return]


def test_a_block_with_limits_is_left_alone() -> None:
    model = build("llama", **WIDE)
    for layer in model.model.layers:
        layer.mlp = LimitedBlock(layer.mlp)
    engine = Watched(model)
    assert (engine.fused.attentions, engine.fused.blocks) == (2, 0)
    engine.close()


def test_code_within_other_code_is_not_known() -> None:
    def wrapped(forward: Any) -> Any:
        return lambda self, x: forward(self, x)

    class Wrapped(LimitedBlock):
        forward = wrapped(LimitedBlock.forward)

    model = build("llama", **WIDE)
    model.model.layers[0].mlp = Wrapped(model.model.layers[0].mlp)
    engine = Watched(model)
    assert engine.fused.blocks == 1
    engine.close()


class OtherAttention(nn.Module):
    """Of a part of the model that has no cache, such as one for images."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(self.q_proj(x).view(x.shape) + self.k_proj(x) + self.v_proj(x))  # type: ignore[no-any-return]


def test_a_module_that_only_looks_like_one_of_the_layers_does_no_harm() -> None:
    model = build("llama", **WIDE)
    model.other = OtherAttention()
    engine = Watched(model)
    assert (engine.fused.attentions, engine.fused.blocks) == (2, 2)
    engine.close()


def test_hooks_that_a_model_has_are_called() -> None:
    model, called = build("llama", **WIDE), []
    Watched(model).close()  # leaves the layers packed
    for part in ("self_attn.q_proj", "mlp.up_proj"):
        layer = model.model.layers[0].get_submodule(part)
        layer.register_forward_hook(lambda *_, part=part: called.append(part))
    engine = Watched(model)
    assert (engine.fused.attentions, engine.fused.blocks) == (1, 1)
    called.clear()
    engine.answers()
    assert {*called} == {"self_attn.q_proj", "mlp.up_proj"}
    engine.close()


def test_a_default_dtype_of_others_changes_nothing() -> None:
    model = build("llama", **WIDE)
    torch.set_default_dtype(torch.float64)
    try:
        engine = Watched(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (engine.fused.attentions, engine.fused.blocks, engine.fused.norms) == (2, 2, 5)
    engine.close()


def test_the_model_by_itself_is_as_before() -> None:
    model = build("llama", **WIDE)
    ids = torch.tensor([prompt_of(20)])
    with torch.inference_mode():
        before = model(ids).logits
        engine = Watched(model)
        model.set_attn_implementation("sdpa")
        beside = model(ids).logits
        engine.close()
        after = model(ids).logits
    torch.testing.assert_close(beside, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


class OtherNorm(nn.Module):
    """Nearly the known norm."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, 16))
        self.eps, self.kind = 1e-5, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "centred":
            x = x - x.mean(-1, keepdim=True)
        mean = x.abs().mean(-1, keepdim=True) ** 2 if self.kind == "mean-of-sizes" else x.pow(2).mean(-1, keepdim=True)
        eps = 1e-4 if self.kind == "other-eps" else self.eps
        scaled = x * torch.rsqrt(mean + eps) * (self.weight + (1.0 if self.kind == "plus-one" else 0.0))
        return scaled + 1e-3 if self.kind == "shifted" else scaled


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("usual", True),
        ("plus-one", True),
        ("centred", False),
        ("mean-of-sizes", False),
        ("other-eps", False),
        ("shifted", False),
    ],
)
def test_which_norms_are_known(kind: str, found: bool) -> None:
    with torch.inference_mode():
        assert (find_norm(OtherNorm(kind)) is not None) == found
