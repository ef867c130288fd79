"""The paged engine: transformers' continuous batching (paged KV cache, prefix sharing) behind the engine interface.

The library's manager computes on a thread of its own and queues the outputs of each step; ``step`` waits for them. The
order of requests is decided here: at most ``max_batch`` of them are inside the manager, the others wait, interactive
ones in front. An interactive request that finds no place takes that of the youngest batch request, which later
continues behind the tokens it has: noise depends on seed and position only, so it ends with the same ones.

A step that runs out of memory ends the library's thread. It is started again, and its requests go on the same way,
fewer at a time.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import BASE_ADAPTER, PARAMS
from samplerpool.engine.base import (
    INTERACTIVE,
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.engine.budget import StepBudget
from samplerpool.engine.paged_manager import Manager
from samplerpool.engine.paged_processors import SETTINGS_KEY, RequestSettings
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.engine.shortage import sentence, shortage_of_memory, too_large
from samplerpool.errors import EngineError
from samplerpool.types import FinishReason, TokenLogprobs

log = logging.getLogger(__name__)

STEP_TIMEOUT_S = 0.05
ONLY_ON_HOST = frozenset(
    {
        "typical_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "no_repeat_ngram_size",
        "logit_bias",
        "bad_words",
        "min_new_tokens",
        "logprobs",
    }
)
"""Parameters that need earlier tokens, or more of a request than six numbers, inside of a step."""


class _Live:
    """A request that has not ended.

    ``key`` names its present stay in the manager; a stay never shares its key with another, so that late outputs of an
    earlier one are known for what they are. ``token_ids`` are all generated so far, ``base`` of them before this stay.
    """

    __slots__ = ("base", "end_ids", "key", "limit", "request", "settings", "token_ids")

    def __init__(self, request: EngineRequest, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        params = request.params
        self.request = request
        self.token_ids = list(request.generated_ids)
        self.base = 0
        self.key = ""
        self.settings: RequestSettings | None = None
        self.limit = min(params.max_new_tokens or 0, max_model_len - len(request.prompt_ids))
        self.end_ids = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else eos_token_ids)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.prompt_ids) + len(self.token_ids)

    def finish_reason(self) -> FinishReason | None:
        """How it has ended, if it has."""
        if self.token_ids and self.token_ids[-1] in self.end_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.limit else None

    def take_logprobs(self, count: int) -> list[TokenLogprobs] | None:
        """Those of the last ``count`` tokens, where they are asked for."""
        if self.settings is None or self.request.params.logprobs is None:
            return None
        end = len(self.token_ids)
        return [self.settings.logprobs.pop(position) for position in range(end - count, end)]


class PagedEngine:
    """See the module's docstring.

    Args:
        model: a causal language model of transformers, on its device.
        config: ``max_batch`` and the options ``page_size`` (tokens), ``max_batch_tokens`` (tokens in one step) and
            ``cache_gib``.
        eos_token_ids: end the answer, unless a request ignores them.
        max_model_len: longest prompt plus completion that the model can take; lowered to what the cache can hold.

    Raises:
        StartFailed: the model cannot be batched this way, or its cache does not fit.
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """

    name = "paged"
    adapters: tuple[str, ...] = ()
    adapter = BASE_ADAPTER

    def __init__(self, model: Any, config: EngineConfig, *, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        vocab_size = model.config.get_text_config().vocab_size
        self._sampler = RowSampler(vocab_size, eos_token_ids, model.device)
        on_host = model.device.type == "cpu"
        self._manager = Manager(model, config, max_model_len, self._sampler if on_host else None)
        self._device = model.device
        self.max_batch = config.max_batch
        self._budget = StepBudget(config.max_batch, self._manager.most_step_tokens)
        self.vocab_size = model.config.get_text_config().vocab_size
        self._eos_token_ids = eos_token_ids
        self.max_model_len = min(max_model_len, self._manager.longest_request)
        self.takes_media = False
        self.supported = frozenset(PARAMS) - (frozenset() if on_host else ONLY_ON_HOST)
        self._keys = map("r{}".format, itertools.count())
        self._live: dict[RequestId, _Live] = {}
        self._running: dict[str, _Live] = {}
        self._queues: tuple[deque[_Live], deque[_Live]] = (deque(), deque())
        self._ready: list[StepOutput] = []

    def check(self, request: EngineRequest) -> None:
        """Refuse what cannot be done."""
        check_supported(self, request.params)
        self._sampler.check(request.params)
        check_prompt(self, request)

    def add(self, request: EngineRequest) -> None:
        """Start a request, or queue it where there is no place."""
        live = _Live(request, self._eos_token_ids, self.max_model_len)
        if reason := live.finish_reason():  # a continuation with nothing left to do
            self._ready.append(StepOutput(request.request_id, (), reason))
            return
        self._live[request.request_id] = live
        self._queues[request.priority != INTERACTIVE].append(live)
        self._admit()

    def step(self) -> list[StepOutput]:
        """What the library's thread has computed since the last call; waits a short time if that is nothing.

        Raises:
            EngineError: that thread has died of something else than want of memory; all requests have failed.
        """
        outputs, self._ready = self._ready, []
        for result in self._manager.router.take(0.0 if outputs else STEP_TIMEOUT_S):
            if result.error is not None and self._manager.failure():
                break  # no request's own failure: the thread has died, which is dealt with when all else is told
            outputs += self._outputs_of(result)
        if outputs:
            self._budget.quiet()
            self._manager.limit_steps(self._budget.tokens)
        else:
            outputs += self._recover()
        self._admit()
        return outputs

    def _outputs_of(self, result: Any) -> Iterator[StepOutput]:
        live = self._running.get(result.request_id)
        if live is None:  # aborted or put back, and this was on its way
            return
        if result.error is not None:
            yield self._failed(live, EngineError(f"The paged engine failed: {result.error}"))
        else:
            new = result.generated_tokens[len(live.token_ids) - live.base :]
            live.token_ids += new
            reason = live.finish_reason()
            if reason is not None:
                self._forget(live)
            if new or reason:
                yield StepOutput(live.request.request_id, new, reason, logprobs=live.take_logprobs(len(new)))

    def _failed(self, live: _Live, error: EngineError) -> StepOutput:
        self._forget(live)
        return StepOutput(live.request.request_id, (), "error", error)

    def _recover(self) -> list[StepOutput]:
        """Start the thread again if it ran out of memory, with fewer requests; one too large by itself fails."""
        failure = self._manager.failure()
        if failure is None:
            return []
        shortage = shortage_of_memory(failure)
        if shortage is None:
            self._drop_all()
            why = f"{type(failure).__name__}: {failure}"
            raise EngineError(f"The paged engine has died ({why}). Its worker must be started again.", reason=why)
        running, tokens = list(self._running.values()), self._manager.step_tokens
        smaller = self._budget.lower(len(running), tokens if tokens > len(running) else 0)
        log.warning("%s", sentence(tokens, len(running), shortage, self._budget))
        self._running.clear()
        failed = running if not smaller else []
        for live in reversed(running[len(failed) :]):
            self._queues[live.request.priority != INTERACTIVE].appendleft(live)
        del failure  # it holds on to the tensors of the step
        self._manager.limit_steps(self._budget.tokens)
        self._manager.restart(self._device)
        return [self._failed(live, too_large(shortage, live.length)) for live in failed]

    def _admit(self) -> None:
        for queue in self._queues:
            while queue and len(self._running) < self._budget.rows:
                self._start(queue.popleft())
        interactive = self._queues[0]
        while interactive and (youngest := self._youngest_batch_request()):
            self._put_back(youngest)
            self._start(interactive.popleft())

    def _youngest_batch_request(self) -> _Live | None:
        return next((live for live in reversed(self._running.values()) if live.request.priority != INTERACTIVE), None)

    def _start(self, live: _Live) -> None:
        request = live.request
        live.key, live.base = next(self._keys), len(live.token_ids)
        self._running[live.key] = live
        live.settings = RequestSettings.of(request.params, len(request.prompt_ids))
        self._manager.submit(
            live.key,
            [*request.prompt_ids, *live.token_ids],
            live.limit - live.base,
            sorted(live.end_ids),
            **{SETTINGS_KEY: live.settings},
        )

    def _put_back(self, live: _Live) -> None:
        self._manager.cancel(live.key)
        del self._running[live.key]
        self._queues[1].appendleft(live)

    def _forget(self, live: _Live) -> None:
        self._live.pop(live.request.request_id, None)
        self._running.pop(live.key, None)

    def abort(self, request_id: RequestId) -> None:
        """Drop a request. The manager frees its cache before its next step."""
        self._ready = [output for output in self._ready if output.request_id != request_id]
        live = self._live.get(request_id)
        if live is None:
            return
        if live.key in self._running:
            self._manager.cancel(live.key)
        else:
            self._queues[live.request.priority != INTERACTIVE].remove(live)
        self._forget(live)
        self._admit()

    @property
    def steps(self) -> int:
        """Those of the library; our own ``step`` only waits for them."""
        return self._manager.steps

    def has_work(self) -> bool:
        """Whether any request is running or queued, or an end waits to be told."""
        return bool(self._live or self._ready)

    def stats(self) -> EngineStats:
        """Requests inside the manager and before it."""
        return EngineStats(len(self._running), sum(map(len, self._queues)), dict(self._budget.figures()))

    def close(self) -> None:
        """Stop the library's thread and drop everything. Idempotent."""
        self._drop_all()
        self._manager.close()

    def _drop_all(self) -> None:
        self._live.clear()
        self._running.clear()
        self._ready.clear()
        for queue in self._queues:
            queue.clear()
