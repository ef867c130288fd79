"""Packed linear layers compute what they computed before, in models as they are."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from samplerpool.engine.arena import LayerShape
from samplerpool.engine.batched import keys_per_token
from samplerpool.engine.packed_group import pack_groups, weight_count
from samplerpool.engine.packed_linear import PackedLinear, pack_linears
from samplerpool.engine.packed_weight import PackedWeight, why_not

pytestmark = [
    pytest.mark.usefixtures("threads"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=600,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=512, n_layer=2, n_head=8, vocab_size=600, n_positions=64)).eval()


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits  # type: ignore[no-any-return]


def packed_layer(
    out_features: int, in_features: int, bias: bool = True, compiled: bool = True
) -> tuple[nn.Linear, PackedLinear]:
    layer = nn.Linear(in_features, out_features, bias=bias)
    holder = nn.Sequential(nn.Linear(in_features, out_features, bias=bias))
    holder.load_state_dict({f"0.{name}": value for name, value in layer.state_dict().items()})
    assert pack_linears(holder, compiled=compiled).packed == 1
    packed = holder[0]
    assert isinstance(packed, PackedLinear)
    return layer, packed


# ---- one layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("out_features", "in_features"), [(576, 576), (1536, 576), (513, 1111), (90, 3000)])
def test_any_number_of_rows(out_features: int, in_features: int, bias: bool, compiled: bool) -> None:
    layer, packed = packed_layer(out_features, in_features, bias, compiled)
    with torch.inference_mode():
        for rows in (1, 2, 3, 8, 33, 200, 1):
            input = torch.randn(rows, in_features)
            torch.testing.assert_close(packed(input), layer(input), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "input",
    [
        torch.randn(1, 7, 576),
        torch.randn(2, 5, 576),
        torch.randn(1, 1, 1, 576),
        torch.randn(576, 6).t(),
        torch.randn(2, 3, 1152)[..., ::2],
        torch.randn(576, 2).t(),
        torch.randn(1, 2, 1152)[..., ::2],
        torch.randn(20, 576)[7:12],
        torch.randn(576),
        torch.randn(0, 576),
        torch.randn(2, 0, 576),
    ],
    ids=lambda input: f"{list(input.shape)}",
)
def test_any_form_of_input(input: Tensor) -> None:
    layer, packed = packed_layer(600, 576)
    with torch.inference_mode():
        result = packed(input)
        torch.testing.assert_close(result, layer(input), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_outputs_have_no_gaps(rows: int) -> None:
    _, packed = packed_layer(513, 576)
    with torch.inference_mode():
        assert packed(torch.randn(1, rows, 576)).is_contiguous()


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_default_dtype_of_others_changes_nothing(float64_by_default: None) -> None:
    layer = nn.Linear(600, 600, dtype=torch.float32)
    weight = PackedWeight(layer.weight.detach(), layer.bias.detach())
    assert weight.is_right(layer.weight.detach())
    for rows in (1, 2, 3):
        input = torch.randn(rows, 600, dtype=torch.float32)
        torch.testing.assert_close(weight.multiply(input), layer(input).detach(), rtol=1e-5, atol=1e-5)


def test_a_gradient_goes_through_to_the_input() -> None:
    model = nn.ModuleDict({"gate_proj": nn.Linear(600, 600), "up_proj": nn.Linear(600, 600), "o": nn.Linear(600, 600)})
    input = torch.randn(2, 600, requires_grad=True)
    wanted = [torch.autograd.grad(layer(input).sum(), input)[0] for layer in model.values()]
    assert (pack_groups(model), pack_linears(model).packed) == (1, 1)
    for layer, gradient in zip(model.values(), wanted, strict=True):
        torch.testing.assert_close(torch.autograd.grad(layer(input).sum(), input)[0], gradient)


def test_the_weight_can_be_read_and_saved_but_not_loaded() -> None:
    layer, packed = packed_layer(600, 576)
    assert torch.equal(packed.weight, layer.weight)
    state = packed.state_dict()
    assert sorted(state) == ["bias", "weight"]
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    with pytest.raises(RuntimeError, match="load them, then pack"):
        packed.load_state_dict(state)


def test_the_original_weight_is_freed() -> None:
    model = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600))
    weights = [weakref.ref(model[index].weight) for index in (0, 2)]
    report = pack_linears(model)
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
    assert (report.packed, report.kept, report.packed_bytes, report.extra_bytes) == (2, 0, 2 * 600 * 600 * 4, 0)


# ---- what stays as it is -------------------------------------------------------------------------------------------


class OwnLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight) * 2


class Quantized(Tensor):
    """Says that it is float32, and holds something else."""

    @staticmethod
    def __new__(cls, size: int) -> Quantized:
        return Tensor._make_wrapper_subclass(cls, (size, size), dtype=torch.float32)  # type: ignore[attr-defined]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


def quantized() -> nn.Linear:
    layer = nn.Linear(600, 600)
    layer.weight = nn.Parameter(Quantized(600), requires_grad=False)
    return layer


def hooked() -> nn.Linear:
    layer = nn.Linear(600, 600)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(600, 600).bfloat16(),
        nn.Linear(600, 600).double(),
        nn.Linear(600, 600, device="meta"),
        nn.Linear(64, 64),
        OwnLinear(600, 600),
        hooked(),
        quantized(),
    ],
    ids=["bfloat16", "float64", "meta", "small", "derived class", "hooked", "quantized"],
)
def test_layers_that_are_left_alone(layer: nn.Linear) -> None:
    model = nn.Sequential(layer)
    assert pack_linears(model).packed == 0
    assert model[0] is layer


def test_packing_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = nn.Sequential(nn.Linear(600, 600))
    report = pack_linears(model, enabled=False)
    assert (report.packed, report.kept, report.reason) == (0, 1, "switched off")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no oneDNN" in str(pack_linears(model).reason)
    assert "no linear layers are packed: torch has no oneDNN here" in caplog.text
    assert type(model[0]) is nn.Linear


def test_a_packing_that_multiplies_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(600, 600))
    right = PackedWeight.multiply
    monkeypatch.setattr(PackedWeight, "multiply", lambda *arguments: right(*arguments) * 1.01)
    assert pack_linears(model).packed == 0
    assert type(model[0]) is nn.Linear


def test_a_layer_in_two_places_stays_one() -> None:
    shared = nn.Linear(600, 600)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    report = pack_linears(model)
    assert (report.packed, report.extra_bytes) == (1, 0)
    assert model["a"] is model["b"][0]


# ---- whole models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: llama(tied=True), lambda: llama(tied=False), gpt2], ids=["tied", "untied", "gpt2"]
)
def test_models_answer_as_before(make: Any) -> None:
    model = make()
    ids = torch.arange(1, 24)[None]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = logits_of(model, ids)
    generated = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert pack_linears(model).packed >= 8
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), generated)
    after = model.state_dict()
    assert set(after) == set(state)
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_a_packed_model_can_be_saved(tmp_path: Path) -> None:
    for model in (llama(tied=True), llama(tied=False), gpt2()):
        ids = torch.arange(1, 9)[None]
        expected = logits_of(model, ids)
        pack_linears(model)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(logits_of(again, ids), expected, rtol=1e-4, atol=1e-5)


def test_a_tied_head_keeps_the_embedding() -> None:
    model = llama(tied=True)
    embedding = model.get_input_embeddings().weight
    report = pack_linears(model)
    assert isinstance(model.lm_head, PackedLinear)
    assert model.lm_head.weight is embedding
    assert report.extra_bytes == 600 * 512 * 4
    assert report.kept == 4, "keys and values of two layers are small"


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_counted_is_the_same_when_the_weights_are_packed(tied: bool) -> None:
    """A second engine on a model, or one that is tried after another, finds it packed."""
    model, shapes = llama(tied=tied), [LayerShape(2, 64, 64)] * 2
    before = weight_count(model), keys_per_token(model, shapes)
    assert before[0] == sum(parameter.numel() for parameter in model.parameters())
    assert pack_groups(model) == 4
    assert pack_linears(model).packed
    assert (weight_count(model), keys_per_token(model, shapes)) == before


def test_packing_twice_changes_nothing() -> None:
    model = llama(tied=False)
    pack_linears(model)
    layer = model.lm_head
    assert pack_linears(model).packed == 0
    assert model.lm_head is layer
