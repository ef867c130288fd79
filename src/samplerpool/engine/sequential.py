"""The sequential engine: one row at a time through the library's own cache handling, for models that cannot be batched.

It decodes as transformers' ``generate`` does, with the model's own methods for preparing its inputs and carrying its
state on, so it runs whatever ``generate`` runs: state space models, hybrids, models with an attention of their own. A
step is one forward pass of one row. A few rows take turns, so that several streams go on together; interactive rows
go before batch rows, and take the youngest one's place where there is none left.
"""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import PARAMS
from samplerpool.engine.adapters import Adapters
from samplerpool.engine.base import (
    INTERACTIVE,
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.engine.row_sampler import RowSampler, Sampled, SamplingRow
from samplerpool.errors import InvalidParameter
from samplerpool.types import FinishReason

PLACES = 4
"""Rows that take turns, at most: more would not be faster, and each holds a cache."""


class RotaryState:
    """What a model notes in its modules about the sequence that it computes: kept for each row.

    Frequencies that a rotary embedding changes as sequences grow (dynamic, longrope), and how far the places of an
    image shift the positions of the text behind it. A row would else be computed with what belongs to another one.
    """

    def __init__(self, model: Any) -> None:
        self._modules = [
            module
            for module in model.modules()
            if hasattr(module, "rope_deltas") or _changes(getattr(module, "rope_type", None))
        ]
        self._fresh = self.read()

    def read(self) -> list[dict[str, Any]]:
        """The present state, for ``write``."""
        return [
            {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in {**vars(module), **dict(module.named_buffers(recurse=False))}.items()
                if name.endswith(("inv_freq", "max_seq_len_cached", "attention_scaling", "rope_deltas"))
            }
            for module in self._modules
        ]

    def write(self, state: list[dict[str, Any]] | None) -> None:
        """Put a row's state in, or for ``None`` that of a new row."""
        for module, values in zip(self._modules, self._fresh if state is None else state, strict=True):
            for name, value in values.items():
                setattr(module, name, value.clone() if isinstance(value, Tensor) else value)


def _changes(rope_type: Any) -> bool:
    kinds = rope_type.values() if isinstance(rope_type, dict) else (rope_type,)
    return any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds)


class Decoding:
    """One sequence on its way through a model, a forward pass a token. To be used in inference mode.

    Args:
        model: a causal language model of transformers.
        token_ids: of the prompt, and of what was generated already.
        max_length: longest that the sequence will become.
        media: what the model gets of the prompt's images, videos and sounds, by the names of its arguments.
    """

    def __init__(
        self, model: Any, token_ids: list[int], max_length: int, media: Mapping[str, Any] | None = None
    ) -> None:
        from transformers.generation.configuration_utils import GenerationMode

        self._model = model
        self._token_ids = torch.tensor([token_ids], device=model.device)
        self._started = False
        self._kwargs: dict[str, Any] = {"use_cache": True, **_on_device(media or {}, model, len(token_ids))}
        accepted = forward_arguments(model)
        if "position_ids" in accepted:  # of several dimensions where a model gives places in images their own
            self._kwargs["position_ids"] = model._prepare_position_ids_for_generation(self._token_ids, self._kwargs)
        if "logits_to_keep" in accepted:
            self._kwargs["logits_to_keep"] = 1
        config = copy.deepcopy(model.generation_config)
        config.use_cache, config.cache_implementation, config.is_assistant = True, None, False
        model._prepare_cache_for_generation(config, self._kwargs, GenerationMode.GREEDY_SEARCH, 1, max_length)

    def next_logits(self) -> Tensor:
        """Logits of the token after the present last one: float32, shape [1, vocabulary]."""
        length = {"next_sequence_length": 1} if self._started else {"is_first_iteration": True}
        inputs = self._model.prepare_inputs_for_generation(self._token_ids, **length, **self._kwargs)
        outputs = self._model(**inputs, return_dict=True)
        self._started = True
        self._kwargs = self._model._update_model_kwargs_for_generation(outputs, self._kwargs)
        return outputs.logits[:, -1].float()  # type: ignore[no-any-return]

    def append(self, token_id: int) -> None:
        """Go on with this token."""
        self._token_ids = torch.cat((self._token_ids, self._token_ids.new_tensor([[token_id]])), dim=1)


def _on_device(media: Mapping[str, Any], model: Any, length: int) -> dict[str, Any]:
    """Tensors as the model wants them: in its dtype, and those with a number a token as long as the sequence, which
    with a continuation goes on behind the prompt in plain text."""
    placed: dict[str, Any] = {}
    for name, value in media.items():
        if isinstance(value, Tensor):
            value = value.to(model.device, model.dtype if value.is_floating_point() else None)
            if name in ("token_type_ids", "mm_token_type_ids") and value.shape[-1] < length:
                value = torch.nn.functional.pad(value, (0, length - value.shape[-1]))
        placed[name] = value
    return placed


def _layers(model: Any) -> list[Any]:
    """The model's layers, or the model itself where it keeps them in no list."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return [layer for layers in lists for layer in layers] or [model]


def forward_arguments(model: Any) -> frozenset[str]:
    """Names of the arguments that the model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)


class _Row:
    """A request that has not ended. ``tokens`` are those of its prompt and all that were generated so far."""

    __slots__ = ("decoding", "end_ids", "longest", "prompt_tokens", "request", "rotary", "sampling", "tokens")

    def __init__(self, request: EngineRequest, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        params = request.params
        self.request = request
        self.prompt_tokens = len(request.prompt_ids)
        self.tokens = [*request.prompt_ids, *request.generated_ids]
        self.longest = min(self.prompt_tokens + (params.max_new_tokens or 0), max_model_len)
        self.end_ids = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else eos_token_ids)
        self.sampling = SamplingRow(params, self.tokens, self.prompt_tokens)
        self.decoding: Decoding | None = None
        self.rotary: list[dict[str, Any]] | None = None

    @property
    def interactive(self) -> bool:
        return self.request.priority == INTERACTIVE

    def finish_reason(self) -> FinishReason | None:
        """How it has ended, if it has."""
        if len(self.tokens) > self.prompt_tokens and self.tokens[-1] in self.end_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.longest else None


