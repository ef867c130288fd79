"""From a configuration to a ready sampler: load the model, build the engine around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.samplers.base_sampler import BaseSampler


def build_sampler(config: WorkerConfig, on_progress: Callable[[str], None]) -> tuple[BaseSampler, str]:
    """Load what the configuration names. Takes seconds to minutes.

    Args:
        on_progress: gets a few words at the beginning of each part.

    Returns:
        The sampler, and the model's name for display.

    Raises:
        ModelNotFound, StartFailed, InvalidParameter
    """
    if config.engine.engine == "scripted":
        on_progress("starting the scripted engine")
        return _scripted_sampler(config), "scripted"
    from samplerpool.engine.factory import build_engine
    from samplerpool.model.model_engine import ModelEngine

    model_engine = ModelEngine(config.model_args, device=config.engine.device, on_progress=on_progress)
    on_progress("starting the engine")
    engine = build_engine(config.engine, model_engine.model, model_engine.renderer, on_progress)
    sampler = BaseSampler(
        config.sample_args,
        config.model_args,
        model_engine.model,
        model_engine.renderer,
        engine=engine,
        generation_defaults=model_engine.generation_defaults,
    )
    return sampler, model_engine.name


def _scripted_sampler(config: WorkerConfig) -> BaseSampler:
    from samplerpool.engine.scripted import ScriptedEngine, ScriptedRenderer

    engine: Any = ScriptedEngine(config.engine)
    return BaseSampler(config.sample_args, config.model_args, None, ScriptedRenderer(), engine=engine)
