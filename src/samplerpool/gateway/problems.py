"""What a client is told when it gets no answer: a status, and an error object as OpenAI's interface has it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from samplerpool.errors import (
    EngineError,
    PromptTooLong,
    ProtocolError,
    QueueFull,
    RequestError,
    Retryable,
    SamplerPoolError,
    TransportError,
    UnsupportedParameter,
    UsageError,
    WorkerError,
)

FAULT_OF_CLIENT = "invalid_request_error"
OVERLOAD = "rate_limit_error"
FAULT_OF_SERVER = "server_error"
MAX_CHARS = 2000
"""Of a message: a request of megabytes must not be answered with as many."""


@dataclass(frozen=True)
class Problem:
    """Why there is no answer, or none any more.

    Args:
        status: of the HTTP response, as long as none has begun.
        message: a full sentence; of a very long one (some quote what was given) clients get the beginning.
        code: a word for programs, which is also the outcome in the figures.
        param: the field of the request that is meant.
        headers: that go with the status.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Whose fault it is, as OpenAI's interface says it."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return OVERLOAD
        return FAULT_OF_SERVER if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else FAULT_OF_CLIENT

    def body(self) -> dict[str, Any]:
        """The error object."""
        message = self.message if len(self.message) <= MAX_CHARS else f"{self.message[:MAX_CHARS]} ..."
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}


def too_busy(message: str, retry_after_s: int) -> Problem:
    """There is no place now; there may be one in so many seconds."""
    return Problem(429, message, "rate_limit_exceeded", headers={"Retry-After": str(retry_after_s)})


def unavailable(message: str, retry_after_s: int = 5) -> Problem:
    """Nobody is there to answer; that may change."""
    return Problem(503, message, "unavailable", headers={"Retry-After": str(retry_after_s)})


def problem_of(error: Exception, retry_after_s: int = 1, prompt: str = "messages") -> Problem:
    """What an error of this package's comes to.

    Args:
        retry_after_s: when to try again, where the pool is full.
        prompt: the field that the prompt came in.
    """
    match error:
        case QueueFull():
            return too_busy(error.message, retry_after_s)
        case PromptTooLong():
            return Problem(400, error.message, "context_length_exceeded", prompt)
        case UnsupportedParameter():
            return Problem(400, error.message, "unsupported_parameter", _text(error.data.get("parameter")))
        case ProtocolError() if "bytes" in error.data:  # what was to be sent cannot be, for its size
            return Problem(413, error.message, "too_large", prompt)
        case EngineError():
            return Problem(500, error.message, "engine_error")
        case Retryable() | WorkerError() | TransportError():
            return unavailable(error.message)
        case RequestError() | UsageError():
            return Problem(400, error.message, "invalid_value", _text(error.data.get("param")))
        case SamplerPoolError():
            return Problem(500, error.message, "internal_error")
        case _:
            return Problem(500, "The server has failed at this request; its log says more.", "internal_error")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
