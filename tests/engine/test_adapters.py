"""LoRA adapters by request: every engine's tokens are PEFT's own, in batches of base and several adapters mixed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from samplerpool import SyncSampler
from samplerpool.config.arguments import EngineConfig, ModelArguments, SampleArguments
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.engine.scripted import ScriptedRenderer
from samplerpool.errors import ModelNotFound, StartFailed, UnsupportedParameter
from samplerpool.rendering.renderer import Renderer
from tests.engine_contract import answer_of, drive, params
from tests.lora import generated, save_adapter, with_adapters
from tests.model_zoo import VOCABULARY, build, prompt_of
from tests.near_ties import assert_same_tokens
from tests.tiny_tokenizer import tiny_tokenizer

TOKENS = 16
NAMES = (BASE_ADAPTER, "narrow", "wide")


class Adapted:
    """A model of the zoo with two adapters: for an engine to take, and as PEFT runs it."""

    def __init__(self, name: str, folder: Path, targets: tuple[Any, Any]) -> None:
        self._name = name
        self.folders = {
            "narrow": save_adapter(build(name), folder / "narrow", 1, targets[0], r=2),
            "wide": save_adapter(build(name), folder / "wide", 2, targets[1], r=8, use_rslora=True),
        }
        self.peft_model = self.fresh()

    def fresh(self) -> Any:
        return with_adapters(build(self._name), self.folders)

    @functools.cache  # noqa: B019  # as long as the module's fixture
    def wanted(self, adapter: str, prompt_ids: tuple[int, ...]) -> list[int]:
        return generated(self.peft_model, adapter, prompt_ids, TOKENS)

    def check(self, request: EngineRequest, token_ids: list[int]) -> None:
        adapter = request.params.adapter or BASE_ADAPTER

        def logits_after(tokens: list[int]) -> torch.Tensor:
            ids = torch.tensor([[*request.prompt_ids, *tokens]])
            if adapter == BASE_ADAPTER:
                with self.peft_model.disable_adapter(), torch.no_grad():
                    return self.peft_model(input_ids=ids).logits[0, -1]
            self.peft_model.set_adapter(adapter)
            with torch.no_grad():
                return self.peft_model(input_ids=ids).logits[0, -1]

        assert_same_tokens(token_ids, self.wanted(adapter, request.prompt_ids), request, logits_after)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    targets = (["q_proj", "v_proj", "lm_head"], "all-linear")
    return Adapted("llama", tmp_path_factory.mktemp("llama"), targets)


def engine_for(model: Any, **config: Any) -> Engine:
    return build_engine(EngineConfig(**{"max_batch": 16, **config}), model, ScriptedRenderer())


def requests(count: int = 9) -> list[EngineRequest]:
    """Base and both adapters in turns, on prompts of several lengths, each of which comes with all of them."""
    return [
        EngineRequest(
            (1, n),
            tuple(prompt_of(5 + 11 * (n // 3))),
            params(max_new_tokens=TOKENS, adapter=NAMES[n % 3]),
            INTERACTIVE if n % 2 else BATCH,
        )
        for n in range(count)
    ]


def check_mixed(adapted: Adapted, engine: Engine) -> None:
    asked = requests()
    answers = drive(engine, asked)
    for request in asked:
        adapted.check(request, answers[request.request_id].token_ids)
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == len(asked), "the adapters change nothing"


WAYS: dict[str, dict[str, Any]] = {
    "dense": {"engine": "dense"},
    "dense, plain torch": {"engine": "dense", "options": {"kernel": False, "packed_linears": False}},
    "dense, small steps": {"engine": "dense", "options": {"step_tokens": 7}},
    "dense, few places": {"engine": "dense", "max_batch": 2},
    "sequential": {"engine": "sequential"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_mixed_batch_answers_as_peft_does(llama: Adapted, way: str) -> None:
    engine = engine_for(llama.fresh(), **WAYS[way])
    assert set(engine.adapters) == {"narrow", "wide"}
    check_mixed(llama, engine)
    engine.close()


@pytest.mark.parametrize(
    ("name", "engine", "targets"),
    [
        ("gpt2", "dense", (["c_attn"], ["c_attn", "c_proj", "c_fc", "lm_head"])),
        ("mixtral", "dense", (["q_proj"], ["q_proj", "k_proj", "o_proj"])),
        ("falcon", "padded", (["query_key_value"], "all-linear")),
        ("mamba", "sequential", (["in_proj"], ["in_proj", "x_proj"])),
    ],
)
def test_other_models_too(tmp_path: Path, name: str, engine: str, targets: tuple[Any, Any]) -> None:
    adapted = Adapted(name, tmp_path, targets)
    running = engine_for(adapted.fresh(), engine="auto")
    assert running.name == engine
    check_mixed(adapted, running)
    running.close()


def test_packed_groups_are_in_it(llama: Adapted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of the tiny model are too small to be packed; with them packed it is the same."""
    monkeypatch.setattr("samplerpool.engine.packed_linear.SMALLEST", 1)
    model = llama.fresh()
    engine = engine_for(model, engine="dense")
    kinds = {type(module).__name__ for module in model.modules()}
    assert "GroupedLinear" in kinds
    check_mixed(llama, engine)
    engine.close()


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_keys_and_values_are_never_shared_between_adapters(llama: Adapted, tmp_path: Path, name: str) -> None:
    """One after the other, so that each could copy what the one before it left, and all at once."""
    adapted = llama if name == "llama" else Adapted(name, tmp_path, (["query_key_value"], "all-linear"))
    engine = engine_for(adapted.fresh())
    prompt_ids = tuple(prompt_of(40))
    for turn in range(2):
        for at, adapter in enumerate(NAMES):
            before = engine.stats().details["prefix_hits"]
            request = EngineRequest((2 + turn, at), prompt_ids, params(max_new_tokens=TOKENS, adapter=adapter))
            adapted.check(request, drive(engine, [request])[request.request_id].token_ids)
            assert engine.stats().details["prefix_hits"] == before + turn, "the second time there is one to copy"
    together = [
        EngineRequest((9, n), prompt_ids, params(max_new_tokens=TOKENS, adapter=adapter))
        for n, adapter in enumerate(NAMES * 2)
    ]
    answers = drive(engine, together)
    for request in together:
        adapted.check(request, answers[request.request_id].token_ids)
    engine.close()


