"""What ``ModelEngine`` makes of a checkpoint: adapters, quantization, remote code, a custom chat template."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import BitsAndBytesConfig

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.engine.base import Engine
from samplerpool.engine.factory import build_engine
from samplerpool.errors import InvalidParameter, ModelNotFound, StartFailed
from samplerpool.model.model_engine import ModelEngine
from tests.engine_contract import answer_of
from tests.lora import generated, save_adapter
from tests.model_zoo import build, prompt_of
from tests.tiny_tokenizer import tiny_tokenizer, user

PROMPT = tuple(prompt_of(12))
TOKENS = 12
WIDTH = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 320}


def model() -> Any:
    return build("llama", **WIDTH)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "one": save_adapter(model(), folder / "one", 1),
        "two": save_adapter(model(), folder / "two", 2, ["q_proj", "up_proj"]),
    }


def load(checkpoint: Path, **arguments: Any) -> ModelEngine:
    return ModelEngine(ModelArguments(model_name_or_path=str(checkpoint), **arguments))


def lora(where: Any, **more: Any) -> dict[str, Any]:
    return {"name": "lora", "adapter_name_or_path": where, **more}


def engine_of(loaded: ModelEngine) -> Engine:
    return build_engine(EngineConfig(max_batch=4), loaded.model, loaded.renderer)


def answer(engine: Engine, **params: Any) -> list[int]:
    return answer_of(engine, PROMPT, max_new_tokens=TOKENS, **params).token_ids


def peft_answer(folder: Path) -> list[int]:
    return generated(PeftModel.from_pretrained(model(), folder), "default", PROMPT, TOKENS)


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_a_path_is_merged(checkpoint: Path, adapters: dict[str, Path]) -> None:
    loaded = load(checkpoint, peft_config=lora(str(adapters["one"]), r=4, lora_alpha=8))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in loaded.model.named_modules())
    engine = engine_of(loaded)
    assert answer(engine) == peft_answer(adapters["one"])
    assert engine.adapters == ()
    engine.close()


def test_several_are_merged_one_on_top_of_the_other(checkpoint: Path, adapters: dict[str, Path]) -> None:
    loaded = load(checkpoint, peft_config=json.dumps(lora([str(folder) for folder in adapters.values()])))
    both = PeftModel.from_pretrained(model(), adapters["one"], adapter_name="one")
    both.load_adapter(adapters["two"], "two")
    both.base_model.set_adapter(["one", "two"])
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        torch.testing.assert_close(loaded.model(ids).logits, both(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_those_with_names_are_for_requests_to_choose(checkpoint: Path, adapters: dict[str, Path]) -> None:
    loaded = load(checkpoint, peft_config=lora({name: str(folder) for name, folder in adapters.items()}))
    assert isinstance(loaded.model, PeftModel)
    assert loaded.model_config.model_type == "llama"
    engine = engine_of(loaded)
    assert (engine.adapters, engine.adapter) == (("one", "two"), BASE_ADAPTER)
    assert answer(engine) == answer(engine_of(load(checkpoint)))
    for name, folder in adapters.items():
        assert answer(engine, adapter=name) == peft_answer(folder)
    engine.close()


def test_one_that_is_not_merged_answers_all_that_choose_none(checkpoint: Path, adapters: dict[str, Path]) -> None:
    engine = engine_of(load(checkpoint, peft_config=lora(str(adapters["two"]), merge=False)))
    assert (engine.adapters, engine.adapter) == (("two",), "two")
    assert answer(engine, adapter=engine.adapter) == peft_answer(adapters["two"])
    engine.close()


def test_another_kind_of_adapter_is_merged_as_well(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_adapter(model(), tmp_path / "dora", 3, ["q_proj", "down_proj"], use_dora=True)
    merged = engine_of(load(checkpoint, peft_config=lora(str(folder))))
    assert answer(merged) == peft_answer(folder)
    merged.close()
    beside = engine_of(load(checkpoint, peft_config=lora(str(folder), merge=False)))
    assert answer(beside) == peft_answer(folder)
    beside.close()
    with pytest.raises(StartFailed, match=r"cannot be chosen by request: .* such as DoRA. Merge the adapter instead"):
        load(checkpoint, peft_config=lora({"dora": str(folder)}))


def test_adapters_that_cannot_be_loaded_are_one_sentence(
    checkpoint: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    def refused(error: type[Exception], match: str, **arguments: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            load(checkpoint, **arguments)
        assert "\n" not in str(caught.value)

    other_size = save_adapter(build("llama"), tmp_path / "size", 1)
    refused(
        StartFailed, r"'.*size' cannot be loaded into this model: .*size mismatch", peft_config=lora(str(other_size))
    )
    deeper = save_adapter(build("llama", **WIDTH, num_hidden_layers=3), tmp_path / "deeper", 1)
    refused(StartFailed, "made for another model: the model has no place for 14 tensors", peft_config=lora(str(deeper)))
    shallow = save_adapter(build("llama", **WIDTH, num_hidden_layers=1), tmp_path / "shallow", 1, ["q_proj", "v_proj"])
    refused(StartFailed, "made for another model: it lacks 4 tensors", peft_config=lora({"a": str(shallow)}))
    other_kind = save_adapter(build("gpt2"), tmp_path / "kind", 1, ["c_attn"])
    refused(StartFailed, "'.*kind' cannot be loaded .*Target modules .*c_attn", peft_config=lora(str(other_kind)))
    prompts = tmp_path / "prompts"
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model(), tuning).save_pretrained(prompts, save_embedding_layers=False)
    refused(StartFailed, "PROMPT_TUNING, which adds tokens to prompts", peft_config=lora(str(prompts)))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "adapter_config.json").write_text("{nope")
    refused(StartFailed, "'.*damaged' cannot be loaded", peft_config=lora(str(tmp_path / "damaged")))
    refused(ModelNotFound, "not a PEFT adapter: .* It is a whole model", peft_config=lora(str(checkpoint)))
    refused(ModelNotFound, "There is no adapter at './nowhere'", peft_config=lora("./nowhere"))


def test_without_the_package_it_says_what_to_install(
    checkpoint: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StartFailed, match=r"pip install 'samplerpool\[peft\]'"):
        load(checkpoint, peft_config=lora(str(adapters["one"])))


# ---- quantization ---------------------------------------------------------------------------------------------------


def test_weights_of_eight_bits_answer_nearly_the_same(checkpoint: Path, adapters: dict[str, Path]) -> None:
    pytest.importorskip("torchao")
    quantized = {"name": "torchao", "quant_type": "int8_weight_only"}
    loaded = load(checkpoint, quant_config=quantized, peft_config=lora({"one": str(adapters["one"])}))
    layer = loaded.model.get_base_model().model.layers[0].mlp.up_proj
    assert type(layer.base_layer.weight).__module__.startswith("torchao.")
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        exact = model()(ids).logits
        difference = (loaded.model(input_ids=ids).logits - exact).std() / exact.std()
    assert 0 < difference < 0.05
    wanted = generated(loaded.model, "one", PROMPT, TOKENS)
    loaded.model.base_model.disable_adapter_layers()
    plain = loaded.model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)
    engine = engine_of(loaded)
    assert answer(engine) == plain[0, len(PROMPT) :].tolist()
    assert answer(engine, adapter="one") == wanted
    engine.close()


def test_the_configuration_reaches_the_library(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a method that cannot run here."""
    from transformers import AutoModelForCausalLM

    seen: dict[str, Any] = {}

    class Reached(Exception):
        """Where the library would begin to load."""

    def from_pretrained(*_: Any, **keywords: Any) -> Any:
        seen.update(keywords)
        raise Reached

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(StartFailed):
        load(checkpoint, quant_config={"name": "bnb", "quantization_bit": 4, "bnb_4bit_quant_type": "nf4"})
    config = seen["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert (config.load_in_4bit, config.load_in_8bit, config.bnb_4bit_quant_type) == (True, False, "nf4")
    assert "device_map" not in seen


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"name": "torchoa"}, "'torchoa'; did you mean 'torchao'"),
        ({"name": "bnb", "load_in_4bits": True}, "'load_in_4bits'; did you mean 'load_in_4bit'"),
        ({"name": "bnb", "quantization_bit": 3}, "must be 4 or 8, not 3"),
        ({"name": "quanto", "weights": "int3"}, "'quanto' cannot be made: .*int3"),
        ({"name": "torchao"}, "^quant_config 'torchao' needs a quant_type: "),
        ({"name": "torchao", "group_size": 32}, "^quant_config 'torchao' needs a quant_type: "),
        (
            {"name": "torchao", "quant_typ": "int4_weight_only"},
            "'quant_typ'; did you mean 'quant_type'.* needs a quant",
        ),
        ({"name": "torchao", "quant_type": "int8_weight_only", "grup_size": 32}, "'grup_size'; did you mean 'group_"),
        (
            {"name": "torchao", "quant_type": "int8_weight_only", "module_to_not_convert": ["x"]},
            "'module_to_not_convert'; did you mean 'modules_to_not_convert'",
        ),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(checkpoint: Path, config: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidParameter, match=match):
        load(checkpoint, quant_config=config)


