"""From a configuration to a ready sampler: load the model, build the engine around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.worker.ranks import Broken, Ranks

if TYPE_CHECKING:
    from samplerpool.engine.base import Engine
    from samplerpool.model.model_engine import ModelEngine


@dataclass(frozen=True)
class Built:
    """What a worker serves.

    Args:
        model: its name for display.
        ranks: the other processes that have a part of it.
        facts: further ones for ``status``.
    """

    sampler: BaseSampler
    model: str
    ranks: Ranks | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pids(self) -> list[int]:
        """Of all processes that hold a part of the model, if there are several."""
        return self.ranks.pids if self.ranks is not None else []

    def close(self) -> None:
        """End what runs, and the other processes. Idempotent."""
        self.sampler.close()
        if self.ranks is not None:
            self.ranks.close()


def build_sampler(config: WorkerConfig, on_progress: Callable[[str], None], on_broken: Broken) -> Built:
    """Load what the configuration names. Takes seconds to minutes.

    Args:
        on_progress: gets a few words at the beginning of each part.
        on_broken: see ``Ranks``.

    Raises:
        ModelNotFound, StartFailed, InvalidParameter
    """
    if config.engine.engine == "scripted":
        on_progress("starting the scripted engine")
        return Built(_scripted_sampler(config), "scripted")
    if config.engine.engine == "vllm":
        sampler, name = _vllm_sampler(config, on_progress)
        return Built(sampler, name)
    from samplerpool.engine.factory import build_engine
    from samplerpool.model.model_engine import ModelEngine

    layout = _Layout(config, on_progress, on_broken) if config.devices > 1 else None
    place = layout.place if layout is not None else None
    model_engine = ModelEngine(config.model_args, config.engine.device, on_progress, place)
    ranks, facts = (layout.ranks, layout.facts()) if layout is not None else (None, {})
    if ranks is not None:
        ranks.wait()
    elif layout is not None:
        layout.check(model_engine.model)
    on_progress("starting the engine")
    engine = build_engine(config.engine, model_engine.model, model_engine.renderer, on_progress, ranks)
    return Built(_sampler_of(config, model_engine, engine), model_engine.name, ranks, facts)


def _sampler_of(config: WorkerConfig, model_engine: ModelEngine, engine: Engine) -> BaseSampler:
    return BaseSampler(
        config.sample_args,
        config.model_args,
        model_engine.model,
        model_engine.renderer,
        engine=engine,
        generation_defaults=model_engine.generation_defaults,
    )


class _Layout:
    """How a model is laid over the worker's devices; decided when its configuration is known."""

    def __init__(self, config: WorkerConfig, on_progress: Callable[[str], None], on_broken: Broken) -> None:
        self._config = config
        self._on_progress = on_progress
        self._on_broken = on_broken
        self._mode = ""
        self.ranks: Ranks | None = None

    def place(self, model_config: Any, auto_class: Any, processor: Any) -> dict[str, Any]:
        """A ``model.model_engine.Place``; starts the other processes, if there are to be any."""
        from samplerpool.engine.split import choose_split, doubt, skeleton_of
        from samplerpool.model.model_engine import divided
        from samplerpool.rendering.media import media_kinds

        config, devices = self._config, self._config.devices
        skeleton = skeleton_of(auto_class, model_config, trust_remote_code=config.model_args.trust_remote_code)
        takes_media = bool(media_kinds(processor))
        self._mode = choose_split(
            config.split_mode, devices, skeleton, config.model_args, config.engine, takes_media=takes_media
        )
        if self._mode == "layer":
            self._on_progress(f"spreading the layers over {devices} devices")
            return {"device_map": "auto"}
        if warning := doubt(skeleton):
            self._on_progress(f"warning: {warning}")
        self._on_progress(f"dividing the layers among {devices} processes")
        self.ranks = Ranks(config, self._on_broken)
        self.ranks.join(config.engine.device)
        return divided(devices)

    def check(self, model: Any) -> None:
        """Look whether all of a model whose layers were spread has found room."""
        from samplerpool.engine.split import check_spread

        check_spread(model, self._config.devices)

    def facts(self) -> dict[str, Any]:
        """For ``status``: how the model lies, on how many devices, and in which processes."""
        pids = {"rank_pids": self.ranks.pids} if self.ranks is not None else {}
        return {"split_mode": self._mode, "devices": self._config.devices, **pids}


def _scripted_sampler(config: WorkerConfig) -> BaseSampler:
    from samplerpool.engine.scripted import ScriptedEngine, ScriptedRenderer

    engine: Any = ScriptedEngine(config.engine)
    return BaseSampler(config.sample_args, config.model_args, None, ScriptedRenderer(), engine=engine)


def _vllm_sampler(config: WorkerConfig, on_progress: Callable[[str], None]) -> tuple[BaseSampler, str]:
    from samplerpool.engine.factory import build_engine
    from samplerpool.model.model_engine import ModelEngine

    model_engine = ModelEngine(config.model_args, config.engine.device, on_progress, weights=False)
    on_progress("starting vLLM, which loads the model")
    engine = build_engine(config.engine, renderer=model_engine.renderer, checkpoint=model_engine)
    return _sampler_of(config, model_engine, engine), model_engine.name