def test_a_continuation_keeps_its_adapter(llama: Adapted) -> None:
    engine = engine_for(llama.fresh(), engine="dense")
    prompt_ids = tuple(prompt_of(12))
    wanted = llama.wanted("wide", prompt_ids)
    rest = answer_of(engine, prompt_ids, wanted[:5], max_new_tokens=TOKENS, adapter="wide").token_ids
    assert rest == wanted[5:]
    engine.close()


def test_a_name_that_is_not_there_is_refused_with_those_that_are(llama: Adapted) -> None:
    engine = engine_for(llama.fresh(), engine="dense")
    with pytest.raises(UnsupportedParameter, match="'wibe'; did you mean 'wide'") as caught:
        engine.check(EngineRequest((1, 1), (1, 2, 3), params(adapter="wibe")))
    assert "narrow, wide" in caught.value.message
    engine.close()
    plain = engine_for(build("llama"), engine="dense")
    with pytest.raises(UnsupportedParameter, match="loaded without any"):
        plain.check(EngineRequest((1, 1), (1, 2, 3), params(adapter="wide")))
    plain.close()


def test_the_paged_engine_says_that_it_cannot(llama: Adapted) -> None:
    model = llama.fresh()
    with pytest.raises(StartFailed, match=r"paged engine cannot serve adapters.*--engine dense"):
        engine_for(model, engine="paged")
    prompt_ids = tuple(prompt_of(12))
    assert generated(model, "wide", prompt_ids, TOKENS) == llama.wanted("wide", prompt_ids), "the model is as it was"


def test_a_closed_engine_leaves_the_model_to_peft(llama: Adapted) -> None:
    model = llama.fresh()
    engine = engine_for(model, engine="dense", options={"packed_linears": False})
    engine.close()
    prompt_ids = tuple(prompt_of(12))
    for adapter in NAMES:
        assert generated(model, adapter, prompt_ids, TOKENS) == llama.wanted(adapter, prompt_ids)


