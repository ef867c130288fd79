"""Every error that this package raises on purpose.

By whose fault it is::

    SamplerPoolError
    ├── UsageError                 the caller asked for something that cannot be (CLI exit code 2)
    │   ├── InvalidParameter       a sampling parameter or option with a value out of range
    │   ├── PoolNotFound           no such pool, or none or several running where just one was meant
    │   ├── PoolNameTaken          another supervisor holds the name
    │   ├── ModelNotFound          the model's path or hub id leads nowhere, or may not be read
    │   └── DataFileError          an input file that cannot be read at all
    ├── ProtocolError              a malformed frame, or one that breaks the protocol's order
    ├── TransportError             the peer cannot be reached, or refused
    │   ├── AccessDenied           the pool does not know the client's key, or the key may not do that
    │   └── RequestLost            one request, or its answer, did not arrive: send it again
    ├── RequestError               this one request failed; the worker lives
    │   ├── PromptTooLong          prompt (and the tokens asked for) exceed what the worker can hold
    │   ├── UnsupportedParameter   the engine cannot honour a parameter
    │   ├── BadRow                 a row of a data set that holds nothing to answer, or cannot be read
    │   │   └── TemplateError      a template or an expression cannot be applied to its columns
    │   ├── RenderError            the messages cannot be turned into a prompt
    │   ├── Aborted                the client, or the worker's end, cancelled it
    │   ├── EngineError            the engine raised while working on it
    │   └── Retryable              not at fault: send it again, elsewhere
    │       ├── WorkerDraining     the worker finishes what it has and takes nothing new
    │       ├── WrongIncarnation   meant for an earlier process on this socket
    │       ├── EngineBroken       a step of the engine raised, whosever fault that was
    │       ├── QueueFull          more requests than the worker's limits allow
    │       ├── LeaseExpired       the client was silent for too long
    │       └── ClientTooSlow      the client does not read what waits for it
    ├── WorkerError                the worker is gone
    │   ├── StartFailed            it never became ready
    │   ├── WorkerDied             it died while it had work
    │   └── RestartLimitReached    it died too often
    └── BatchError                 a batch run cannot go on
        ├── OutputExists           the output file is there already
        └── FingerprintMismatch    resuming with something changed

Each error carries its data as keyword arguments and survives the wire: ``to_wire`` and ``from_wire`` are inverse.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SamplerPoolError(Exception):
    """Base of all errors of this package.

    Args:
        message: a full sentence: what was wrong, with which value, and what to do.
        **data: values behind the sentence (msgpack-able), kept in ``self.data``.
    """

    by_name: ClassVar[dict[str, type[SamplerPoolError]]] = {}

    def __init_subclass__(cls) -> None:
        SamplerPoolError.by_name[cls.__name__] = cls

    def __init__(self, message: str, /, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__name__, self.message, self.data)

    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        """Class name, message and data, as they travel in a ``Failed`` frame."""
        return type(self).__name__, self.message, self.data

    @staticmethod
    def from_wire(name: str, message: str, data: dict[str, Any]) -> SamplerPoolError:
        """The error that ``to_wire`` described; an unknown name (a newer peer) becomes a ``RequestError``."""
        cls = SamplerPoolError.by_name.get(name)
        if cls is None:
            return RequestError(f"{name}: {message}", **data)
        return cls(message, **data)


def log_hint(error: BaseException) -> str:
    """Where to read more, to be shown behind the error's sentence: for faults of a worker, not of the request."""
    if isinstance(error, EngineError | EngineBroken) and (request := error.data.get("request")):
        return f" (request {request}; samplerpool logs may tell more)"
    return ""


def _rebuild(name: str, message: str, data: dict[str, Any]) -> SamplerPoolError:
    return SamplerPoolError.from_wire(name, message, data)


class UsageError(SamplerPoolError):
    """The caller asked for something that cannot be."""


class InvalidParameter(UsageError):
    """A parameter with a value out of range or of the wrong type."""


class PoolNotFound(UsageError):
    """No such pool, or not exactly one where one was meant."""


class PoolNameTaken(UsageError):
    """Another supervisor holds this pool's name."""


class ModelNotFound(UsageError):
    """The model's path or hub id leads nowhere, or may not be read."""


class DataFileError(UsageError):
    """An input file that cannot be read at all."""


class ProtocolError(SamplerPoolError):
    """A malformed frame, or one that breaks the protocol's order."""


class TransportError(SamplerPoolError):
    """The peer cannot be reached, or refused the connection."""


class AccessDenied(TransportError):
    """The pool does not know the client's key (any more), or only its owner's may do what was asked."""


class RequestLost(TransportError):
    """A request, or its answer, did not arrive; it may be sent again (``sent``: whether it had left this process)."""


class RequestError(SamplerPoolError):
    """One request failed; the worker lives."""


class PromptTooLong(RequestError):
    """Prompt and requested tokens exceed what the worker can hold (``prompt_tokens``, ``limit``)."""


class UnsupportedParameter(RequestError):
    """The engine or the model cannot honour a parameter (``parameter``; ``engine`` or ``vocab_size``)."""


class BadRow(RequestError):
    """A row of a data set that cannot be read, or holds no conversation to answer."""


class TemplateError(BadRow):
    """The prompt template, or the expression to select by, cannot be applied to a row's columns."""


class RenderError(RequestError):
    """The messages cannot be turned into a prompt."""


class Aborted(RequestError):
    """The request was cancelled."""


class EngineError(RequestError):
    """The engine raised while it worked on the request."""


class Retryable(RequestError):
    """Nothing is wrong with the request: it may be sent again, to this worker or another."""


class WorkerDraining(Retryable):
    """The worker finishes what it has and takes nothing new."""


class WrongIncarnation(Retryable):
    """The request was meant for an earlier process on this socket."""


class EngineBroken(Retryable):
    """A step of the engine raised, which ended all requests that it worked on."""


class QueueFull(Retryable):
    """The worker holds as much as its limits allow (``limited``: which of them; ``held``, ``limit``)."""


class LeaseExpired(Retryable):
    """The client was silent for longer than its lease."""


class ClientTooSlow(Retryable):
    """More waits for the client than the worker keeps, because it does not read (``bytes``, ``limit``)."""


class WorkerError(SamplerPoolError):
    """The worker is gone."""


class StartFailed(WorkerError):
    """A worker or a supervisor never became ready (``log_tail``)."""


class WorkerDied(WorkerError):
    """The worker died while it had work (``worker``, ``text`` received so far; where that is known, ``requested``: it
    was told to end, and ``reason``: how it ended, to go on after "it")."""


class RestartLimitReached(WorkerError):
    """A worker died too often in a short time."""


class BatchError(SamplerPoolError):
    """A batch run cannot go on."""


class OutputExists(BatchError):
    """The output file is there already."""


class FingerprintMismatch(BatchError):
    """A run cannot be resumed because something has changed."""
