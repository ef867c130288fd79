"""By which a model is known again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from samplerpool.config.arguments import ModelArguments
from samplerpool.errors import ModelNotFound
from samplerpool.model.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def of(folder: Path, **settings: object) -> dict[str, object]:
    return fingerprint(ModelArguments(model_name_or_path=str(folder), **settings))  # type: ignore[arg-type]


def test_the_same_model_has_the_same_one(folder: Path) -> None:
    found = of(folder)
    assert found == of(folder)
    assert found["name"] == folder.name
    assert found["dtype"] == "auto"


def test_weights_are_told_apart_by_header_size_and_time(folder: Path) -> None:
    before = of(folder)["weights"]
    file = folder / "model.safetensors"
    state = file.stat()
    content = bytearray(file.read_bytes())
    content[12] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    header = of(folder)["weights"]
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    time = of(folder)["weights"]
    file.write_bytes(content + b"\0")
    assert len({before, header, time, of(folder)["weights"]}) == 4


def test_all_of_the_weights_count_where_that_is_asked_for(folder: Path) -> None:
    before = of(folder, hash_weights=True)["weights"]
    file = folder / "model.safetensors"
    content = file.read_bytes()
    os.utime(file, ns=(0, 0))
    assert of(folder, hash_weights=True)["weights"] == before != of(folder)["weights"]
    quick = of(folder)["weights"]
    file.write_bytes(content[:-1] + b"\1")  # behind the header
    os.utime(file, ns=(0, 0))
    assert of(folder)["weights"] == quick
    assert of(folder, hash_weights=True)["weights"] != before


def test_texts_and_settings_count(folder: Path, tmp_path: Path) -> None:
    before = of(folder)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    after = of(folder)
    assert before["texts"] != after["texts"]
    assert before["weights"] == after["weights"]
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    first = of(folder, custom_chat_template=str(template))["custom_chat_template"]
    template.write_text("{{ messages[0] }}")
    assert first != of(folder, custom_chat_template=str(template))["custom_chat_template"]


@pytest.mark.parametrize("named", [True, False])
def test_adapters_count_by_what_is_in_them(folder: Path, tmp_path: Path, named: bool) -> None:
    """Another adapter in the same place is another model."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    where = {"mine": str(adapter)} if named else str(adapter)
    config = {"name": "lora", "adapter_name_or_path": where}
    before = of(folder, peft_config=config)
    assert before == of(folder, peft_config=config)
    assert "adapters" not in of(folder)
    state = weights.stat()
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    trained_on = of(folder, peft_config=config)
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 1}')
    scaled = of(folder, peft_config=config)
    differing = [before["adapters"], trained_on["adapters"], scaled["adapters"]]
    assert all(differing.count(each) == 1 for each in differing)
    assert before["weights"] == scaled["weights"]
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelNotFound, match="not a PEFT adapter"):
        of(folder, peft_config=config)


def test_a_gguf_file_has_one_as_well(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 50)
    before = fingerprint(ModelArguments(model_name_or_path=str(file)))
    file.write_bytes(b"GGUF" + b"\1" * 50)
    assert before["weights"] != fingerprint(ModelArguments(model_name_or_path=str(file)))["weights"]
