"""PEFT adapters: loaded into a model, found in one, and taken out of it for an engine that serves them by request.

The package peft is imported only where there is an adapter.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samplerpool.config.adapters import AdapterPlan
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.model.failures import failure_line
from samplerpool.model.hub import adapter_folder
from samplerpool.model.source import resolve_adapter

_SINGLE = "merged"
"""What an adapter is called while it is merged."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds to a layer's output: ``up @ down @ input``.

    Args:
        down: shape [rank, inputs].
        up: shape [outputs, rank], the adapter's scaling in it.
    """

    down: Tensor
    up: Tensor


def load_adapters(model: Any, plan: AdapterPlan) -> Any:
    """Merge adapters into a model, or attach them to it.

    Args:
        model: in its place on the device. It is changed.

    Returns:
        The model with its adapters merged; or a ``PeftModel`` around it with all attached, of which the plan's active
        one is switched on, or none.

    Raises:
        ModelNotFound: there is no such adapter.
        StartFailed: the package peft is missing, or an adapter does not fit the model.
    """
    if not plan.paths:
        return model
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise StartFailed("Adapters need the package peft; run: pip install 'samplerpool[peft]'") from error
    for path in plan.merged:
        model = _merged(model, path)
    wrapped = model
    for name, path in plan.attached.items():
        with _one_sentence(path):
            wrapped = _with_adapter(wrapped, name, path)
    if plan.attached:
        attached = AttachedAdapters(wrapped)
        if attached.obstacle is None:
            attached.switch_to(plan.active or BASE_ADAPTER)
        elif plan.active is None:
            raise StartFailed(
                f"The adapters cannot be chosen by request: {attached.obstacle}. Merge the adapter instead "
                "(a path without a name)."
            )
        wrapped.eval().requires_grad_(False)
    return wrapped


def _merged(model: Any, path: str) -> Any:
    with _one_sentence(path):
        merged: Any = _with_adapter(model, _SINGLE, path).merge_and_unload(safe_merge=True)
        merged.__dict__.pop("peft_config", None)  # PEFT's mark of an adapter that is attached
        return merged.eval().requires_grad_(False)


def folder_of(path: str) -> Path:
    """Where an adapter lies; one of the hub's is downloaded if need be.

    Args:
        path: a folder or a hub id.

    Raises:
        ModelNotFound: there is no such adapter.
    """
    return resolve_adapter(path) or adapter_folder(path)


def _with_adapter(model: Any, name: str, path: str) -> Any:
    from peft import PeftConfig, PeftModel, get_peft_model

    folder = str(folder_of(path))
    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning:
        raise StartFailed(
            f"The adapter {path!r} is of the kind {config.peft_type.value}, which adds tokens to prompts and cannot be "
            "served; use one that changes weights, such as LoRA."
        )
    config.inference_mode = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is raised below
        wrapped = model if isinstance(model, PeftModel) else get_peft_model(model, config, adapter_name=name)
        found = wrapped.load_adapter(folder, name, torch_device=str(wrapped.device))
    missing = [key for key in found.missing_keys if name in key.split(".")]  # among those of the others
    if keys := missing or found.unexpected_keys:
        what = "it lacks" if missing else "the model has no place for"
        raise StartFailed(
            f"The adapter {path!r} was made for another model: {what} {len(keys)} tensors, the first is {keys[0]}."
        )
    return wrapped


@contextmanager
def _one_sentence(path: str) -> Iterator[None]:
    """Whatever loading raises becomes a ``StartFailed`` of one sentence; the cause stays attached."""
    try:
        yield
    except SamplerPoolError:
        raise
    except Exception as error:  # PEFT raises nearly every class there is
        sizes = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        reason = sizes[0].rstrip(".") if sizes else f"{type(error).__name__}: {failure_line(error)}"
        raise StartFailed(f"The adapter {path!r} cannot be loaded into this model: {reason}.", adapter=path) from error


class AttachedAdapters:
    """The PEFT adapters of a model, whoever attached them.

    Args:
        model: a model of transformers, with layers of PEFT or without; or a ``PeftModel`` around one.

    Attributes:
        model: the model of transformers itself.
        names: adapters that can be served by request; none if there is an obstacle.
        active: which of them is switched on, ``base`` for none.
        obstacle: why they cannot be served by request, if so; the model then answers with what is switched on.

    Raises:
        StartFailed: with an adapter that is no part of the model's layers.
    """

    def __init__(self, model: Any) -> None:
        self.model, self._configs = model, dict(getattr(model, "peft_config", None) or {})
        if any(getattr(config, "is_prompt_learning", False) for config in self._configs.values()):
            raise StartFailed("The model has an adapter that adds tokens to prompts, which cannot be served.")
        if hasattr(model, "get_base_model"):
            self.model = model.get_base_model()
        self._layers = _peft_layers(self.model)
        self._taken: list[tuple[str, Any]] = []
        self.obstacle = self._obstacle()
        self.names = () if self.obstacle else tuple(dict.fromkeys(name for _, m in self._layers for name in m.lora_A))
        self.active = self._active()

    def _obstacle(self) -> str | None:
        for path, layer in self._layers:
            if why := _why_not_plain(layer):
                return f"the layer {path} {why}"
        biased = [name for name, config in self._configs.items() if getattr(config, "bias", "none") != "none"]
        if biased:
            return f"the adapter {biased[0]!r} changes biases of the model's own"
        if len({tuple(self._switched_on(layer)) for _, layer in self._layers}) > 1:
            return "its layers have different adapters switched on"
        if self._layers and len(self._switched_on(self._layers[0][1])) > 1:
            return "several adapters are switched on at once"
        return None

    @staticmethod
    def _switched_on(layer: Any) -> list[str]:
        return [] if layer.disable_adapters else list(layer.active_adapters)

    def _active(self) -> str:
        if not self.names:
            return BASE_ADAPTER
        return next(iter(self._switched_on(self._layers[0][1])), BASE_ADAPTER)

    def switch_to(self, name: str) -> None:
        """Switch this adapter on and all others off; ``base`` for none."""
        for _, layer in self._layers:
            layer.enable_adapters(name != BASE_ADAPTER)
            if name != BASE_ADAPTER:
                layer.set_adapter(name, inference_mode=True)

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """The model answers with this adapter, or with none, in the block; if there is an obstacle, as it would."""
        if not self.names:
            yield
            return
        trainable = [
            parameter for _, layer in self._layers for parameter in layer.parameters() if parameter.requires_grad
        ]
        self.switch_to(name)
        try:
            yield
        finally:
            self.switch_to(self.active)
            for parameter in trainable:
                parameter.requires_grad_()

    @torch.no_grad()
    def take_out(self) -> Mapping[str, Mapping[str, LowRank]]:
        """Leave the model as it is without adapters, until ``put_back``.

        Returns:
            What they add: a layer's path to adapter names and weights.
        """
        if not self.names:
            return {}
        weights = {path: {name: _low_rank(layer, name) for name in layer.lora_A} for path, layer in self._layers}
        for path, layer in self._layers:
            base = layer.base_layer
            del layer.base_layer  # else an engine that gives the layer another form could not free its weight
            _replace(self.model, path, base)
            self._taken.append((path, layer))
        return weights

    def put_back(self) -> None:
        """Undo ``take_out``. Idempotent."""
        while self._taken:
            path, layer = self._taken.pop()
            layer.base_layer = self.model.get_submodule(path)
            _replace(self.model, path, layer)


def _peft_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The outermost layers of PEFT, by their paths."""
    if "peft" not in sys.modules:  # then nobody has put any in
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: list[tuple[str, Any]] = []
    for path, module in model.named_modules():
        within = any(path.startswith(f"{outer}.") for outer, _ in found[-1:])
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not within:
            found.append((path, module))
    return found


def _why_not_plain(layer: Any) -> str | None:
    """Why a layer's adapters are more than a low-rank product beside a linear layer."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from transformers.pytorch_utils import Conv1D

    if not isinstance(layer, LoraLayer):
        return f"has an adapter that is no LoRA ({type(layer).__name__})"
    if layer.merged:
        return "has its adapter merged and attached at the same time; call merge_and_unload or unmerge_adapter"
    base = layer.base_layer
    if isinstance(layer, ParamWrapper):
        return "has an adapter of single parameters"
    if not isinstance(base, nn.Linear | Conv1D) and not type(base).__name__.endswith("Linear"):
        return f"is no linear layer, but {type(base).__name__}"
    if layer.lora_variant or not all(
        type(side) is nn.Linear for side in (*layer.lora_A.values(), *layer.lora_B.values())
    ):
        return "has a variant of LoRA, such as DoRA"
    if any(side.bias is not None for side in layer.lora_B.values()):
        return "has a bias in its LoRA"
    return None


def _low_rank(layer: Any, name: str) -> LowRank:
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LowRank(down.detach(), up.detach() * layer.scaling[name])


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
