"""GGUF files as Hugging Face checkpoints: dequantized once, kept under the cache folder.

The formats are described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; transformers knows the tensors'
names and the models' configurations, and the package ``gguf`` dequantizes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from samplerpool.config.folders import cache_folder
from samplerpool.errors import StartFailed
from samplerpool.model.cache import cached_folder, content_key, require_space
from samplerpool.model.failures import failure_line

FORMAT_VERSION = 1
"""Of what a conversion writes; a new one makes new folders."""

DIGIT_SPLITTING = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Pre-tokenizers that cut text at every digit first (llama.cpp, ``llm_tokenizer_bpe``). transformers does not, and so
would cut whitespace before digits differently from what these models were trained on."""


def converted_gguf(file: Path, dtype: torch.dtype, on_progress: Callable[[str], None]) -> Path:
    """The folder with the converted checkpoint of a GGUF file; converts it if nobody did before.

    Args:
        dtype: of the saved weights.

    Raises:
        ModelNotFound: the file cannot be read.
        StartFailed: it cannot be converted, or the result cannot be saved.
    """
    models = cache_folder() / "models"
    dtype_name = str(dtype).removeprefix("torch.")
    target = models / f"{content_key(file, models / 'keys')}-{dtype_name}-v{FORMAT_VERSION}"

    def build(folder: Path) -> None:
        on_progress(f"converting {file.name} (once, takes a while)")
        _convert(file, folder, dtype)

    return cached_folder(target, build, on_progress)


def _convert(file: Path, folder: Path, dtype: torch.dtype) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise StartFailed(
            f"Reading {file.name!r} needs the package gguf; run: pip install 'samplerpool[gguf]'", model=str(file)
        )
    # transformers draws progress bars on standard error, whatever its own settings say.
    with contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = _read(file, dtype)
        _save(model, tokenizer, folder)


def _read(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        return _read_model_and_tokenizer(file, dtype)
    except Exception as error:  # whatever a damaged or unknown file makes the readers raise
        raise StartFailed(
            f"The GGUF file {str(file)!r} cannot be converted: {failure_line(error)}; it may be damaged, or of a kind "
            "that transformers does not read.",
            model=str(file),
        ) from error


def _read_model_and_tokenizer(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Both as if the file had never been a GGUF. (``save_pretrained`` refuses a model that was loaded from one.)"""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(file.parent), gguf_file=file.name)
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    config.__dict__.pop("_model_name_or_path", None)  # a title, but transformers would take it for a path
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # The slow part is reading the vocabulary, which this does once more.
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model, torch_dtype=dtype)
    _fill(model, read["tensors"])
    if read["tokenizer"].get("pre_tokenizer_type") in DIGIT_SPLITTING:
        _split_digits(tokenizer)
    return model, tokenizer


def _fill(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    from transformers import GenerationConfig

    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    ids = {name: getattr(model.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    require_space(folder, sum(parameter.nbytes for parameter in model.parameters()))
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        # It wraps the operating system's error and keeps only the text, "... (os error 28)".
        code = str(error).rpartition("os error ")[2].split(")")[0]
        if code.isdigit():
            raise OSError(int(code), os.strerror(int(code))) from error
        raise
