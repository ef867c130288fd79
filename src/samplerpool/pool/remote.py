"""The end of a running pool from outside: by its control socket first, else, on its own machine, by signals."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Literal

from samplerpool.client.supervisor import ANSWER_TIMEOUT_S, FAR_TIMEOUT_S, ask_supervisor
from samplerpool.config.folders import runtime_folders
from samplerpool.errors import SamplerPoolError, TransportError
from samplerpool.pool.rules import LAST_CALL_S
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, connection_path, remove_leftovers
from samplerpool.wire.messages import Describe, Stop

HowStopped = Literal["stopped", "terminated", "killed", "gone"]
"""On request, by SIGTERM, by SIGKILL, or it had ended before."""

SLACK_S = 5.0
_POLL_S = 0.2


def stop_pool(connection: ConnectionFile, timeout_s: float) -> HowStopped:
    """End a pool, and return when nothing of it is left.

    Args:
        timeout_s: how long the workers may take to finish what they run.

    Raises:
        AccessDenied: it is on another machine, and the connection file is not its owner's.
        TransportError: it is on another machine and does not answer, or it cannot be ended.
    """
    if not connection.local:
        ask_supervisor(connection, Stop(1, timeout_s), FAR_TIMEOUT_S)
        _wait_for_silence(connection, timeout_s + LAST_CALL_S + SLACK_S)
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


def _wait_for_silence(connection: ConnectionFile, timeout_s: float) -> None:
    """Until a supervisor on another machine has closed its socket."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            ask_supervisor(connection, Describe(1), ANSWER_TIMEOUT_S)
        except TransportError:
            return
        time.sleep(_POLL_S)
    raise TransportError(f"The pool {connection.pool!r} was told to stop, and still answers after {timeout_s:g} s.")


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
