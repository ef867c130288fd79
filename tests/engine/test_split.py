"""Models on several devices: how they are laid over them, and that engines follow layers to where they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from samplerpool.config.arguments import EngineConfig, ModelArguments, SampleArguments, WorkerConfig
from samplerpool.engine import split as split_module
from samplerpool.engine.arena import Arena, LayerShape, Region
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.batched import cache_tokens, layer_shapes
from samplerpool.engine.dense_attention import ArenaCache, packed_attention
from samplerpool.engine.factory import build_engine
from samplerpool.engine.packed_step import Span, Step
from samplerpool.engine.split import check_spread, choose_split, doubt, skeleton_of
from samplerpool.errors import InvalidParameter, StartFailed
from samplerpool.worker.build import Built, build_sampler
from tests.engine_contract import drive, params
from tests.model_zoo import ZOO, build, config_of, prompt_of, reference_greedy
from tests.tiny_model import save_tiny_model

CUDA = EngineConfig(device="cuda")
CPU = EngineConfig(device="cpu")
RENDERER: Any = SimpleNamespace(codec=SimpleNamespace(eos_token_ids=frozenset({2})), media_kinds=frozenset())


def split(
    name: str,
    devices: int = 2,
    wanted: str = "auto",
    engine: EngineConfig = CUDA,
    takes_media: bool = False,
    model_args: ModelArguments | None = None,
    **changes: Any,
) -> str:
    skeleton = skeleton_of(AutoModelForCausalLM, config_of(name, **changes), trust_remote_code=False)
    assert next(skeleton.parameters()).device.type == "meta"
    return choose_split(wanted, devices, skeleton, model_args or ModelArguments(), engine, takes_media=takes_media)


def test_layers_are_divided_where_there_is_a_plan_and_the_dense_engine_runs_it() -> None:
    planned = {name for name in ZOO if config_of(name).base_model_tp_plan and ZOO[name].method == "packed"}
    planned.remove("cohere")  # with norms of each head
    planned.add("llama-dynamic")  # up to where its rotary embedding changes, which is all that it takes by itself
    assert {"llama", "qwen3", "gemma3", "mixtral"} < planned < set(ZOO)
    for name in ZOO:
        assert split(name) == ("tensor" if name in planned else "layer"), name


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("gpt2", {}, "transformers has no plan for that"),
        ("llama", {"devices": 3}, "its 4 attention heads cannot be shared equally"),
        ("llama", {"devices": 4}, "its 2 heads of keys and values cannot be shared equally"),
        ("phi3-longrope", {}, r"changes beyond 16 tokens \(with --max-model-len 16 it can\)"),
        ("cohere", {}, "the norms of its queries and keys have weights for each head"),
        ("qwen3-next", {}, "the dense engine cannot run it: it carries a state"),
        ("llama", {"takes_media": True}, "it takes images, videos or sounds"),
        ("llama", {"engine": EngineConfig(engine="paged", device="cuda")}, "the paged engine cannot"),
        ("llama", {"model_args": ModelArguments(quant_config={"name": "int8"})}, "its weights are quantized"),
    ],
)
def test_what_cannot_be_divided_says_why(name: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(StartFailed, match=reason):
        split(name, wanted="tensor", **arguments)
    engine = arguments.pop("engine", CPU)
    with pytest.raises(StartFailed, match=f"{reason}.*; and its layers cannot be spread over the devices: "):
        split(name, engine=engine, **arguments)


def test_keys_and_values_that_every_rank_has_need_not_be_shared() -> None:
    assert split("olmo2", devices=4) == "tensor"  # its plan gathers them


def test_layers_are_spread_if_that_is_asked_for_and_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split("llama", wanted="layer") == "layer"
    with pytest.raises(StartFailed, match="takes GPUs"):
        split("llama", wanted="layer", engine=CPU)
    with pytest.raises(StartFailed, match="the paged engine keeps keys and values on one device"):
        split("llama", wanted="layer", engine=EngineConfig(engine="paged", device="cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartFailed, match=r"accelerate is not installed \(pip install 'samplerpool\[accelerate\]'\)"):
        split("llama", wanted="layer")


def test_what_transformers_divides_wrongly_or_nobody_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (
        skeleton_of(AutoModelForCausalLM, config_of(name), trust_remote_code=False) for name in ("llama", "phi")
    )
    assert doubt(one) is None
    monkeypatch.setattr(split_module, "COMPARED", {"llama"})
    assert doubt(one) is None
    assert "a model of the type phi has not been compared" in str(doubt(other))
    monkeypatch.setattr(transformers, "__version__", "5.22.1")
    with pytest.raises(StartFailed, match=r"because transformers 5.22.1 divides some models wrongly; 5.23 is needed"):
        split("llama", wanted="tensor")
    assert split("llama") == "layer"


def test_adapters_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="takes no adapters: merge"):
        split("llama", model_args=ModelArguments(peft_config={"name": "lora", "path": "somewhere"}))


# ---- layers on several devices ------------------------------------------------------------------------------------


@pytest.fixture
def spread(tmp_path: Path) -> Any:
    """A model with hooks of accelerate, as ``device_map`` makes them: its second layer's weights come from the disk.

    One without GPUs cannot see more of it: each layer still computes on the CPU.
    """

    def load(name: str) -> Any:
        build(name).save_pretrained(tmp_path / name)
        last = {"llama": "model.layers.1", "bloom": "transformer.h.1"}[name]
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config_of(name))
        parts = [path for path, _ in skeleton.named_parameters() if not path.startswith(last)]
        places = {path.rpartition(".")[0]: "cpu" for path in parts} | {last: "disk"}
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float32, device_map=places, offload_folder=tmp_path / "offload"
        ).eval()

    return load


@pytest.mark.parametrize(("name", "engine_name"), [("llama", "dense"), ("bloom", "padded")])
def test_a_model_with_hooks_of_accelerate_answers_the_same(spread: Any, name: str, engine_name: str) -> None:
    model = spread(name)
    config = EngineConfig(max_batch=4, max_model_len=64, options={"cache_gib": 0.05})
    engine = build_engine(config, model, RENDERER)
    assert engine.name == engine_name
    answers = drive(engine, [request(number) for number in range(3)])
    for number in range(3):
        wanted = reference_greedy(build(name), prompt_of(9, number), 12).token_ids
        assert answers[0, number].token_ids == wanted
    engine.close()


def request(number: int) -> EngineRequest:
    return EngineRequest((0, number), tuple(prompt_of(9, number)), params(max_new_tokens=12))


def test_a_model_that_does_not_fit_on_its_devices_is_refused(spread: Any) -> None:
    with pytest.raises(StartFailed, match=r"does not fit on its 2 devices: 100% of its weights would be left in the"):
        check_spread(spread("llama"), 2)

    def weights(**devices: int) -> Any:
        made = [SimpleNamespace(device=torch.device(name), numel=lambda n=n: n) for name, n in devices.items()]
        return SimpleNamespace(parameters=lambda: made)

    check_spread(weights(cuda=1000), 2)
    with pytest.raises(StartFailed, match="on its 3 devices: 25% of its weights"):
        check_spread(weights(cuda=750, cpu=50, meta=200), 3)


def build_worker(folder: Path) -> Built:
    """What a worker does that gets two GPUs; here are none, so accelerate puts all layers on the CPU."""
    config = WorkerConfig(
        pool="p",
        index=0,
        endpoint="",
        incarnation="",
        model_args=ModelArguments(model=str(save_tiny_model(folder))),
        sample_args=SampleArguments(),
        engine=EngineConfig(device="cuda", max_batch=4, options={"cache_gib": 0.01}),
        devices=2,
        split_mode="layer",
    )
    return build_sampler(config, lambda _: None, pytest.fail)


def test_a_worker_spreads_the_layers_and_refuses_what_is_left_over(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"does not fit on its 2 devices: 100% of its weights"):
        build_worker(tmp_path)


def test_a_worker_says_that_its_layers_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "check_spread", lambda model, devices: None)  # as if these were GPUs
    built = build_worker(tmp_path)
    assert (built.facts, built.ranks) == ({"split_mode": "layer", "devices": 2}, None)
    built.close()


META = torch.device("meta")


@pytest.mark.parametrize("sinks", [False, True])
def test_a_layer_on_another_device_has_all_that_it_needs_there(sinks: bool) -> None:
    arena = Arena([LayerShape(2, 8, 8), LayerShape(2, 8, 8, META)], 1024, torch.float32, torch.device("cpu"))
    assert [keys.device.type for keys in arena.keys] == ["cpu", "meta"]
    cache = ArenaCache(arena)
    decodes = [Span(Region(0, 64), 5, 1), Span(Region(64, 64), 9, 1), Span(Region(256, 128), 70, 1)]
    chunks = [Span(Region(512, 64), 0, 7)]
    with Step(arena, decodes, chunks) as step:
        for layer, device in enumerate(("cpu", "meta")):
            query, key, value = (torch.zeros(1, heads, 10, 8, device=device) for heads in (4, 2, 2))
            cache.update(key, value, layer)
            module = SimpleNamespace(layer_idx=layer, config=None)
            more = {"softcap": 4.0, "s_aux": torch.zeros(4, device=device)} if sinks else {}
            out, _ = packed_attention(module, query, key, value, None, sliding_window=6, **more)
            assert (out.device.type, out.shape) == (device, (1, 10, 4, 8))
            assert cache.get_seq_length(layer).device.type == device
            assert step.write_index(2, key.device).device.type == device


def test_the_cache_takes_what_the_fullest_device_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    free = {first: 10_000_000, second: 3_000_000}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 0))
    model: Any = SimpleNamespace(device=first, dtype=torch.float32)
    shapes = [LayerShape(2, 8, 8, first)] * 3 + [LayerShape(2, 8, 8, second)]

    def tokens(shapes: list[LayerShape]) -> int:
        return cache_tokens(shapes, model, EngineConfig(), None, least=64, most=10**9)

    assert tokens(shapes) == int(0.8 * 3_000_000 / 128)
    assert tokens([LayerShape(2, 8, 8)] * 4) == int(0.8 * 10_000_000 / 512)


def test_layers_of_one_device_are_not_marked() -> None:
    assert {shape.device for shape in layer_shapes(build("llama"))} == {None}
