"""What a call ends with when it is not its worker that ends it."""

from __future__ import annotations

from samplerpool.client.response import Call
from samplerpool.errors import Aborted, AccessDenied, SamplerPoolError, TransportError, WorkerDied
from samplerpool.wire.endpoint import Ending


def closed(call: Call) -> SamplerPoolError:
    """The connection was closed."""
    return Aborted("The connection was closed by its owner.", text=call.text)


def broken(reason: str, call: Call) -> SamplerPoolError:
    """The connection itself failed."""
    return TransportError(reason, text=call.text)


def denied(error: AccessDenied, call: Call) -> SamplerPoolError:
    """The pool does not know our key any more."""
    return AccessDenied(error.message, text=call.text)


def died(pool: str, index: int, ending: Ending | None, call: Call) -> SamplerPoolError:
    """Its worker's process has ended.

    Args:
        pool: its name, for a hint.
        ending: the pool's word on it, where there is one.
    """
    received = f" after {len(call.token_ids)} tokens" if call.token_ids else ""
    how = f": it {ending.reason}" if ending else ""
    hint = f"samplerpool logs {pool} --worker {index}" if pool else "its log"
    known = {"requested": ending.requested, "reason": ending.reason} if ending else {}
    message = f"Worker {index} died while it worked on the request{received}{how} ({hint} says why)."
    return WorkerDied(message, worker=index, text=call.text, **known)


def unresponsive(index: int, call: Call) -> SamplerPoolError:
    """Its worker does not answer any more."""
    return WorkerDied(
        f"Worker {index} has not answered for a long time and counts as gone.", worker=index, text=call.text
    )
