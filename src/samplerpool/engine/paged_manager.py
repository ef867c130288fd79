"""Starting transformers' continuous batching the way the paged engine needs it: sizes, scheduler, output queue."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens
from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.paged_processors import BatchSampler
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.engine.shortage import give_back, shortage_of_memory
from samplerpool.errors import InvalidParameter, SamplerPoolError, StartFailed

GIB = 2**30
CPU_CACHE_GIB = 1.0
"""Taken at the start, whether it is needed or not."""
CPU_CACHE_TOKENS = 65536
"""Beyond this the library's attention mask (step tokens by cache tokens) outgrows the cache itself."""
CPU_STEP_TOKENS = 256
CPU_PAGE_TOKENS = 16
OPTIONS: Mapping[str, type] = {"page_size": int, "max_batch_tokens": int, "cache_gib": float}
STOP_TIMEOUT_S = 10.0

_SCHEDULER = "samplerpool_fifo"


class StepRouter(OutputRouter):  # type: ignore[misc]
    """Hands on the outputs of one step together, so that a step wakes its reader once."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    def deliver(self, output: Any) -> None:
        """One output by itself: a request that failed."""
        self._steps.put([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        """All outputs of a step."""
        self._steps.put(outputs)

    def take(self, timeout_s: float) -> list[Any]:
        """All outputs there are, in order; waits for the first for so long."""
        outputs: list[Any] = []
        try:
            outputs += self._steps.get(timeout=timeout_s) if timeout_s else self._steps.get_nowait()
            while True:
                outputs += self._steps.get_nowait()
        except queue.Empty:
            return outputs


class CancelSafeScheduler(FIFOScheduler):  # type: ignore[misc]
    """The library's own, but no cancellation is lost, and a cancelled request counts as finished.

    Requests and cancellations come through two queues, which the loop empties one after the other: a cancellation may
    arrive one round before the request that was sent before it.

    With double buffering a request may be cancelled while its next token is being computed. Still marked as decoding,
    it would have that step's cache blocks registered after they were freed, which ends the library's loop.

    ``most_tokens`` is a limit for the tokens of a step, and ``step_tokens`` how many the last one had.
    """

    most_tokens = sys.maxsize
    step_tokens = 0

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """What the next step computes."""
        scheduled = super().schedule_batch(min(token_budget, self.most_tokens), cache_budget)
        self.step_tokens = scheduled[2]
        return scheduled

    def reset(self) -> None:
        """Start afresh."""
        super().reset()
        self._early: set[str] = set()

    def clear_cancelled_requests(self) -> list[Any]:
        """Drop what was cancelled."""
        known = self.active_requests.keys() | self.waiting_requests.keys()
        early = self._requests_to_cancel - known
        self._requests_to_cancel |= self._early
        cancelled: list[Any] = super().clear_cancelled_requests()
        self._early = early
        for state in cancelled:
            state.status = RequestStatus.FINISHED
        return cancelled


SCHEDULER_MAPPING[_SCHEDULER] = CancelSafeScheduler


def batching_config(model: Any, config: EngineConfig, max_model_len: int) -> ContinuousBatchingConfig:
    """Sizes of cache and steps.

    On CUDA the library sizes itself by the device's memory, unless told otherwise. On the CPU it would take most of the
    machine's, which belongs to other workers as well; there the cache holds ``max_batch`` full-length requests if that
    stays within ``CPU_CACHE_GIB`` and ``CPU_CACHE_TOKENS``, and one of ``config.max_model_len`` in any case.

    Raises:
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """
    given = _checked(config.options)
    on_host = model.device.type == "cpu"
    sizes = ContinuousBatchingConfig(
        max_requests_per_batch=config.max_batch, scheduler_type=_SCHEDULER, auto_switch_to_flash=not on_host
    )
    if on_host:
        sizes.page_size = CPU_PAGE_TOKENS
        sizes.max_batch_tokens = max(CPU_STEP_TOKENS, config.max_batch)
    else:
        sizes.max_memory_percent = 0.8  # the library's own figure for runs with logits processing
    sizes.page_size = given.get("page_size", sizes.page_size)
    sizes.max_batch_tokens = given.get("max_batch_tokens", sizes.max_batch_tokens)
    if on_host or "cache_gib" in given:
        budget_tokens = int(given.get("cache_gib", CPU_CACHE_GIB) * GIB // _bytes_per_token(model))
        most = config.max_batch * (max_model_len + sizes.page_size)
        tokens = min(most, budget_tokens, CPU_CACHE_TOKENS if on_host else most)
        sizes.num_blocks = math.ceil(max(tokens, config.max_model_len or 1) / sizes.page_size)
    return sizes


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise InvalidParameter(f"The paged engine has no option {name!r}; it has {', '.join(OPTIONS)}.")
        try:
            checked[name] = OPTIONS[name](value)
        except (TypeError, ValueError):
            checked[name] = 0
        if checked[name] <= 0:
            raise InvalidParameter(f"The paged engine's option {name} must be a number above 0, not {value!r}.")
    return checked


def _bytes_per_token(model: Any) -> int:
    config = model.config.get_text_config()
    values = 2 * config.num_hidden_layers * find_num_key_value_heads(config) * find_head_dim(config)
    return int(values * model.dtype.itemsize)


class Manager:
    """A running manager of the library, with its outputs step by step.

    Args:
        model: a causal language model of transformers, in place on its device.
        config, max_model_len: as for ``batching_config``.
        row_sampler: draws the tokens where the model runs on the CPU; None on a device.

    Raises:
        StartFailed: the model cannot be batched this way, or its cache does not fit.
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """

    def __init__(self, model: Any, config: EngineConfig, max_model_len: int, row_sampler: RowSampler | None) -> None:
        self.router = StepRouter()
        self._sampler = BatchSampler(row_sampler)
        try:
            self._manager = self._build(model, config, max_model_len)
        except SamplerPoolError:
            raise
        except Exception as error:
            raise StartFailed(_why(model, error)) from error
        self.longest_request: int = infer_max_single_request_tokens(self._manager.batch_processor.cache)
        self._start()

    def _start(self) -> None:
        # A thread's children inherit whether they are daemons: so the library's thread, which is not made one, cannot
        # keep a process alive whose engine nobody closed.
        starter = threading.Thread(target=self._manager.start, name="samplerpool-paged-starter", daemon=True)
        starter.start()
        starter.join()

    def _build(self, model: Any, config: EngineConfig, max_model_len: int) -> Any:
        if not hasattr(model, "init_continuous_batching") or getattr(model, "_is_stateful", False):
            raise TypeError("it keeps a state that is not a key-value cache, or it is not a causal language model")
        manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=batching_config(model, config, max_model_len),
        )
        manager.logit_processor = self._sampler
        manager.output_router = self.router
        manager.warmup()  # builds the cache here and now, so that what is wrong shows here and not on a thread
        if manager.batch_processor is None:
            raise RuntimeError("the library did not build its batch processor")
        return manager

    @property
    def most_step_tokens(self) -> int:
        """Tokens that a step can have."""
        return int(self._manager.batch_processor.max_batch_tokens)

    @property
    def step_tokens(self) -> int:
        """Tokens of the last step."""
        return int(self._scheduler.step_tokens)

    def limit_steps(self, tokens: int) -> None:
        """Let no later step have more tokens."""
        self._scheduler.most_tokens = tokens

    @property
    def _scheduler(self) -> CancelSafeScheduler:
        scheduler: CancelSafeScheduler = self._manager.batch_processor.scheduler
        return scheduler

    @property
    def steps(self) -> int:
        """Steps that the library has begun."""
        return self._sampler.steps

    def submit(self, key: str, input_ids: list[int], limit: int, end_ids: list[int], **settings: Any) -> None:
        """Queue a request. A stopped manager takes none, which ``failure`` tells."""
        self._manager.add_request(
            input_ids, request_id=key, max_new_tokens=limit, streaming=True, eos_token_id=end_ids or [-1], **settings
        )

    def cancel(self, key: str) -> None:
        """Drop a request before the next step; it may have one more output on its way."""
        self._manager.cancel_request(key)

    def failure(self) -> Exception | None:
        """Why the manager no longer works, if it does not."""
        status = self._manager.background_thread_status
        if status.can_accept_new_requests() is None and self._manager.is_running():
            return None
        self._manager.join(time.perf_counter(), STOP_TIMEOUT_S)  # it notes its error last
        return status.fatal_error or RuntimeError("its thread has stopped")

    def restart(self, device: torch.device) -> None:
        """Go on after a failure, without any of the requests that were there, and with an empty cache."""
        self._manager.background_thread_status.clear()  # its error holds on to the tensors of the step that failed
        give_back(device)
        self._start()

    def close(self) -> None:
        """Stop the thread after the present step and free the cache. Idempotent."""
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        manager.stop(block=True, timeout=STOP_TIMEOUT_S, hard_stop=True)
        if not manager.is_running():  # else it would wait for a stuck thread for ever
            manager.destroy()


def _why(model: Any, error: Exception) -> str:
    if shortage_of_memory(error):
        return (
            f"The key-value cache does not fit into memory ({error}). "
            "Launch with a smaller --max-batch or a smaller --max-model-len."
        )
    return (
        f"The paged engine cannot take a {type(model).__name__}: {error}. "
        "Continuous batching needs a causal language model with key-value caches and a replaceable attention."
    )
