"""By which a model is known again; its weights are read only if that is asked for. Free of torch and transformers."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.arguments import ModelArguments
from samplerpool.model.source import ADAPTER_FILE, CONFIG_FILE, ModelSource, resolve_adapter, resolve_source

HEAD_BYTES = 1 << 20
"""Of a GGUF file: what describes it, the tokenizer included."""

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")
_LENGTH = struct.Struct("<Q")


def fingerprint(arguments: ModelArguments) -> dict[str, Any]:
    """What a model's answers depend on.

    Args:
        arguments: as it was loaded by.

    Returns:
        The name; hashes of the weights (by safetensors' headers or a file's beginning, size and time of change; with
        ``hash_weights`` by all that is in them) and of the texts that lie with them (configuration, tokenizer,
        template), of the model and of each of its adapters by its path; and how it was asked to be loaded.

    Raises:
        ModelNotFound: it, or an adapter, is not there any more.
    """
    source = resolve_source(arguments.model_name_or_path)
    whole = arguments.hash_weights
    found: dict[str, Any] = {"name": source.name, **_files(source, whole)}
    if adapters := adapter_plan(arguments.peft_config).paths:
        found["adapters"] = {path: _adapter(path, whole) for path in adapters}
    given = {name: value for name, value in vars(arguments).items() if name != "model_name_or_path"}
    template = given.get("custom_chat_template")
    if template and (path := Path(template)).suffix and path.is_file():
        given["custom_chat_template"] = _digest([path.read_bytes()])
    return found | {name: value for name, value in given.items() if value not in (None, False, {}, [])}


def _files(source: ModelSource, whole: bool) -> dict[str, str]:
    if source.kind == "hub":
        return {"revision": _revision(source.location, CONFIG_FILE)}
    return _hashes(Path(source.location), whole)


def _adapter(name: str, whole: bool) -> dict[str, str]:
    folder = resolve_adapter(name)
    return _hashes(folder, whole) if folder else {"revision": _revision(name, ADAPTER_FILE)}


def _hashes(path: Path, whole: bool) -> dict[str, str]:
    folder = path if path.is_dir() else None
    weights = _matching(folder, WEIGHTS) if folder else [path]
    texts = _matching(folder, TEXTS) if folder else []
    return {
        "weights": _digest(part for file in weights for part in (_all_of(file) if whole else _weights(file))),
        "texts": _digest(part for file in texts for part in (file.name.encode(), file.read_bytes())),
    }


def _revision(name: str, file: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found).parent.name if isinstance(found, str) else "unknown"


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _weights(file: Path) -> Iterable[bytes]:
    state = file.stat()
    yield f"{file.name} {state.st_size} {state.st_mtime_ns}".encode()
    with file.open("rb") as opened:
        length = HEAD_BYTES
        if file.suffix == ".safetensors" and state.st_size >= _LENGTH.size:
            length = min(_LENGTH.unpack(opened.read(_LENGTH.size))[0], 64 * HEAD_BYTES)
        yield opened.read(length)


def _all_of(file: Path) -> Iterable[bytes]:
    yield file.name.encode()
    with file.open("rb") as opened:
        yield hashlib.file_digest(opened, "blake2b").digest()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
