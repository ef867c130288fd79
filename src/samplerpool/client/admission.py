"""Whether a pool lets a client in: what ZeroMQ tells of the beginnings of a socket's connections.

ZeroMQ itself tries for ever, also where it is refused; this is how a client hears of it at once.
"""

from __future__ import annotations

from typing import Literal

import zmq
from zmq.utils.monitor import recv_monitor_message

from samplerpool.errors import AccessDenied, TransportError
from samplerpool.wire.endpoint import ConnectionFile

Failure = Literal["unknown key", "other keys", "unreachable"]

_OTHER_PROTOCOL = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | _OTHER_PROTOCOL[0]
    | _OTHER_PROTOCOL[1]
)


class Beginnings:
    """Makes sense of a socket's events. Pure.

    A server that cannot read the first words of a handshake, because they were meant for another key, hangs up.
    """

    def __init__(self) -> None:
        self._begun = self._ended = False

    def feed(self, event: int) -> Failure | None:
        """What an event means, if it means that the client is not let in."""
        begun, self._begun = self._begun, event == zmq.EVENT_CONNECTED
        ended, self._ended = self._ended, event == zmq.EVENT_DISCONNECTED
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return "unknown key"
        if event in _OTHER_PROTOCOL or (event == zmq.EVENT_DISCONNECTED and begun):
            return "other keys"
        if event == zmq.EVENT_CONNECT_RETRIED and not ended:  # a connection that ends announces the next try as well
            return "unreachable"
        return None


class Admission:
    """Watches one socket. ``monitor`` can be read when there is something to ``look`` at."""

    def __init__(self, socket: zmq.Socket[bytes], pool: ConnectionFile, endpoint: str) -> None:
        self._socket = socket
        self._pool = pool
        self._endpoint = endpoint
        self._beginnings = Beginnings()
        self.monitor = socket.get_monitor_socket(_EVENTS)

    def look(self) -> TransportError | None:
        """Why the client is not let in, as far as is known by now."""
        error = None
        while self.monitor.poll(0):
            failure = self._beginnings.feed(int(recv_monitor_message(self.monitor)["event"]))
            if failure is not None and error is None:
                error = refusal(failure, self._pool, self._endpoint)
        return error

    def close(self) -> None:
        """Before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close()


def refusal(failure: Failure, pool: ConnectionFile, endpoint: str) -> TransportError:
    """The error that says so."""
    if failure == "unknown key":
        key = pool.keys.public if pool.keys is not None else ""
        return AccessDenied(
            f"The pool {pool.pool!r} at {endpoint} does not know this key ({key}): it was never added, or was revoked. "
            "Ask the pool's owner for a connection file (samplerpool keys add NAME > NAME.json).",
            public_key=key,
        )
    if failure == "other keys":
        return TransportError(
            f"What listens at {endpoint} is not the pool {pool.pool!r} of this connection file: it has another key, or "
            "none. A pool that is launched anew has new keys; copy its connection file again."
        )
    return TransportError(
        f"Nothing listens at {endpoint}: the pool {pool.pool!r} has ended, or a network or firewall is in the way, or "
        "the name leads elsewhere from here (samplerpool launch --advertise HOST)."
    )
