"""The supervisor's control socket. Whatever arrives, it answers or drops, and harms nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import zmq

from samplerpool.errors import ProtocolError, RequestError, SamplerPoolError
from samplerpool.wire.codec import decode_requests, encode
from samplerpool.wire.messages import (
    Describe,
    Description,
    Failed,
    Malformed,
    Ping,
    Pong,
    Reply,
    Request,
    Restart,
    Scale,
    Stop,
)

Command = Stop | Restart | Scale
"""Requests that change the pool."""

MAX_CONTROL_BYTES = 1 << 20
_LINGER_MS = 500
_MESSAGES_PER_TURN = 100
_MAX_REQUESTS = 64


class ControlSocket:
    """Binds at once; the address is valid when the constructor returns.

    Args:
        endpoint: where to bind.
        incarnation: for ``Pong``.
        describe: gives the facts for a ``Description``.
        refusal: why a command cannot be carried out, if it cannot.
    """

    def __init__(
        self,
        endpoint: str,
        incarnation: str,
        describe: Callable[[], Mapping[str, Any]],
        refusal: Callable[[Command], SamplerPoolError | None],
    ) -> None:
        self._incarnation = incarnation
        self._describe = describe
        self._refusal = refusal
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
        try:
            self.socket.bind(endpoint)
        except BaseException:
            self.close()
            raise

    def serve(self) -> list[Command]:
        """Answer what has arrived up to the first commands, and return those for the caller to carry out.

        The answer to a command is how things were before; whoever asks again finds it begun.
        """
        commands: list[Command] = []
        for _ in range(_MESSAGES_PER_TURN):
            try:
                identity, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            requests = decode_requests(parts[0]) if len(parts) == 1 else []
            if not 0 < len(requests) <= _MAX_REQUESTS:
                self._send(identity, [_failed(0, ProtocolError(f"Send one part with 1 to {_MAX_REQUESTS} requests."))])
                continue
            replies = [self._answer(request) for request in requests]
            commands += [
                request
                for request, reply in zip(requests, replies, strict=True)
                if isinstance(request, Command) and isinstance(reply, Description)
            ]
            self._send(identity, replies)
            if commands:
                break
        return commands

    def _answer(self, request: Request | Malformed) -> Reply:
        match request:
            case Describe(request_id):
                return Description(request_id, self._describe())
            case Stop(request_id) | Restart(request_id) | Scale(request_id):
                error = self._refusal(request)
                return Description(request_id, self._describe()) if error is None else _failed(request_id, error)
            case Ping(ping_id):
                return Pong(ping_id, self._incarnation, 0, ())
            case Malformed(request_id, reason):
                return _failed(request_id, ProtocolError(reason))
            case _:
                return _failed(request.request_id, RequestError("This is a pool's supervisor; send it to a worker."))

    def _send(self, identity: bytes, replies: list[Reply]) -> None:
        try:
            self.socket.send_multipart([identity, encode(replies)], zmq.NOBLOCK)
        except (zmq.ZMQError, ProtocolError):
            pass  # it has gone, does not read, or asked for more than an envelope holds

    def close(self) -> None:
        """Give the last answers a moment to leave, then close. Idempotent."""
        self.socket.close()
        self._context.term()


def _failed(request_id: int, error: SamplerPoolError) -> Failed:
    name, message, data = error.to_wire()
    return Failed(request_id, name, message, data)
