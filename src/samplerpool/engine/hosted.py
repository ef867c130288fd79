"""What the engines of other libraries have in common: the order of requests before them, and a request's life in them.

A library is handed at most so many requests at a time; the others wait here, interactive ones in front. An interactive
request that finds no place takes that of the youngest batch request, which later continues behind the tokens it has:
noise depends on seed and position only, so it ends with the same ones.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplerpool.config.sampling import BASE_ADAPTER, PARAMS, SamplingParams
from samplerpool.engine.base import (
    INTERACTIVE,
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.engine.row_sampler import RowSampler, SamplingRow
from samplerpool.errors import EngineError
from samplerpool.types import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What a sampler inside a library needs to know of a request.

    Args:
        params: resolved parameters.
        prompt_tokens: length of the original prompt; what follows it in the sequence counts as generated.
        row: the request as the row sampler sees it; the thread that draws alone touches it.
        logprobs: by position, where the request asks for them; written before the token itself is handed out.
    """

    params: SamplingParams
    prompt_tokens: int
    row: SamplingRow
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)

    @classmethod
    def of(cls, params: SamplingParams, prompt_tokens: int, tokens: Sequence[int] = ()) -> RequestSettings:
        """Of a request of which so many tokens are known; the library tells the others step by step."""
        return cls(params, prompt_tokens, SamplingRow(params, list(tokens), prompt_tokens))

    def __deepcopy__(self, memo: Any) -> RequestSettings:
        """Itself: what a library copies (one that it starts over, for want of memory) is the same request."""
        return self


def draw_in_place(sampler: RowSampler, logits: Tensor, settings: Sequence[RequestSettings]) -> None:
    """Raise the drawn token of each row above all others, for a library that takes the largest.

    Args:
        logits: float32, shape [requests, vocabulary].
        settings: in the order of the logits, with all tokens so far in their rows.
    """
    if all(s.row.plain for s in settings):
        return
    sampled = sampler.sample(logits, [s.row for s in settings])
    for s, entry in zip(settings, sampled.logprobs or (), strict=False):
        if entry is not None:
            s.logprobs[s.row.position] = entry
    logits.scatter_(1, torch.tensor(sampled.token_ids, device=logits.device).unsqueeze(-1), float("inf"))


class Live:
    """A request that has not ended.

    ``key`` names its present stay in the library; a stay never shares its key with another, so that late outputs of an
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


class HostedEngine(ABC):
    """The part of an engine that does not depend on the library; ``step`` and the rest of it are the subclass's.

    Args:
        sampler: draws the tokens; knows the vocabulary and the ends of sequences.
        max_batch: most requests inside the library.
        max_model_len: longest prompt plus completion, in tokens.
        supported: names of the parameters that are honoured.
    """

    name: str
    takes_media = False
    adapters: tuple[str, ...] = ()
    adapter = BASE_ADAPTER

    def __init__(
        self,
        sampler: RowSampler,
        *,
        max_batch: int,
        max_model_len: int,
        supported: frozenset[str] = frozenset(PARAMS),
    ) -> None:
        self._sampler = sampler
        self.vocab_size = sampler.vocab_size
        self.max_batch, self.max_model_len, self.supported = max_batch, max_model_len, supported
        self._keys = map("r{}".format, itertools.count())
        self._live: dict[RequestId, Live] = {}
        self._running: dict[str, Live] = {}
        self._queues: tuple[deque[Live], deque[Live]] = (deque(), deque())
        self._ready: list[StepOutput] = []

    @abstractmethod
    def _hand_over(self, live: Live, prompt_ids: list[int], new_tokens: int) -> None:
        """Let the library begin with a request, under ``live.key``.

        Args:
            prompt_ids: prompt and what was generated so far.
            new_tokens: most that may come.
        """

    @abstractmethod
    def _take_back(self, live: Live) -> None:
        """Make the library drop a request; outputs of it that still come are passed over."""

    @property
    def _rows(self) -> int:
        """Most requests inside the library at present."""
        return self.max_batch

    # ---- the interface --------------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> None:
        """Refuse what cannot be done."""
        check_supported(self, request.params)
        self._sampler.check(request.params)
        check_prompt(self, request)

    def add(self, request: EngineRequest) -> None:
        """Start a request, or queue it where there is no place."""
        live = Live(request, self._sampler.eos_token_ids, self.max_model_len)
        if reason := live.finish_reason():  # a continuation with nothing left to do
            self._ready.append(StepOutput(request.request_id, (), reason))
            return
        self._live[request.request_id] = live
        self._queues[request.priority != INTERACTIVE].append(live)
        self._admit()

    def abort(self, request_id: RequestId) -> None:
        """Drop a request. The library frees its cache before its next step."""
        self._ready = [output for output in self._ready if output.request_id != request_id]
        live = self._live.get(request_id)
        if live is None:
            return
        if live.key in self._running:
            self._take_back(live)
        else:
            self._queues[live.request.priority != INTERACTIVE].remove(live)
        self._forget(live)
        self._admit()

    def has_work(self) -> bool:
        """Whether any request is running or queued, or an end waits to be told."""
        return bool(self._live or self._ready)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Those of the library."""

    @abstractmethod
    def step(self) -> list[StepOutput]:
        """Let the library compute, or wait for what it computes."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Requests inside the library and before it."""

    @abstractmethod
    def close(self) -> None:
        """Stop the library and drop everything. Idempotent."""

    # ---- for the subclass -----------------------------------------------------------------------------------------

    @property
    def _queued(self) -> int:
        return sum(map(len, self._queues))

    def _gained(self, live: Live, new: Sequence[int]) -> list[StepOutput]:
        """The output of a running request that has got tokens, if it is one."""
        live.token_ids += new
        reason = live.finish_reason()
        if reason is not None:
            self._forget(live)
        if not new and reason is None:
            return []
        return [StepOutput(live.request.request_id, new, reason, logprobs=live.take_logprobs(len(new)))]

    def _failed(self, live: Live, error: EngineError) -> StepOutput:
        self._forget(live)
        return StepOutput(live.request.request_id, (), "error", error)

    def _admit(self) -> None:
        for queue in self._queues:
            while queue and len(self._running) < self._rows:
                self._start(queue.popleft())
        interactive = self._queues[0]
        while interactive and (youngest := self._youngest_batch_request()):
            self._put_back(youngest)
            self._start(interactive.popleft())

    def _drop_all(self) -> None:
        self._live.clear()
        self._running.clear()
        self._ready.clear()
        for queue in self._queues:
            queue.clear()

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _youngest_batch_request(self) -> Live | None:
        return next((live for live in reversed(self._running.values()) if live.request.priority != INTERACTIVE), None)

    def _start(self, live: Live) -> None:
        live.key, live.base = next(self._keys), len(live.token_ids)
        self._running[live.key] = live
        self._hand_over(live, [*live.request.prompt_ids, *live.token_ids], live.limit - live.base)

    def _put_back(self, live: Live) -> None:
        self._take_back(live)
        del self._running[live.key]
        self._queues[1].appendleft(live)

    def _forget(self, live: Live) -> None:
        self._live.pop(live.request.request_id, None)
        self._running.pop(live.key, None)
