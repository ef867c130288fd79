"""The one place that makes ZeroMQ sockets, with a lock on every one that can be reached from outside.

``ipc://`` sockets lie in a private folder, which is their lock. ``tcp://`` sockets are encrypted with CURVE, and let in
only whom a ``Router`` knows; neither end makes one without keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import zmq
from zmq.utils import z85

from samplerpool.errors import StartFailed, TransportError
from samplerpool.wire.codec import MAX_MESSAGE_BYTES
from samplerpool.wire.keys import OWNER, ClientKeys, KeyRing, Lock

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

LINGER_MS = 500
MAX_SOCKETS = 16_384
"""Of a client, one for each worker. ZeroMQ's own figure is 1,023; a place costs 8 bytes."""
_RECONNECT_MOST_MS = 2000
_KEEPALIVE = {zmq.TCP_KEEPALIVE: 1, zmq.TCP_KEEPALIVE_IDLE: 30, zmq.TCP_KEEPALIVE_INTVL: 10, zmq.TCP_KEEPALIVE_CNT: 3}
"""A peer that vanished from the network is noticed by the kernel, which also answers for a process that is stopped."""
_LOCAL = ("ipc://", "inproc://")
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"samplerpool"
_MECHANISM = b"CURVE"


def client_context() -> Context:
    """A context with room for the sockets of all workers of a large pool."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return context


def open_dealer(context: Context, endpoint: str, keys: ClientKeys | None = None) -> Socket:
    """A socket that is connected to a worker or a supervisor.

    Args:
        keys: required for ``tcp://``.

    Raises:
        TransportError: no keys, no secret key, or an address that cannot be.
    """
    if not endpoint.startswith(_LOCAL):
        if keys is None:
            raise TransportError(f"The connection file has no keys for {endpoint}; copy the pool's own file again.")
        keys = keys.complete()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        if keys is not None:
            _prepare_tcp(socket, endpoint)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MOST_MS)
            socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise TransportError(f"{endpoint!r} cannot be connected to: {os.strerror(error.errno or 0)}.") from error
    return socket


def _prepare_tcp(socket: Socket, endpoint: str) -> None:
    for option, value in _KEEPALIVE.items():
        socket.setsockopt(option, value)
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)


class Router:
    """A ROUTER that clients come to, with a context of its own; behind a lock if it is reached over a network.

    Args:
        endpoint: where to bind; ``endpoint`` tells where it was bound, with the port that was found for
            ``tcp://HOST:*``.
        lock: required for ``tcp://``.
        options: further ones of the socket.

    Raises:
        StartFailed: the address cannot be listened on.
    """

    def __init__(self, endpoint: str, lock: Lock | None, options: Mapping[zmq.SocketOption, int]) -> None:
        self._context: Context = zmq.Context()
        self._ring = lock.ring if lock is not None else None
        self._doorkeeper = _Doorkeeper(self._context, lock.ring) if lock is not None else None
        try:
            self.socket = _bind_router(self._context, endpoint, lock, options)
        except BaseException:
            self._close_context()
            raise
        self.endpoint = bytes(self.socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    @property
    def door(self) -> Socket | None:
        """Where there is one, ``answer_door`` is to be called when it can be read."""
        return None if self._doorkeeper is None else self._doorkeeper.socket

    def answer_door(self) -> None:
        """Let in those who knock, and are known."""
        if self._doorkeeper is not None:
            self._doorkeeper.serve()

    def receive(self) -> tuple[list[bytes], str]:
        """A message's parts, the client's routing id first, without waiting; and the client's public key, if any.

        Raises:
            zmq.Again: there is none.
        """
        if self._ring is None:
            return self.socket.recv_multipart(zmq.DONTWAIT), ""
        frames = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
        return [frame.bytes for frame in frames], str(frames[-1].get("User-Id"))

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None if it is not known (any more). Without a lock whoever comes is the owner."""
        return OWNER if self._ring is None else self._ring.name_of(key)

    def keys_changed(self) -> bool:
        """Look at the known keys; whether they are others than before."""
        return self._ring is not None and self._ring.refresh()

    def close(self) -> None:
        """Give what was sent last a moment to leave, then close. Idempotent."""
        self.socket.close()
        self._close_context()

    def _close_context(self) -> None:
        if self._doorkeeper is not None:
            self._doorkeeper.close()
        self._context.term()


def _bind_router(context: Context, endpoint: str, lock: Lock | None, options: Mapping[zmq.SocketOption, int]) -> Socket:
    socket = context.socket(zmq.ROUTER)
    try:
        for option, value in {zmq.LINGER: LINGER_MS, **options}.items():
            socket.setsockopt(option, value)
        if not endpoint.startswith(_LOCAL):
            if lock is None:
                raise StartFailed(f"The socket {endpoint} would be open to everybody; it needs keys.")
            _prepare_tcp(socket, endpoint)
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, lock.secret.encode())
            socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a doorkeeper nobody comes in, rather than everybody
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise StartFailed(f"The address {endpoint} cannot be listened on: {os.strerror(error.errno or 0)}.") from error
    except BaseException:
        socket.close()
        raise
    return socket


class _Doorkeeper:
    """Tells ZeroMQ whether a client's key is known (its authentication protocol, RFC 27), for all of one context.

    It must be there before the sockets that it guards.
    """

    def __init__(self, context: Context, ring: KeyRing) -> None:
        self._ring = ring
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP_ADDRESS)

    def serve(self) -> None:
        """Answer what is asked, as the keys are now."""
        while True:
            try:
                question = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._ring.refresh()
            self.socket.send_multipart(zap_answer(question, self._ring))

    def close(self) -> None:
        """Let nobody in any more."""
        self.socket.close()


def zap_answer(question: list[bytes], ring: KeyRing) -> list[bytes]:
    """The answer to one question of ZeroMQ's: 200 with the key as the user's id for one that is known, else 400."""
    version, request_id, _domain, _address, _identity, mechanism, *credentials = question
    if mechanism == _MECHANISM and len(credentials) == 1 and len(credentials[0]) == 32:
        key: bytes = z85.encode(credentials[0])
        if ring.name_of(key.decode()) is not None:
            return [version, request_id, b"200", b"OK", key, b""]
    return [version, request_id, b"400", b"Unknown key", b"", b""]