def test_other_kinds_answer_as_they_are_switched_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model of the caller's own with DoRA, which no request can choose: it answers as the model does."""
    folder = save_adapter(build("llama"), tmp_path, 3, ["q_proj", "down_proj"], use_dora=True)
    model, plain = (PeftModel.from_pretrained(build("llama"), folder, adapter_name="dora") for _ in range(2))
    engine = engine_for(model, engine="dense")
    assert engine.adapters == ()
    assert "variant of LoRA, such as DoRA" in caplog.text
    prompt_ids = tuple(prompt_of(12))
    wanted = generated(plain, "dora", prompt_ids, TOKENS)
    assert answer_of(engine, prompt_ids, max_new_tokens=TOKENS).token_ids == wanted
    assert wanted != generated(plain, BASE_ADAPTER, prompt_ids, TOKENS)
    engine.close()


# ---- over a socket --------------------------------------------------------------------------------------------------


@pytest.fixture
def sampler(llama: Adapted) -> Iterator[SyncSampler]:
    """Hosts a model of PEFT's, on which the adapter ``wide`` is switched on."""
    model = llama.fresh()
    model.base_model.enable_adapter_layers()
    model.set_adapter("wide")
    renderer = Renderer(tiny_tokenizer("{{ messages[0].content }}"))
    with SyncSampler(SampleArguments(max_new_tokens=TOKENS), ModelArguments(), model, renderer) as sampler:
        yield sampler


def test_a_name_travels_from_the_caller_to_the_tokens(llama: Adapted, sampler: SyncSampler) -> None:
    text = "!$&("  # one token a byte, below the model's vocabulary
    answers = {}
    for adapter in (None, *NAMES):
        for _ in sampler.generate(text, adapter=adapter, ignore_eos=True, temperature=0.0):
            pass
        assert sampler.last is not None
        answers[adapter] = list(sampler.last.token_ids)
    prompt_ids = tuple(tiny_tokenizer().encode(text))
    assert max(prompt_ids) < VOCABULARY
    for adapter in NAMES:
        request = EngineRequest((1, 1), prompt_ids, params(max_new_tokens=TOKENS, adapter=adapter))
        llama.check(request, answers[adapter])
    assert answers[None] == answers["wide"], "what is switched on answers those who choose nothing"
    rows = sampler.batch_infer([{"prompt": text}] * 2, adapter="narrow", ignore_eos=True, temperature=0.0)
    texts = {row["generation"]["text"] for row in rows}  # type: ignore[typeddict-item]
    assert texts == {"".join(sampler.generate(text, adapter="narrow", ignore_eos=True, temperature=0.0))}


@pytest.mark.full
def test_a_pool_loads_them_and_a_default_that_is_not_there_fails_its_launch(tmp_path: Path) -> None:
    wide = {"vocab_size": 320}
    build("llama", **wide).save_pretrained(tmp_path / "model")
    tiny_tokenizer("{{ messages[0].content }}").save_pretrained(tmp_path / "model")
    one = save_adapter(build("llama", **wide), tmp_path / "one", 1)
    arguments = ModelArguments(peft_config={"name": "lora", "adapter_name_or_path": {"one": str(one)}})
    asked = {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0.0}
    with SyncSampler.launch(str(tmp_path / "model"), 1, model_args=arguments) as sampler:
        list(sampler.generate("Hello", adapter="one", **asked))
        assert sampler.last is not None
        adapted = with_adapters(build("llama", **wide), {"one": one})
        assert sampler.last.token_ids == generated(adapted, "one", sampler.last.prompt_ids, TOKENS)
    with pytest.raises(UnsupportedParameter, match="did you mean 'one'"):
        SyncSampler.launch(
            str(tmp_path / "model"), 1, model_args=arguments, sample_args=SampleArguments(adapter="onne")
        ).close()
    missing = ModelArguments(peft_config={"name": "lora", "adapter_name_or_path": {"one": "./nowhere"}})
    with pytest.raises(ModelNotFound, match=r"no adapter at './nowhere'"):
        SyncSampler.launch(str(tmp_path / "model"), 1, model_args=missing).close()


def test_status_lists_them_and_a_wrong_one_is_refused(sampler: SyncSampler) -> None:
    assert set(sampler.connection.describe(0, 10.0)["adapters"]) == {"narrow", "wide"}
    with pytest.raises(UnsupportedParameter, match="did you mean 'narrow'"):
        list(sampler.generate("!", adapter="narow"))
    with pytest.raises(UnsupportedParameter, match="did you mean 'narrow'"):
        sampler.batch_infer([{"prompt": "!"}], adapter="narow")
