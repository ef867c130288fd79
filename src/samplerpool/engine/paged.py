"""The paged engine: transformers' continuous batching (paged KV cache, prefix sharing) behind the engine interface.

The library's manager computes on a thread of its own and queues the outputs of each step; ``step`` waits for them. The
order of requests is decided before it, see ``engine/hosted.py``.

A step that runs out of memory ends the library's thread. It is started again, and its requests go on the same way,
fewer at a time.
"""

from __future__ import annotations

import logging
from typing import Any

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import PARAMS
from samplerpool.engine.base import INTERACTIVE, EngineStats, StepOutput
from samplerpool.engine.budget import StepBudget
from samplerpool.engine.hosted import HostedEngine, Live, RequestSettings
from samplerpool.engine.paged_manager import Manager
from samplerpool.engine.paged_processors import SETTINGS_KEY
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.engine.shortage import sentence, shortage_of_memory, too_large
from samplerpool.errors import EngineError

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


class PagedEngine(HostedEngine):
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

    def __init__(self, model: Any, config: EngineConfig, *, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        sampler = RowSampler(model.config.get_text_config().vocab_size, eos_token_ids, model.device)
        on_host = model.device.type == "cpu"
        self._manager = Manager(model, config, max_model_len, sampler if on_host else None)
        super().__init__(
            sampler,
            max_batch=config.max_batch,
            max_model_len=min(max_model_len, self._manager.longest_request),
            supported=frozenset(PARAMS) - (frozenset() if on_host else ONLY_ON_HOST),
        )
        self._device = model.device
        self._budget = StepBudget(config.max_batch, self._manager.most_step_tokens)

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

    def _outputs_of(self, result: Any) -> list[StepOutput]:
        live = self._running.get(result.request_id)
        if live is None:  # aborted or put back, and this was on its way
            return []
        if result.error is not None:
            return [self._failed(live, EngineError(f"The paged engine failed: {result.error}"))]
        return self._gained(live, result.generated_tokens[len(live.token_ids) - live.base :])

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

    @property
    def _rows(self) -> int:
        return self._budget.rows

    def _hand_over(self, live: Live, prompt_ids: list[int], new_tokens: int) -> None:
        live.settings = RequestSettings.of(live.request.params, len(live.request.prompt_ids))
        self._manager.submit(live.key, prompt_ids, new_tokens, sorted(live.end_ids), **{SETTINGS_KEY: live.settings})

    def _take_back(self, live: Live) -> None:
        self._manager.cancel(live.key)

    @property
    def steps(self) -> int:
        """Those of the library; our own ``step`` only waits for them."""
        return self._manager.steps

    def stats(self) -> EngineStats:
        """Requests inside the manager and before it."""
        return EngineStats(len(self._running), self._queued, dict(self._budget.figures()))

    def close(self) -> None:
        """Stop the library's thread and drop everything. Idempotent."""
        self._drop_all()
        self._manager.close()
