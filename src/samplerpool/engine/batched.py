"""What the engines that compute many rows together share: everything but the forward pass."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.cgroups import available_memory
from samplerpool.config.sampling import PARAMS
from samplerpool.engine.adapters import Adapters
from samplerpool.engine.arena import Arena, LayerShape
from samplerpool.engine.base import (
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.engine.packed_group import weight_count
from samplerpool.engine.row_sampler import RowSampler, Sampled, SamplingRow
from samplerpool.engine.schedule import Copy, Plan, Row, Scheduler
from samplerpool.engine.shortage import give_back, sentence, shortage_of_memory, too_large
from samplerpool.errors import InvalidParameter, StartFailed

log = logging.getLogger(__name__)

OPTIONS: Mapping[str, type] = {
    "cache_gib": float,
    "prefill_chunk": int,
    "step_tokens": int,
    "prefix_cache": bool,
    "packed_linears": bool,
    "kernel": bool,
}
"""Of every such engine, with the types of their values."""

MEMORY_SHARE = 0.5
"""Of the memory that is free at the start, for the caches of all workers of this machine together."""

ATTENTION_SPEED = 0.6
"""Operations per second in attention, as a share of those in matrix products (measured 0.58 to 0.63)."""


class BatchedEngine(ABC):
    """Requests in, tokens out; what is computed in a step is the scheduler's to say, and how, a subclass's.

    Args:
        model: a causal language model of transformers, on its device.
        scheduler: decides each step.
        eos_token_ids: end the answer, unless a request ignores them.
        max_batch: most rows at a time.
        max_model_len: longest prompt plus completion; lowered to what the scheduler can place.
        adapters: that requests may choose; a subclass attaches them when the layers have their final form.
    """

    name: str
    supported = frozenset(PARAMS)
    takes_media = False

    _arena: Arena

    def __init__(
        self,
        model: Any,
        scheduler: Scheduler,
        *,
        eos_token_ids: frozenset[int],
        max_batch: int,
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        self._adapters = adapters or Adapters()
        self.adapters, self.adapter = self._adapters.names, self._adapters.active
        self.max_batch = max_batch
        self.max_model_len = min(max_model_len, scheduler.longest_row)
        self.vocab_size = model.config.get_text_config().vocab_size
        self._model = model
        self._device = model.device
        self._scheduler = scheduler
        self._eos_token_ids = eos_token_ids
        self._sampler = RowSampler(self.vocab_size, eos_token_ids, model.device)
        self._sampling: dict[RequestId, SamplingRow] = {}
        self._ready: list[StepOutput] = []
        self.steps = 0

    # ---- the engine interface -------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> None:
        """Refuse what can never be done."""
        check_supported(self, request.params)
        check_prompt(self, request)
        self._sampler.check(request.params)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; it joins at the next step that has room for it."""
        row = Row(request, self._eos_token_ids, self.max_model_len)
        if reason := row.finish_reason():  # a continuation with nothing left to do
            self._ready.append(StepOutput(request.request_id, (), reason))
            return
        self._sampling[request.request_id] = SamplingRow(request.params, row.tokens, row.prompt_tokens)
        self._scheduler.add(row)

    def step(self) -> list[StepOutput]:
        """Compute what the scheduler says, and what it gives."""
        outputs, self._ready = self._ready, []
        plan = self._scheduler.plan()
        if not plan.decodes and not plan.chunks:
            return outputs
        copied = False
        try:
            self._carry_out(plan.copies)
            copied = True
            rows, logits = self._forward(plan)
            sampled = self._sample(rows, logits) if rows else None
        except Exception as error:
            shortage = shortage_of_memory(error)
            if shortage is None:
                raise
        else:
            self.steps += 1
            self._scheduler.done(plan)
            return outputs + self._take(rows, sampled) if sampled is not None else outputs
        return outputs + self._shed(plan, shortage, copied=copied)  # outside: the error holds on to the step's tensors

    def abort(self, request_id: RequestId) -> None:
        """Drop a request before the next step."""
        self._ready = [output for output in self._ready if output.request_id != request_id]
        self._sampling.pop(request_id, None)
        self._scheduler.remove(request_id)

    def has_work(self) -> bool:
        """Whether any request is running or queued, or an end waits to be told."""
        return bool(self._scheduler.running or self._scheduler.queued or self._ready)

    def stats(self) -> EngineStats:
        """Requests, the cache's use, and what shared prefixes saved."""
        scheduler = self._scheduler
        details = {
            "cache_tokens": scheduler.total_tokens,
            "cache_tokens_used": scheduler.used_tokens,
            "prefix_hits": scheduler.prefix_hits,
            "prefix_tokens": scheduler.prefix_tokens,
            "preemptions": scheduler.preemptions,
            **scheduler.budget.figures(),
        }
        return EngineStats(len(scheduler.running), scheduler.queued, details)

    def close(self) -> None:
        """Drop all requests, and leave the model's layers alone. Idempotent."""
        self._adapters.detach()
        self._scheduler.clear()
        self._sampling.clear()
        self._ready.clear()

    # ---- one step -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _carry_out(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            self._copy(copy)

    def _copy(self, copy: Copy) -> None:
        """Carry out one of a plan's copies."""
        self._arena.copy(copy.source, copy.target, copy.length)

    @abstractmethod
    def _forward(self, plan: Plan) -> tuple[list[Row], Tensor]:
        """Compute a plan, whose copies are done. What is written is not counted before ``Scheduler.done``.

        Returns:
            The rows whose last token was computed, and their next tokens' logits, shape [rows, vocabulary].
        """

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    @torch.inference_mode()
    def _sample(self, rows: list[Row], logits: Tensor) -> Sampled:
        return self._sampler.sample(logits.float(), [self._sampling[row.request.request_id] for row in rows])

    def _take(self, rows: list[Row], sampled: Sampled) -> list[StepOutput]:
        """Give each row its token."""
        outputs = []
        for index, (row, token_id) in enumerate(zip(rows, sampled.token_ids, strict=True)):
            row.tokens.append(token_id)
            reason = row.finish_reason()
            if reason is not None:
                self._scheduler.remove(row.request.request_id)
                del self._sampling[row.request.request_id]
            outputs.append(StepOutput(row.request.request_id, (token_id,), reason, logprobs=sampled.of(index)))
        return outputs

    # ---- no memory ------------------------------------------------------------------------------------------------

    def _shed(self, plan: Plan, shortage: str, *, copied: bool) -> list[StepOutput]:
        """Make the next step smaller after one that ran out of memory; a row that is too large by itself fails."""
        scheduler = self._scheduler
        for row in scheduler.running.values():  # what they read of their tokens may be half done
            self._sampling[row.request.request_id] = SamplingRow(row.request.params, row.tokens, row.prompt_tokens)
        rows, tokens = len(scheduler.running), plan.tokens
        alone = scheduler.shed(plan, copied=copied)
        give_back(self._device)
        log.warning("%s", sentence(tokens, rows, shortage, scheduler.budget))
        if alone is None:
            return []
        del self._sampling[alone.request.request_id]
        return [StepOutput(alone.request.request_id, (), "error", too_large(shortage, len(alone.tokens)))]


