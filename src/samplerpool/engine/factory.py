"""Which engine a worker runs. Light to import: an engine's module is imported when it is built.

``auto`` takes the best one that computes what the model computes: the sequential one for a model that takes images,
videos or sounds, as only that hands them on; on CUDA the paged engine; else, or where that cannot
run the model, the dense one; the padded one, which ``dense`` means too, for models with an attention of their own; for
models that cannot be batched the sequential one, with a warning. Flags say which engine is tried, and a probe whether
its answers are right (``engine/probe.py``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samplerpool.config.arguments import ENGINES, EngineConfig
from samplerpool.config.sampling import BASE_ADAPTER
from samplerpool.engine.base import Engine, EngineRequest, EngineStats, PromptRenderer, RequestId, StepOutput
from samplerpool.errors import InvalidParameter, StartFailed

if TYPE_CHECKING:
    from samplerpool.engine.probe import Method
    from samplerpool.engine.ranks import Group
    from samplerpool.model.model_engine import ModelEngine

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


class Picked:
    """An engine, and why it was picked: ``stats().details["picked"]``, which ``status`` shows.

    Args:
        engine: does all the work.
        reason: a short sentence for people.
        on_close: called when the engine is closed.
    """

    def __init__(self, engine: Engine, reason: str, on_close: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.reason = reason
        self._on_close = on_close
        self.name = engine.name
        self.max_model_len = engine.max_model_len
        self.max_batch = engine.max_batch
        self.vocab_size = engine.vocab_size
        self.supported = engine.supported
        self.takes_media = engine.takes_media
        self.adapters, self.adapter = engine.adapters, engine.adapter

    def check(self, request: EngineRequest) -> None:
        """As the engine does."""
        self.engine.check(request)

    def add(self, request: EngineRequest) -> None:
        """As the engine does."""
        self.engine.add(request)

    def step(self) -> list[StepOutput]:
        """As the engine does."""
        return self.engine.step()

    def abort(self, request_id: RequestId) -> None:
        """As the engine does."""
        self.engine.abort(request_id)

    @property
    def steps(self) -> int:
        """The engine's."""
        return self.engine.steps

    def has_work(self) -> bool:
        """As the engine does."""
        return self.engine.has_work()

    def stats(self) -> EngineStats:
        """The engine's figures, and the reason."""
        stats = self.engine.stats()
        return replace(stats, details={"picked": self.reason, **stats.details})

    def close(self) -> None:
        """As the engine does."""
        self.engine.close()
        self._on_close()


def build_engine(
    config: EngineConfig,
    model: Any = None,
    renderer: PromptRenderer | None = None,
    on_progress: Progress | None = None,
    group: Group | None = None,
    checkpoint: ModelEngine | None = None,
) -> Engine:
    """The engine that ``config`` asks for, ready to take requests.

    Args:
        config: ``engine`` is a name, or ``auto`` for the best one for the model.
        model: a causal language model of transformers on its device, also one with adapters of PEFT (each request
            then chooses its own), and
        renderer: whose codec knows its end-of-sequence tokens; the scripted engine needs neither.
        on_progress: gets warnings for whoever starts the worker, a line each; they are logged as well.
        group: of processes among which the model is divided, whose rank 0 this is; then it is the dense engine's.
        checkpoint: what the vLLM engine, which loads the model itself, takes in their place.

    Raises:
        InvalidParameter: no such engine, an option it does not have, or a length that the model cannot take.
        StartFailed: the engine cannot run this model, or its cache does not fit into memory.
    """
    if config.engine not in ENGINES:
        raise InvalidParameter(f"There is no engine {config.engine!r}; choose one of {', '.join(ENGINES)}.")
    if config.engine == "scripted":
        from samplerpool.engine.scripted import ScriptedEngine

        return ScriptedEngine(config)
    if config.engine == "vllm":
        if checkpoint is None:
            raise InvalidParameter(
                "vLLM cannot take a model that is loaded already; name the model instead, as in "
                'SyncSampler.launch(model="...", engine="vllm").'
            )
        from samplerpool.engine.openmp import release_threads
        from samplerpool.engine.vllm_engine import VllmEngine

        engine: Engine = VllmEngine(checkpoint, config)
        release_threads()
        return engine
    if model is None or renderer is None:
        raise InvalidParameter(f"The engine {config.engine!r} needs a model; only the scripted one runs without.")
    with contextlib.ExitStack() as on_failure:
        choice = _Choice(config, model, renderer, on_progress or (lambda _: None), group)
        on_failure.callback(choice.attached.put_back)
        if group is not None:
            engine = choice.divided(group.size)
        else:
            engine = choice.automatic() if config.engine == "auto" else choice.asked_for(config.engine)
        on_failure.pop_all()
    from samplerpool.engine.openmp import release_threads

    release_threads()  # the engine steps on another thread
    return engine


