"""The gateway's figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from samplerpool.wire.figures import BOUNDS, FIRST_TOKEN_S

_PREFIX = "samplerpool_gateway_"
_DURATIONS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


class Figures:
    """Counts and times of the requests for answers. The label ``endpoint`` is ``chat`` or ``completions``.

    Args:
        limit: places for answers.
    """

    def __init__(self, limit: int) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Ended requests, by how: answered, disconnected, or an error's code.",
            ("endpoint", "outcome"),
            registry=registry,
        )
        self._first_token = Histogram(
            f"{_PREFIX}time_to_first_token_seconds",
            "From a request's arrival to the first text of an answer.",
            ("endpoint",),
            buckets=BOUNDS[FIRST_TOKEN_S],
            registry=registry,
        )
        self._duration = Histogram(
            f"{_PREFIX}request_duration_seconds",
            "From a request's arrival to its end, of those that were answered.",
            ("endpoint",),
            buckets=_DURATIONS_S,
            registry=registry,
        )
        self._prompt = self._tokens("prompt_tokens", "Tokens of the prompts that were answered.")
        self._completion = self._tokens("completion_tokens", "Tokens of whole answers.")
        self._in_flight = Gauge(f"{_PREFIX}answers_in_flight", "Answers in progress.", registry=registry)
        Gauge(f"{_PREFIX}answers_limit", "Places for answers in progress.", registry=registry).set(limit)

    def _tokens(self, name: str, text: str) -> Counter:
        return Counter(f"{_PREFIX}{name}", text, ("endpoint",), registry=self._registry)

    def in_flight(self, answers: int) -> None:
        """So many answers are in progress."""
        self._in_flight.set(answers)

    def ended(self, endpoint: str, outcome: str, duration_s: float, first_token_s: float | None) -> None:
        """A request has ended, whether it was answered or not."""
        self._requests.labels(endpoint, outcome).inc()
        if first_token_s is not None:
            self._first_token.labels(endpoint).observe(first_token_s)
        if outcome == ANSWERED:
            self._duration.labels(endpoint).observe(duration_s)

    def tokens(self, endpoint: str, prompt: int, completion: int) -> None:
        """Tokens of a request that was answered."""
        self._prompt.labels(endpoint).inc(prompt)
        self._completion.labels(endpoint).inc(completion)

    def told(self, accept: str) -> tuple[bytes, str]:
        """All of them now, in the form that a scraper accepts, and that form's media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


ANSWERED = "answered"
DISCONNECTED = "disconnected"