class SequentialEngine:
    """See the module's docstring.

    Args:
        model: a causal language model of transformers, on its device.
        config: ``max_batch`` (at most ``PLACES`` of it are used); it has no options.
        eos_token_ids: end the answer, unless a request ignores them.
        max_model_len: longest prompt plus completion, in tokens.

    Raises:
        InvalidParameter: an option was given.
    """

    name = "sequential"
    supported = frozenset(PARAMS)
    takes_media = True

    def __init__(
        self,
        model: Any,
        config: EngineConfig,
        *,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        if config.options:
            raise InvalidParameter(f"The sequential engine has no option {', '.join(sorted(config.options))!r}.")
        self._adapters = adapters or Adapters()
        self.adapters, self.adapter = self._adapters.names, self._adapters.active
        self._adapters.attach(model)
        self._model = model
        self._eos_token_ids = eos_token_ids
        self.max_model_len = max_model_len
        self.max_batch = min(config.max_batch, PLACES)
        self.vocab_size = model.config.get_text_config().vocab_size
        self._rotary = RotaryState(model)
        self._sampler = RowSampler(model.config.get_text_config().vocab_size, eos_token_ids, model.device)
        self._last: _Row | None = None
        self._turns: deque[_Row] = deque()
        self._queues: tuple[deque[_Row], deque[_Row]] = (deque(), deque())
        self.steps = 0
        self._hooks = [layer.register_forward_hook(self._count) for layer in _layers(model)]

    def _count(self, *_: Any) -> None:
        """A layer is done. Whole passes would be too coarse: a long prompt takes one, however long it is."""
        self.steps += 1

    def check(self, request: EngineRequest) -> None:
        """Refuse what cannot be done."""
        check_supported(self, request.params)
        check_prompt(self, request)
        self._sampler.check(request.params)

    def add(self, request: EngineRequest) -> None:
        """Queue a request."""
        row = _Row(request, self._eos_token_ids, self.max_model_len)
        self._queues[not row.interactive].append(row)

    def step(self) -> list[StepOutput]:
        """One forward pass of the row whose turn it is."""
        self._admit()
        row = self._next_row()
        reason = row.finish_reason()
        if reason is not None:  # a continuation with nothing left to do
            self._forget(row)
            return [StepOutput(row.request.request_id, (), reason)]
        sampled = self._next_token(row)
        row.tokens += sampled.token_ids
        reason = row.finish_reason()
        if reason is not None:
            self._forget(row)
        found = sampled.logprobs[0] if sampled.logprobs else None
        logprobs = None if found is None else (found,)
        return [StepOutput(row.request.request_id, sampled.token_ids, reason, logprobs=logprobs)]

    def _admit(self) -> None:
        interactive, batch = self._queues
        for queue in (interactive, batch):
            while queue and len(self._turns) < self.max_batch:
                self._turns.append(queue.popleft())
        while interactive and (youngest := self._youngest_batch_row()):
            self._turns.remove(youngest)
            youngest.decoding = youngest.rotary = None
            batch.appendleft(youngest)
            self._turns.append(interactive.popleft())

    def _youngest_batch_row(self) -> _Row | None:
        """The one that loses least by starting over."""
        rows = [row for row in self._turns if not row.interactive]
        return min(rows, key=lambda row: len(row.tokens), default=None)

    def _next_row(self) -> _Row:
        """The one that has waited longest for its turn, of the interactive ones if there are any."""
        row = next((row for row in self._turns if row.interactive), self._turns[0])
        self._turns.remove(row)
        self._turns.append(row)
        return row

    @torch.inference_mode()
    def _next_token(self, row: _Row) -> Sampled:
        self._switch_to(row)
        if row.decoding is None:
            media = row.request.media
            row.decoding = Decoding(self._model, row.tokens, row.longest, media.tensors() if media else None)
        self._adapters.route([(row.request.params.adapter, len(row.tokens))])
        sampled = self._sampler.sample(row.decoding.next_logits(), [row.sampling])
        row.decoding.append(sampled.token_ids[0])
        return sampled

    def _switch_to(self, row: _Row) -> None:
        """Take the rotary frequencies of the last row out and put this one's in."""
        if self._last is row and row.decoding is not None:
            return
        if self._last is not None and self._last.decoding is not None:
            self._last.rotary = self._rotary.read()
        self._rotary.write(row.rotary)
        self._last = row

    def _forget(self, row: _Row) -> None:
        row.decoding = row.rotary = None
        for rows in (self._turns, *self._queues):
            if row in rows:
                rows.remove(row)
        if self._last is row:
            self._last = None

    def abort(self, request_id: RequestId) -> None:
        """Drop a request and its cache."""
        for rows in (self._turns, *self._queues):
            for row in [row for row in rows if row.request.request_id == request_id]:
                self._forget(row)

    def has_work(self) -> bool:
        """Whether any request is running or queued."""
        return bool(self._turns or self._queues[0] or self._queues[1])

    def stats(self) -> EngineStats:
        """Rows that take turns, and rows that wait."""
        return EngineStats(len(self._turns), len(self._queues[0]) + len(self._queues[1]))

    def close(self) -> None:
        """Drop everything. Idempotent."""
        self._last = None
        self._adapters.detach()
        for hook in self._hooks:
            hook.remove()
        for rows in (self._turns, *self._queues):
            rows.clear()
