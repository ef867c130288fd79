"""A model in memory with everything that belongs to it: tokenizer, renderer, limits and defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.arguments import ModelArguments
from samplerpool.config.sampling import PARAMS, SamplingParams, sampling_params
from samplerpool.errors import InvalidParameter, SamplerPoolError, StartFailed
from samplerpool.model.failures import failure_line
from samplerpool.model.hub import hub_is_reachable
from samplerpool.model.processors import load_processor, model_class
from samplerpool.model.quantization import quantization_config
from samplerpool.model.source import ModelSource, resolve_source
from samplerpool.rendering.renderer import Renderer

if TYPE_CHECKING:
    import torch

LENGTH_NAMES: tuple[str, ...] = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
"""How configurations call the longest sequence."""

UNSAID_MAX_MODEL_LEN = 4096
"""For models whose positions have no limit and whose tokenizer names none."""

CHECKPOINT_PARAMETERS: frozenset[str] = frozenset(PARAMS) & {
    "do_sample",
    "max_new_tokens",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
"""Sampling parameters that a ``generation_config`` may set under the same names."""


Place = Callable[[Any, Any, Any], dict[str, Any]]
"""From a model's configuration, class and processor to arguments of ``from_pretrained``."""


def divided(ranks: int) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for one of the processes that divide a model's layers by transformers' plan."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=ranks)}


@dataclass(frozen=True)
class _Location:
    """What transformers loads from: a folder, or a hub id (from the local cache alone if the hub is out of reach)."""

    path: str
    local_files_only: bool


class ModelEngine:
    """Loads a model for inference.

    Args:
        model_args: which model, and how.
        device: torch device string.
        on_progress: called with a short line when something slow begins.
        place: for a model on several devices: called with its configuration, its class and its processor before it is
            loaded; returns further arguments of ``from_pretrained``, which then decide where the weights go.
        weights: False for an engine that loads the model itself: then ``model`` is None, and adapters and quantization
            are left to that engine as well.

    Attributes:
        model: in evaluation mode, without gradients, on ``device``; with adapters that are not merged, a ``PeftModel``
            around it.
        model_args: as given.
        path: a folder, or a hub id, that transformers and others load the model from.
        model_config: its configuration.
        processor: the tokenizer, or of a model that takes images, videos or sounds the processor.
        renderer: with the model's chat template.
        generation_defaults: what the checkpoint's ``generation_config`` says, and nothing more.
        max_model_len: longest prompt plus completion that the model takes, in tokens.
        name: short name to show.

    Raises:
        ModelNotFound: there is no such model or adapter, or it may not be read.
        InvalidParameter: an unknown dtype, a chat template that does not work, or a ``peft_config`` or
            ``quant_config`` that cannot be.
        StartFailed: it is there, but cannot be loaded.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        device: str = "cpu",
        on_progress: Callable[[str], None] | None = None,
        place: Place | None = None,
        *,
        weights: bool = True,
    ) -> None:
        progress = on_progress or _ignore
        _check_plugins(model_args)
        source = resolve_source(model_args.model_name_or_path)
        dtype = torch_dtype(model_args.dtype, device)
        adapters = adapter_plan(model_args.peft_config)
        quantization = quantization_config(model_args.quant_config)
        location = _locate(source, dtype, progress)
        progress(f"loading {source.name}")
        with _quiet_transformers():
            with _one_sentence("The model", source):
                config = _load_config(location, model_args)
            with _one_sentence("The tokenizer or processor of the model", source):
                self.processor = load_processor(
                    config,
                    location.path,
                    progress,
                    local_files_only=location.local_files_only,
                    trust_remote_code=model_args.trust_remote_code,
                )
            self.model: Any = None
            with _one_sentence("The model", source):
                if weights:
                    auto_class = model_class(self.processor)
                    placed = place(config, auto_class, self.processor) if place is not None else None
                    self.model = _load_model(
                        auto_class, location, model_args, config, dtype, device, quantization, placed
                    )
                    config, generation_config = self.model.config, self.model.generation_config
                else:
                    generation_config = _load_generation_config(location, config)
            if weights and adapters.paths:
                from samplerpool.model.adapters import load_adapters

                progress(f"loading {', '.join(adapters.attached) or 'adapters'}")
                self.model = load_adapters(self.model, adapters)
        self.model_args = model_args
        self.path = location.path
        self.name = source.name
        self.device = device
        self.model_config = config
        self.generation_defaults = generation_defaults(generation_config)
        self.max_model_len = max_model_len(self.model_config, getattr(self.processor, "tokenizer", self.processor))
        self.renderer = Renderer(
            self.processor,
            template=model_args.template,
            custom_chat_template=model_args.custom_chat_template,
            eos_token_ids=eos_token_ids(generation_config, config),
        )


INIT_NAMES = ("init_on_default", "init_on_meta", "init_on_rank0")
"""Ways to make a model before its weights are read. ``from_pretrained`` makes it without memory for the weights and
reads those onto the device, which is the end of all three where one process has one model."""
KERNEL_NAMES = ("auto",)
"""The engine chooses, as it does anyway."""


def _check_plugins(model_args: ModelArguments) -> None:
    """Refuse what is asked of a plugin and would not be done."""
    known = {"init_config": INIT_NAMES, "kernel_config": KERNEL_NAMES}
    problems = []
    for argument, names in known.items():
        config = getattr(model_args, argument)
        if config is not None and config["name"] not in names:
            problems.append(f"{argument} has no {config['name']!r}; there is {', '.join(names)}.")
        elif config is not None and (rest := sorted(set(config) - {"name"})):
            problems.append(f"{argument} {config['name']!r} takes nothing else; leave {', '.join(rest)} out.")
    if problems:
        raise InvalidParameter(" ".join(problems))


def torch_dtype(name: str, device: str) -> torch.dtype:
    """The dtype to load with; ``auto`` means float32 on CPU and bfloat16 elsewhere.

    Raises:
        InvalidParameter: no floating point type of this name.
    """
    import torch

    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidParameter(f"There is no dtype {name!r}; use auto, float32, bfloat16 or float16.", dtype=name)
    return dtype


def generation_defaults(generation_config: Any) -> SamplingParams:
    """What a checkpoint's ``generation_config`` says about sampling. Values that we cannot take are left out."""
    said = generation_config.to_diff_dict() if generation_config is not None else {}
    taken: dict[str, Any] = {}
    for name in CHECKPOINT_PARAMETERS & set(said):
        try:
            sampling_params({name: said[name]})
        except InvalidParameter:
            continue
        taken[name] = said[name]
    return sampling_params(taken)


