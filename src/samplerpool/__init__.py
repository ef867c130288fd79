"""samplerpool samples from Hugging Face causal language models with a pool of worker processes, one per GPU.

``SyncSampler`` is the way in; ``samplerpool --help`` shows the command line. The names in ``__all__`` are public, and
the errors in ``samplerpool.errors``; what is not named there may change. Importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AnswerTags",
    "AsyncSampler",
    "BaseSampler",
    "Content",
    "DataArguments",
    "DataEngine",
    "Message",
    "ModelArguments",
    "ModelEngine",
    "ModelInput",
    "PoolArguments",
    "Renderer",
    "RenderingPlugin",
    "Sample",
    "SampleArguments",
    "SamplerPoolError",
    "SyncSampler",
    "ToolCall",
    "get_args",
    "register_converter",
    "register_rendering_plugin",
    "run_chat",
]

_HOMES = {
    "AnswerTags": "samplerpool.rendering.parsing",
    "AsyncSampler": "samplerpool.samplers.async_sampler",
    "BaseSampler": "samplerpool.samplers.base_sampler",
    "Content": "samplerpool.types",
    "DataArguments": "samplerpool.config.arguments",
    "DataEngine": "samplerpool.data.data_engine",
    "Message": "samplerpool.types",
    "ModelArguments": "samplerpool.config.arguments",
    "ModelEngine": "samplerpool.model.model_engine",
    "ModelInput": "samplerpool.types",
    "PoolArguments": "samplerpool.config.arguments",
    "Renderer": "samplerpool.rendering.renderer",
    "RenderingPlugin": "samplerpool.rendering.plugins",
    "Sample": "samplerpool.types",
    "SampleArguments": "samplerpool.config.arguments",
    "SamplerPoolError": "samplerpool.errors",
    "SyncSampler": "samplerpool.samplers.sync_sampler",
    "ToolCall": "samplerpool.types",
    "get_args": "samplerpool.config.parser",
    "register_converter": "samplerpool.data.converters",
    "register_rendering_plugin": "samplerpool.rendering.plugins",
    "run_chat": "samplerpool.samplers.cli_sampler",
}

if TYPE_CHECKING:
    from samplerpool.config.arguments import DataArguments, ModelArguments, PoolArguments, SampleArguments
    from samplerpool.config.parser import get_args
    from samplerpool.data.converters import register_converter
    from samplerpool.data.data_engine import DataEngine
    from samplerpool.errors import SamplerPoolError
    from samplerpool.model.model_engine import ModelEngine
    from samplerpool.rendering.parsing import AnswerTags
    from samplerpool.rendering.plugins import RenderingPlugin, register_rendering_plugin
    from samplerpool.rendering.renderer import Renderer
    from samplerpool.samplers.async_sampler import AsyncSampler
    from samplerpool.samplers.base_sampler import BaseSampler
    from samplerpool.samplers.cli_sampler import run_chat
    from samplerpool.samplers.sync_sampler import SyncSampler
    from samplerpool.types import Content, Message, ModelInput, Sample, ToolCall


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
