"""Asking a pool's supervisor."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from samplerpool.client.admission import Admission
from samplerpool.client.following import described
from samplerpool.errors import SamplerPoolError, TransportError
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.messages import Describe, Description, Failed, Request
from samplerpool.wire.sockets import open_dealer

ANSWER_TIMEOUT_S = 3.0
FAR_TIMEOUT_S = 10.0
"""The same over a network."""


def ask_supervisor(
    connection: ConnectionFile, request: Request, timeout_s: float, *, pidfd: int | None = None
) -> dict[str, Any]:
    """Send one request to a pool's supervisor.

    Args:
        pidfd: of the supervisor's process, whose end is the end of waiting.

    Returns:
        The pool's description.

    Raises:
        AccessDenied: the pool does not know the client's key, or only its owner's may ask that.
        TransportError: no answer within ``timeout_s``, it is gone, or what listens there is not it.
        SamplerPoolError: the supervisor refused.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, open_dealer(context, connection.endpoint, connection.keys) as socket:
        admission = Admission(socket, connection, connection.endpoint) if connection.keys is not None else None
        try:
            socket.send(encode([request]))
            return _answer(connection, socket, admission, pidfd, timeout_s)
        finally:
            if admission is not None:
                admission.close()


def _answer(
    connection: ConnectionFile,
    socket: zmq.Socket[bytes],
    admission: Admission | None,
    pidfd: int | None,
    timeout_s: float,
) -> dict[str, Any]:
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    if pidfd is not None:
        poller.register(pidfd, zmq.POLLIN)
    if admission is not None:
        poller.register(admission.monitor, zmq.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        ready = dict(poller.poll(max(0, int(1000 * (deadline - time.monotonic())))))
        if socket in ready:
            return _facts(connection, socket.recv())
        if admission is not None and (refused := admission.look()) is not None:
            raise refused
        if not ready or pidfd in ready:
            where = f"pid {connection.supervisor.pid}" if connection.local else connection.endpoint
            text = f"The supervisor of pool {connection.pool!r} ({where}) did not answer within {timeout_s:g} s."
            raise TransportError(text)


def _facts(connection: ConnectionFile, data: bytes) -> dict[str, Any]:
    reply = next(iter(decode_replies(data)), None)
    if isinstance(reply, Description):
        return dict(reply.info)
    if isinstance(reply, Failed):
        raise SamplerPoolError.from_wire(reply.error, reply.message, dict(reply.data))
    raise TransportError(f"The supervisor of pool {connection.pool!r} answered with something else: {reply}.")


def from_afar(connection: ConnectionFile) -> ConnectionFile:
    """What a pool on another machine says of itself now: the file is a copy, and its workers may be others by now.

    Raises:
        TransportError: it lets nobody in from elsewhere, does not know us, or does not answer.
    """
    path = connection.endpoint.removeprefix("ipc://")
    if path != connection.endpoint and not Path(path).exists():
        raise TransportError(
            f"The pool {connection.pool!r} of host {connection.host!r} takes clients of its own machine alone. "
            "Launch it there with --listen tcp://HOST:PORT, and copy its connection file again."
        )
    if connection.keys is not None:
        connection = replace(connection, keys=connection.keys.complete())
    return described(connection, ask_supervisor(connection, Describe(1), FAR_TIMEOUT_S))