def eos_token_ids(*configs: Any) -> frozenset[int]:
    """The ids that end an answer, of all configurations that name some."""
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def max_model_len(config: Any, tokenizer: Any) -> int:
    """Longest sequence that the model was made for, in tokens."""
    text_config = config.get_text_config()
    lengths = [getattr(text_config, name, None) for name in LENGTH_NAMES]
    stated = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if stated is not None:
        return stated
    # Tokenizers without a limit say 1e30.
    limit = int(getattr(tokenizer, "model_max_length", 0) or 0)
    return limit if 0 < limit < 10**9 else UNSAID_MAX_MODEL_LEN


def _locate(source: ModelSource, dtype: torch.dtype, progress: Callable[[str], None]) -> _Location:
    if source.kind == "gguf":
        from samplerpool.model.gguf import converted_gguf

        return _Location(str(converted_gguf(Path(source.location), dtype, progress)), local_files_only=True)
    if source.kind == "directory":
        return _Location(source.location, local_files_only=True)
    progress(f"asking the hub for {source.location}")
    return _Location(source.location, local_files_only=not hub_is_reachable(source.location))


def _load_config(location: _Location, model_args: ModelArguments) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        location.path,
        local_files_only=location.local_files_only,
        trust_remote_code=model_args.trust_remote_code,
    )


def _load_generation_config(location: _Location, config: Any) -> Any:
    """As a model has it that was loaded from there."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(location.path, local_files_only=location.local_files_only)
    except OSError:  # there is none
        return GenerationConfig.from_model_config(config)


def _load_model(
    auto_class: Any,
    location: _Location,
    model_args: ModelArguments,
    config: Any,
    dtype: torch.dtype,
    device: str,
    quantization: Any,
    placed: dict[str, Any] | None,
) -> Any:
    import torch

    # Quantized weights cannot always be moved, and are made where they are to be.
    quantized = quantization is not None or getattr(config, "quantization_config", None) is not None
    in_place = dict(placed or {})
    if placed is None and quantized and torch.device(device).type != "cpu":
        in_place = {"device_map": {"": device}}
    if quantization is not None:
        in_place["quantization_config"] = quantization
    model = auto_class.from_pretrained(
        location.path,
        config=config,
        local_files_only=location.local_files_only,
        trust_remote_code=model_args.trust_remote_code,
        dtype=dtype,
        attn_implementation=model_args.flash_attn,
        **in_place,
    )
    model = model.eval().requires_grad_(False)
    return model if quantized or placed is not None else model.to(device)


@contextmanager
def _one_sentence(what: str, source: ModelSource) -> Iterator[None]:
    """Whatever loading raises becomes a ``StartFailed`` of one sentence; the cause stays attached."""
    try:
        yield
    except SamplerPoolError:
        raise
    except Exception as error:  # transformers raises nearly every class there is
        raise StartFailed(
            f"{what} {source.location!r} cannot be loaded: {_reason(error)}.", model=source.name
        ) from error


def _reason(error: Exception) -> str:
    import torch

    line = failure_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"it does not fit into the device's memory ({line})"
    if "instantiate the backend tokenizer" in line:
        return "it has no tokenizer.json, or one that transformers does not know"
    if "trust_remote_code" in str(error):
        return "it brings its own code; pass trust_remote_code if you trust it"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, OSError | ValueError):
        return line
    if isinstance(error, ImportError):
        return line
    return f"{type(error).__name__}: {line} (a damaged file?)"


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and pages of advice while loading; the settings of the process come back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _ignore(_: str) -> None:
    pass