def checked_options(engine: str, options: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """An engine's options, with the right types.

    Args:
        engine: its name, for the message.
        kinds: of all options that it has: bool, or a kind of number.

    Raises:
        InvalidParameter
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        kind = kinds.get(name)
        if kind is None:
            raise InvalidParameter(f"The {engine} engine has no option {name!r}; it has {', '.join(kinds)}.")
        right = isinstance(value, bool) if kind is bool else isinstance(value, int | float) and value > 0
        if not right or (isinstance(value, bool) and kind is not bool):
            what = "true or false" if kind is bool else "a number above 0"
            raise InvalidParameter(f"The {engine} engine's option {name} must be {what}, not {value!r}.")
        checked[name] = kind(value)
    return checked


def _fit_on_devices(shapes: Sequence[LayerShape], model: Any) -> float:
    """How many tokens the free memory of GPUs holds, where the layers on each of them have their caches."""
    needed: Counter[torch.device] = Counter()
    for shape in shapes:
        needed[shape.device or model.device] += shape.numbers_per_token * model.dtype.itemsize
    return min(torch.cuda.mem_get_info(device)[0] / count for device, count in needed.items())


@torch.inference_mode()
def layer_shapes(model: Any) -> list[LayerShape]:
    """The geometry of each layer's cache, from a pass of two tokens through the untouched model.

    Raises:
        StartFailed: its cache is not one of keys and values alone.
    """
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    except Exception as error:  # whatever a model's own code raises, or has not
        why = f"without a cache of transformers ({type(error).__name__}: {error})"
        raise StartFailed(f"The model's rows cannot be batched {why}.", reason=f"it cannot be batched {why}") from error
    if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
        why = "its cache does not consist of keys and values alone"
        raise StartFailed(f"The model's rows cannot be batched: {why}.", reason=why)
    shapes = [LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers]
    places = [layer.keys.device for layer in layers]
    if set(places) == {model.device}:
        return shapes
    return [replace(shape, device=place) for shape, place in zip(shapes, places, strict=True)]


def keys_per_token(model: Any, shapes: Sequence[LayerShape]) -> float:
    """How many keys take as long to be read as all else that a token of a prompt takes, by counting operations."""
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    body = weight_count(model) - weight_count(nn.ModuleList(tables))
    heads: int = getattr(model.config.get_text_config(), "num_attention_heads", 1)
    per_key = sum(max(heads, shape.kv_heads) * (shape.key_dim + shape.value_dim) for shape in shapes)
    return max(1.0, ATTENTION_SPEED * body / per_key)


def cache_tokens(
    shapes: Sequence[LayerShape], model: Any, config: EngineConfig, cache_gib: float | None, *, least: int, most: int
) -> int:
    """How many tokens the cache gets: what was asked for, or a fair share of what is free.

    Args:
        cache_gib: what was asked for, in GiB.
        least: fewer are of no use.
        most: more would never be used.

    Raises:
        StartFailed: not even ``least`` fit.
    """
    per_token: int = sum(shape.numbers_per_token for shape in shapes) * model.dtype.itemsize
    if cache_gib is not None:
        budget = int(cache_gib * 2**30)
    elif model.device.type == "cuda":
        budget = int(per_token * _fit_on_devices(shapes, model) * 0.8)
    else:
        budget = int(available_memory() * MEMORY_SHARE * config.machine_share)
    tokens = min(budget // per_token, most)
    if tokens < least:
        raise StartFailed(
            f"There is no memory for keys and values: one token takes {per_token:,} bytes, and the budget is "
            f"{budget:,} bytes. Give it more with --engine-option cache_gib=N."
        )
    return tokens
