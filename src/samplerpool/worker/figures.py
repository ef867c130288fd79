"""What a worker counts of its requests: outcomes, tokens, times. Pure.

Fed with what the session does and what the sampler yields; per frame it costs some additions and no object.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.engine.base import RequestId
from samplerpool.engine.loop import Admitted, Prepared, RequestEvent
from samplerpool.errors import ClientTooSlow, SamplerPoolError
from samplerpool.types import PromptCount
from samplerpool.wire.figures import BOUNDS, FIRST_TOKEN_S, TOKEN_S, Buckets, FigureReport, Histogram
from samplerpool.wire.messages import Failed
from samplerpool.worker.session import AbortRun, Action, Send, Submit

COUNTED, RENDERED = "counted", "rendered"
"""Outcomes of requests whose prompt was only to be prepared, or shown."""
UNREACHABLE = "Unreachable"
"""Outcome of a request whose client's connection was gone, so that nothing could be answered."""

ENGINE_COUNTERS = ("prefix_hits", "prefix_tokens", "preemptions", "out_of_memory")
GAUGES = ("running", "queued", "clients", "cache_tokens", "cache_tokens_used", "memory_bytes")
"""What is taken over from a worker's description, where its engine has it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """One request's life.

    Args:
        outcome: a finish reason, or the name of an error's class, or ``UNREACHABLE``.
        error: the sentence, where there is one.
        prepared_s: from its arrival until it was rendered, checked and given to the engine; None if it never was.
        first_token_s: from its arrival to its first token; None if there was none.
    """

    request_id: RequestId
    outcome: str
    error: str
    prompt_tokens: int
    completion_tokens: int
    prepared_s: float | None
    first_token_s: float | None
    total_s: float


class _Running:
    __slots__ = ("arrived_at", "first_token_s", "last_token_at", "prepared_s", "prompt_tokens", "tokens")

    def __init__(self, now: float) -> None:
        self.arrived_at = now
        self.prepared_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_at = now
        self.prompt_tokens = 0
        self.tokens = 0


class Figures:
    """See the module's docstring. Times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._running: dict[RequestId, _Running] = {}
        self._outcomes: dict[str, int] = {}
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._histograms = {name: Histogram(bounds) for name, bounds in BOUNDS.items()}

    def acted(self, actions: Iterable[Action], now: float) -> list[Ended]:
        """Take what the session does about frames, the clock and lost clients (not about the sampler's events)."""
        ended: list[Ended] = []
        dropped: RequestId | None = None
        for action in actions:
            failed = _only_failure(action)
            if dropped is not None:
                told = failed is not None and failed.request_id == dropped[1]
                self._end(ended, dropped, failed.error if told and failed else UNREACHABLE, "", now)
                dropped, failed = None, None if told else failed
            if isinstance(action, Submit):
                self._running[action.key] = _Running(now)
            elif isinstance(action, AbortRun):
                dropped = action.key
            elif failed is not None and failed.error != ClientTooSlow.__name__:  # that one has ended before
                self._count(failed.error)
        if dropped is not None:
            self._end(ended, dropped, UNREACHABLE, "", now)
        return ended

    def produced(self, events: Sequence[RequestEvent], now: float) -> list[Ended]:
        """Take events of the sampler."""
        ended: list[Ended] = []
        running, per_token, bounds = self._running, self._histograms[TOKEN_S], BOUNDS[TOKEN_S]
        counts = per_token.counts
        for event in events:
            request = running.get(event.request_id)
            if request is None:
                continue
            if isinstance(event, Admitted):
                self._admitted(request, len(event.prompt_ids), now)
                continue
            if isinstance(event, Prepared):  # the model reads none of these tokens, so they are not counted
                request.prepared_s, request.prompt_tokens = now - request.arrived_at, event.prompt_tokens
                outcome = COUNTED if isinstance(event.told, PromptCount) else RENDERED
                self._end(ended, event.request_id, outcome, "", now)
                continue
            count = len(event.token_ids)
            if count:
                if request.tokens:
                    gap_s = now - request.last_token_at
                    counts[bisect_left(bounds, gap_s / count)] += count
                    per_token.total += gap_s
                else:
                    request.first_token_s = now - request.arrived_at
                    self._histograms[FIRST_TOKEN_S].observe(request.first_token_s)
                request.last_token_at = now
                request.tokens += count
                self._completion_tokens += count
            if event.finish_reason is not None:
                outcome, text = _outcome(event.finish_reason, event.error)
                self._end(ended, event.request_id, outcome, text, now)
        return ended

    def _admitted(self, request: _Running, prompt_tokens: int, now: float) -> None:
        request.prepared_s = now - request.arrived_at
        request.prompt_tokens = prompt_tokens
        self._prompt_tokens += prompt_tokens

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1

    def _end(self, ended: list[Ended], request_id: RequestId, outcome: str, error: str, now: float) -> None:
        request = self._running.pop(request_id, None)
        if request is None:
            return
        self._count(outcome)
        ended.append(
            Ended(
                request_id,
                outcome,
                error,
                request.prompt_tokens,
                request.tokens,
                request.prepared_s,
                request.first_token_s,
                now - request.arrived_at,
            )
        )

    def report(self, description: Mapping[str, Any]) -> FigureReport:
        """All counts since the start, and present figures.

        Args:
            description: the worker's own, see ``WorkerServer.description``.
        """
        counters = {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._completion_tokens}
        counters.update({name: int(description[name]) for name in ENGINE_COUNTERS if name in description})
        histograms = {name: Buckets(tuple(each.counts), each.total) for name, each in self._histograms.items()}
        gauges = {name: float(description[name]) for name in GAUGES if name in description}
        return FigureReport(dict(self._outcomes), counters, histograms, gauges)


def _only_failure(action: Action) -> Failed | None:
    """The failure that a refusal or an abort sends, which is always alone in its message."""
    if type(action) is Send and len(action.replies) == 1 and isinstance(reply := action.replies[0], Failed):
        return reply
    return None


def _outcome(finish_reason: str, error: SamplerPoolError | None) -> tuple[str, str]:
    return (finish_reason, "") if error is None else (type(error).__name__, error.message)