class _Choice:
    """One model, and the engines that may run it."""

    def __init__(
        self,
        config: EngineConfig,
        model: Any,
        renderer: PromptRenderer,
        progress: Progress,
        group: Group | None = None,
    ) -> None:
        from samplerpool.engine.adapters import Adapters
        from samplerpool.engine.probe import plain_answers
        from samplerpool.model.adapters import AttachedAdapters

        self._config = config
        self._group = group
        self.attached = attached = AttachedAdapters(model)
        self._model = model = attached.model
        self._eos_token_ids = renderer.codec.eos_token_ids
        self._media_kinds = renderer.media_kinds
        self._progress = progress
        self._length = model_length(config, model.config)
        self._attention = getattr(model.config, "_attn_implementation", None)
        if self._attention == "samplerpool":
            raise StartFailed("The model is in use by another sampler; close that one first, or load the model again.")
        self._expected = []
        if group is not None:
            group.tell("plain answers")
        for name in (BASE_ADAPTER, *attached.names) if attached.names else (attached.active,):
            with attached.using(name):
                self._expected += plain_answers(model, name)
        self._adapters = Adapters(attached.names, attached.take_out(), attached.active)
        if attached.obstacle:
            self._warn(f"requests cannot choose among the model's adapters, because {attached.obstacle}")

    def asked_for(self, name: str) -> Engine:
        """The engine of this name, or the reason why it cannot be."""
        if name == "sequential":
            return self._sequential("it was asked for")
        if name == "dense":
            return self._dense(self._length, "it was asked for")
        return self._try("paged", self._length, "it was asked for")

    def divided(self, ranks: int) -> Engine:
        """The one engine that runs a model in several processes."""
        return self._try("dense", self._length, f"its layers are divided among {ranks} processes (tensor parallelism)")

    def automatic(self) -> Engine:
        """The best engine that computes what the model computes."""
        from samplerpool.engine.probe import choose_method

        if self._media_kinds:
            return self._sequential(f"the model takes {', '.join(sorted(self._media_kinds))} blocks")
        method = choose_method(self._model, self._length)
        length = self._length
        if method.name == "sequential" and method.longest is not None and self._config.max_model_len is None:
            length = method.longest
            self._warn(
                f"requests are limited to {length:,} tokens, where {method.reason}; with --max-model-len "
                f"{self._length} longer ones are taken, but all are computed one after the other"
            )
            method = choose_method(self._model, length)
        if method.name == "sequential":
            return self._sequential(method.reason)
        failures = ""
        for name in self._candidates(method):
            try:
                return self._try(name, length, f"{method.reason}{failures}")
            except StartFailed as error:
                if "reason" not in error.data:  # no memory for its cache, say: another engine would not have it either
                    raise
                failures += f"; the {name} engine cannot run it: {error.data['reason']}"
        return self._sequential(failures.removeprefix("; "))

    def _candidates(self, method: Method) -> Iterator[str]:
        """Engines that compute many rows at a time, the best one first."""
        from samplerpool.engine.probe import padding_obstacles

        if method.name == "packed":
            with_pages = self._model.device.type == "cuda" and not self._adapters.names
            yield from ("paged", "dense") if with_pages else ("dense",)
        if not any(padding_obstacles(self._model)):
            yield "padded"

    def _dense(self, length: int, reason: str) -> Engine:
        from samplerpool.engine.probe import choose_method

        method = choose_method(self._model, length)
        if method.name == "sequential":
            raise StartFailed(
                f"The dense engine cannot run a {type(self._model).__name__}: {method.reason}. "
                "Use --engine sequential, or auto.",
                reason=method.reason,
            )
        if method.name == "padded":
            return self._try("padded", length, f"{reason} as dense, and {method.reason}")
        return self._try("dense", length, reason)

    def _try(self, name: str, length: int, reason: str) -> Engine:
        """Build an engine and probe it; the model is as before if that fails.

        Raises:
            StartFailed: with ``reason`` if the engine cannot run this model.
        """
        from samplerpool.engine.probe import probe

        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._restore_attention)
            engine = self._built(name, length)
            on_failure.callback(engine.close)
            probe(engine, self._expected, compare=name != "sequential")
            if self._config.max_model_len is not None and engine.max_model_len < length:
                raise StartFailed(
                    f"The key-value cache holds {engine.max_model_len:,} tokens, fewer than max_model_len={length:,}; "
                    "ask for less, or give the cache more room with --engine-option cache_gib=N."
                )
            on_failure.pop_all()
        log.info("picked the %s engine: %s", name, reason)
        return Picked(engine, reason, self.attached.put_back)

    def _built(self, name: str, length: int) -> Engine:
        arguments: dict[str, Any] = {"eos_token_ids": self._eos_token_ids, "max_model_len": length}
        if name == "paged":
            return self._paged(arguments)
        arguments["adapters"] = self._adapters
        if name == "dense":
            from samplerpool.engine.dense import DenseEngine

            if self._group is not None:
                arguments["group"] = self._group
            return DenseEngine(self._model, self._config, **arguments)
        if name == "padded":
            from samplerpool.engine.padded import PaddedEngine

            return PaddedEngine(self._model, self._config, **arguments)
        from samplerpool.engine.sequential import SequentialEngine

        return SequentialEngine(self._model, self._config, **arguments)

    def _paged(self, arguments: dict[str, Any]) -> Engine:
        from samplerpool.engine.paged import PagedEngine

        if self._adapters.names:
            why = "all requests of its batch have the same weights, and these adapters are chosen by request"
            raise StartFailed(
                f"The paged engine cannot serve adapters: {why}. Merge the adapter, or use --engine dense.", reason=why
            )
        return PagedEngine(self._model, self._config, **arguments)

    def _sequential(self, reason: str) -> Engine:
        if self._config.engine == "auto":
            self._warn(f"requests are computed one after the other, which is slow, because {reason}")
            if self._config.options:
                self._warn(f"the sequential engine has no options; ignored: {', '.join(sorted(self._config.options))}")
                self._config = replace(self._config, options={})
        return self._try("sequential", self._length, reason)

    def _restore_attention(self) -> None:
        if getattr(self._model.config, "_attn_implementation", None) != self._attention:
            self._model.set_attn_implementation(self._attention)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._progress(f"warning: {text}")


def model_length(config: EngineConfig, model_config: Any) -> int:
    """Longest prompt plus completion, in tokens: what was asked for, or else all that the model can take.

    Raises:
        InvalidParameter: more was asked for than the model can take.
    """
    from samplerpool.engine.probe import dynamic_rope_factor
    from samplerpool.model.model_engine import max_model_len

    if config.max_model_len is None:
        return max_model_len(model_config, tokenizer=None)
    text_config = model_config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if limit is not None:
        limit = int(limit * dynamic_rope_factor(text_config))
    if limit is not None and config.max_model_len > limit:
        raise InvalidParameter(
            f"max_model_len={config.max_model_len:,} is more than the model's {limit:,} positions; "
            "ask for less, or leave it out."
        )
    return config.max_model_len