def test_a_method_whose_package_is_missing_says_so(checkpoint: Path) -> None:
    with pytest.raises(StartFailed, match=r"cannot be loaded: .*bitsandbytes"):
        load(checkpoint, quant_config={"name": "bnb", "quantization_bit": 8})


# ---- the rest -------------------------------------------------------------------------------------------------------

REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    came_with_the_checkpoint = True
"""


def test_code_of_the_checkpoint_runs_only_if_it_is_trusted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "own"
    model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_llama", "auto_map": classes}))
    with pytest.raises(StartFailed, match="brings its own code; pass trust_remote_code"):
        load(folder)
    loaded = load(folder, trust_remote_code=True)
    assert loaded.model.came_with_the_checkpoint
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        torch.testing.assert_close(loaded.model(ids).logits, model()(ids).logits)


def test_dtype_attention_and_template_are_as_asked(checkpoint: Path) -> None:
    arguments = ModelArguments(
        model_name_or_path=str(checkpoint),
        dtype="bfloat16",
        flash_attn="eager",
        custom_chat_template="<{{ messages[0].content }}>",
    )
    loaded = ModelEngine(arguments)
    assert loaded.model.dtype is torch.bfloat16
    assert loaded.model_config._attn_implementation == "eager"
    assert loaded.renderer.prompt_ids([user("Hi")], None, {}) == tuple(loaded.processor.encode("<Hi>"))
    with pytest.raises(StartFailed, match=r"(?i)flash.?attention"):
        load(checkpoint, flash_attn="flash_attention_2")
