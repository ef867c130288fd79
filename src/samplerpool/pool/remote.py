"""A running pool from outside: ask its supervisor, and end it, by its control socket first, else by signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any, Literal

import zmq

from samplerpool.config.folders import runtime_folders
from samplerpool.errors import SamplerPoolError, TransportError
from samplerpool.pool.rules import LAST_CALL_S
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, connection_path, remove_leftovers
from samplerpool.wire.messages import Describe, Description, Failed, Restart, Scale, Stop

HowStopped = Literal["stopped", "terminated", "killed", "gone"]
"""On request, by SIGTERM, by SIGKILL, or it had ended before."""

ANSWER_TIMEOUT_S = 3.0
SLACK_S = 5.0
_LINGER_MS = 200


def ask_supervisor(
    connection: ConnectionFile,
    request: Describe | Stop | Restart | Scale,
    timeout_s: float,
    *,
    pidfd: int | None = None,
) -> dict[str, Any]:
    """Send one request to a pool's supervisor.

    Args:
        pidfd: of the supervisor's process, whose end is the end of waiting.

    Returns:
        The pool's description.

    Raises:
        TransportError: no answer within ``timeout_s``, or it is gone.
        SamplerPoolError: the supervisor refused.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.connect(connection.endpoint)
        socket.send(encode([request]))
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        if pidfd is not None:
            poller.register(pidfd, zmq.POLLIN)
        if socket not in dict(poller.poll(int(timeout_s * 1000))):
            raise TransportError(
                f"The supervisor of pool {connection.pool!r} (pid {connection.supervisor.pid}) "
                f"did not answer within {timeout_s:g} s."
            )
        reply = next(iter(decode_replies(socket.recv())), None)
    if isinstance(reply, Description):
        return dict(reply.info)
    if isinstance(reply, Failed):
        raise SamplerPoolError.from_wire(reply.error, reply.message, dict(reply.data))
    raise TransportError(f"The supervisor of pool {connection.pool!r} answered with something else: {reply}.")


# ---- its end ------------------------------------------------------------------------------------------------------


def stop_pool(connection: ConnectionFile, timeout_s: float) -> HowStopped:
    """End a pool, and return when nothing of it is left.

    Args:
        timeout_s: how long the workers may take to finish what they run.

    Raises:
        TransportError: it is on another machine and does not answer, or it cannot be ended.
    """
    if not connection.local:
        ask_supervisor(connection, Stop(1, timeout_s), ANSWER_TIMEOUT_S)
        return "stopped"
    with _watched(connection.supervisor) as supervisor:
        how = _end_supervisor(connection, supervisor, timeout_s)
    _end_workers(connection)
    for folder in runtime_folders():
        path = connection_path(folder, connection.pool)
        with contextlib.suppress(SamplerPoolError):
            if ConnectionFile.read(path).supervisor == connection.supervisor:
                remove_leftovers(path, connection)
    return how


def _end_supervisor(connection: ConnectionFile, supervisor: int | None, timeout_s: float) -> HowStopped:
    if supervisor is None:
        return "gone"
    patience = 0.0
    with contextlib.suppress(ProcessLookupError):  # one that Ctrl-Z has stopped in its terminal cannot answer
        signal.pidfd_send_signal(supervisor, signal.SIGCONT)
    with contextlib.suppress(TransportError):
        ask_supervisor(connection, Stop(1, timeout_s), ANSWER_TIMEOUT_S, pidfd=supervisor)
        patience = timeout_s + LAST_CALL_S + SLACK_S
    if _ended(supervisor, patience):  # also where it ended, for another reason, while it was asked
        return "stopped"
    steps: tuple[tuple[signal.Signals, HowStopped], ...] = (
        (signal.SIGTERM, "terminated"),
        (signal.SIGKILL, "killed"),
    )
    for signum, how in steps:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(supervisor, signum)
        if _ended(supervisor, SLACK_S):
            return how
    raise TransportError(f"The supervisor (pid {connection.supervisor.pid}) does not end, not even by SIGKILL.")


def _end_workers(connection: ConnectionFile) -> None:
    """Workers end by themselves without their supervisor; those that cannot any more are killed."""
    deadline = time.monotonic() + SLACK_S
    for worker in connection.workers:
        with _watched(worker.process) as process:
            if process is None or _ended(process, deadline - time.monotonic()):
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            _ended(process, SLACK_S)


@contextlib.contextmanager
def _watched(process: ProcessId) -> Iterator[int | None]:
    """A pidfd of just this process, or None if it is gone: its number may be another's by now."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (ProcessLookupError, ValueError, OSError):
        yield None
        return
    try:
        yield descriptor if process.alive() else None
    finally:
        os.close(descriptor)


def _ended(pidfd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0, int(timeout_s * 1000))))
