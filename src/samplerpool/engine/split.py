"""How a model that gets several devices is laid over them: each layer divided among processes, or layer by layer."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import torch
import transformers
from packaging.version import Version

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.engine.factory import model_length
from samplerpool.engine.probe import choose_method
from samplerpool.errors import InvalidParameter, StartFailed

SplitMode = Literal["tensor", "layer"]

DIVIDES_RIGHTLY = Version("5.23")
"""Of transformers: 5.20 divides Gemma 2 so that it answers something else, without a word."""

COMPARED: frozenset[str] = frozenset(
    (
        *("cohere2", "deepseek_v2", "deepseek_v3", "gemma2", "gemma3_text", "glm4", "gpt_neox", "granite"),
        *("llama", "llama4_text", "mistral", "mixtral", "olmo2", "olmo3", "phi", "phi3"),
        *("qwen2", "qwen3", "qwen3_moe", "smollm3"),
    )
)
"""Kinds of models whose answers in two processes our tests compare with those in one."""


def choose_split(
    wanted: str, devices: int, skeleton: Any, model_args: ModelArguments, engine: EngineConfig, *, takes_media: bool
) -> SplitMode:
    """How this model is laid over so many devices.

    Args:
        wanted: ``tensor``, ``layer`` or ``auto``, which takes the first of them that can be.
        skeleton: the model without its weights (``skeleton_of``).
        takes_media: whether its prompts may have images, videos and sounds.

    Raises:
        StartFailed: what is wanted cannot be, or nothing can; it says why.
        InvalidParameter: the model is to have adapters.
    """
    if model_args.peft_config is not None:
        raise InvalidParameter(
            f"A model on {devices} devices takes no adapters: merge the adapter into the checkpoint first (PEFT's "
            "merge_and_unload), or use one device for each worker."
        )
    if wanted == "layer":
        obstacle = next(layer_obstacles(engine), None)
        if obstacle is None:
            return "layer"
        raise StartFailed(f"The model's layers cannot be spread over {devices} devices: {obstacle}.")
    against_tensor = next(tensor_obstacles(devices, skeleton, model_args, engine, takes_media=takes_media), None)
    if against_tensor is None:
        return "tensor"
    what = f"A {type(skeleton).__name__} cannot be divided among {devices} processes, because {against_tensor}"
    if wanted == "tensor":
        raise StartFailed(f"{what}. Try --split-mode layer, or another --devices-per-worker.")
    against_layer = next(layer_obstacles(engine), None)
    if against_layer is None:
        return "layer"
    raise StartFailed(f"{what}; and its layers cannot be spread over the devices: {against_layer}.")


def skeleton_of(auto_class: Any, config: Any, *, trust_remote_code: bool) -> Any:
    """A model of this configuration without any weights: costs no memory, and hardly any time."""
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=trust_remote_code)


def tensor_obstacles(
    devices: int, skeleton: Any, model_args: ModelArguments, engine: EngineConfig, *, takes_media: bool
) -> Iterator[str]:
    """What keeps a model's layers from being divided; goes on behind "because"."""
    if Version(transformers.__version__) < DIVIDES_RIGHTLY:
        yield f"transformers {transformers.__version__} divides some models wrongly; {DIVIDES_RIGHTLY} is needed"
    config = skeleton.config.get_text_config()
    plan: dict[str, str] = config.base_model_tp_plan or {}
    if not plan:
        yield "transformers has no plan for that (base_model_tp_plan)"
    heads = getattr(config, "num_attention_heads", None) or 0
    if heads % devices:
        yield f"its {heads} attention heads cannot be shared equally"
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if kv_heads % devices and any(style == "colwise" and name.endswith("k_proj") for name, style in plan.items()):
        yield f"its {kv_heads} heads of keys and values cannot be shared equally"
    norms = [weight for name, weight in skeleton.named_parameters() if name.endswith("q_norm.weight")]
    if any(weight.ndim > 1 for weight in norms):  # Cohere's Command R+
        yield "the norms of its queries and keys have weights for each head, which transformers' plan does not divide"
    if model_args.quant_config is not None or getattr(skeleton.config, "quantization_config", None) is not None:
        yield "its weights are quantized"
    if engine.engine not in ("auto", "dense"):
        yield f"the {engine.engine} engine cannot: it works in one process"
    if takes_media:
        yield "it takes images, videos or sounds, which the dense engine does not"
    elif (method := choose_method(skeleton, model_length(engine, skeleton.config))).name != "packed":
        shorter = f" (with --max-model-len {method.longest} it can)" if method.longest is not None else ""
        yield f"the dense engine cannot run it: {method.reason}{shorter}"


def doubt(skeleton: Any) -> str | None:
    """A warning for models that nobody has compared: the engine's probe cannot, as all that it has is divided."""
    kind = skeleton.config.get_text_config().model_type
    if kind in COMPARED:
        return None
    return (
        f"how transformers divides a model of the type {kind} has not been compared with the whole model; compare "
        "some answers with those of --split-mode layer"
    )


def layer_obstacles(engine: EngineConfig) -> Iterator[str]:
    """What keeps a model's layers from being spread over devices in one process."""
    if torch.device(engine.device).type == "cpu":
        yield "that takes GPUs, each of which gets some of them"
    if engine.engine == "paged":
        yield "the paged engine keeps keys and values on one device; use --engine dense"
    if importlib.util.find_spec("accelerate") is None:
        yield "the package accelerate is not installed (pip install 'samplerpool[accelerate]')"


def check_spread(model: Any, devices: int) -> None:
    """Refuse a model of which a part was left in the host's memory, from where each step would fetch it.

    Args:
        model: loaded with ``device_map="auto"``.

    Raises:
        StartFailed
    """
    sizes: Counter[str] = Counter()
    for weight in model.parameters():  # those that hooks fetch from the host or the disk are on "meta"
        sizes[weight.device.type] += weight.numel()
    left = sizes["cpu"] + sizes["meta"]
    if left:
        raise StartFailed(
            f"The model does not fit on its {devices} devices: {left / sizes.total():.0%} of its weights would be left "
            "in the host's memory. Give it more --devices-per-worker."
        )
