"""The supervisor's control socket. Whatever arrives, it answers or drops, and harms nobody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import zmq

from samplerpool.errors import AccessDenied, ProtocolError, RequestError, SamplerPoolError, UsageError
from samplerpool.pool.keybook import KeyBook, KeyRequest
from samplerpool.wire.codec import decode_requests, encode
from samplerpool.wire.keys import OWNER
from samplerpool.wire.messages import (
    AddKey,
    Describe,
    Description,
    Failed,
    ListKeys,
    Malformed,
    Ping,
    Pong,
    Reply,
    Request,
    Restart,
    RevokeKey,
    Scale,
    Stop,
)
from samplerpool.wire.sockets import Router

Command = Stop | Restart | Scale
"""Requests that change the pool."""

MAX_CONTROL_BYTES = 1 << 20
_MESSAGES_PER_TURN = 100
_MAX_REQUESTS = 64


class ControlSocket:
    """Binds at once; the address is valid when the constructor returns.

    Args:
        endpoint: where to bind.
        incarnation: for ``Pong``.
        describe: gives the facts for a ``Description``.
        refusal: why a command cannot be carried out, if it cannot.
        keys: who may come in, where others can reach the address.

    Raises:
        StartFailed: the address cannot be listened on.
    """

    def __init__(
        self,
        endpoint: str,
        incarnation: str,
        describe: Callable[[], Mapping[str, Any]],
        refusal: Callable[[Command], SamplerPoolError | None],
        keys: KeyBook | None = None,
    ) -> None:
        self._incarnation = incarnation
        self._describe = describe
        self._refusal = refusal
        self._keys = keys
        self._router = Router(endpoint, keys.lock if keys is not None else None, {zmq.MAXMSGSIZE: MAX_CONTROL_BYTES})
        self.endpoint = self._router.endpoint
        door = self._router.door
        self.readable = [self._router.socket] if door is None else [self._router.socket, door]
        """``serve`` is to be called when one of these can be read."""

    def serve(self) -> list[Command]:
        """Answer what has arrived up to the first commands, and return those for the caller to carry out.

        The answer to a command is how things were before; whoever asks again finds it begun.
        """
        self._router.answer_door()
        commands: list[Command] = []
        for _ in range(_MESSAGES_PER_TURN):
            try:
                (identity, *parts), key = self._router.receive()
            except zmq.Again:
                break
            requests = decode_requests(parts[0]) if len(parts) == 1 else []
            if not 0 < len(requests) <= _MAX_REQUESTS:
                self._send(identity, [_failed(0, ProtocolError(f"Send one part with 1 to {_MAX_REQUESTS} requests."))])
                continue
            replies = [self._answer(request, key) for request in requests]
            commands += [
                request
                for request, reply in zip(requests, replies, strict=True)
                if isinstance(request, Command) and isinstance(reply, Description)
            ]
            self._send(identity, replies)
            if commands:
                break
        return commands

    def _answer(self, request: Request | Malformed, key: str) -> Reply:
        denied = self._denied(request, key)
        if denied is not None:
            return _failed(request.ping_id if isinstance(request, Ping) else request.request_id, denied)
        match request:
            case Describe(request_id):
                return Description(request_id, self._describe())
            case Stop(request_id) | Restart(request_id) | Scale(request_id):
                error = self._refusal(request)
                return Description(request_id, self._describe()) if error is None else _failed(request_id, error)
            case ListKeys() | AddKey() | RevokeKey():
                return self._answer_keys(request)
            case Ping(ping_id):
                return Pong(ping_id, self._incarnation, 0, ())
            case Malformed(request_id, reason):
                return _failed(request_id, ProtocolError(reason))
            case _:
                return _failed(request.request_id, RequestError("This is a pool's supervisor; send it to a worker."))

    def _denied(self, request: Request | Malformed, key: str) -> AccessDenied | None:
        """Why the holder of a key may not ask that, if he may not."""
        name = self._router.name_of(key)
        if name is None:  # it was known when the connection was made
            return AccessDenied("The pool does not know this key any more; its owner has revoked it.")
        if name != OWNER and isinstance(request, Command | KeyRequest):
            return AccessDenied(
                f"Only the owner's key may change the pool or see its keys; this is the key {name!r}. "
                "Use the pool's own connection file."
            )
        return None

    def _answer_keys(self, request: KeyRequest) -> Reply:
        if self._keys is None:
            error: SamplerPoolError = UsageError(
                "The pool listens on its own machine alone, so it has no keys. Launch it with --listen tcp://HOST:PORT."
            )
            return _failed(request.request_id, error)
        try:
            return Description(request.request_id, self._keys.carry_out(request))
        except UsageError as error:
            return _failed(request.request_id, error)
        except OSError as error:
            text = f"The keys cannot be written down, and are as they were: {error.strerror}."
            return _failed(request.request_id, RequestError(text))

    def _send(self, identity: bytes, replies: list[Reply]) -> None:
        try:
            self._router.socket.send_multipart([identity, encode(replies)], zmq.NOBLOCK)
        except (zmq.ZMQError, ProtocolError):
            pass  # it has gone, does not read, or asked for more than an envelope holds

    def close(self) -> None:
        """Give the last answers a moment to leave, then close. Idempotent."""
        self._router.close()


def _failed(request_id: int, error: SamplerPoolError) -> Failed:
    name, message, data = error.to_wire()
    return Failed(request_id, name, message, data)
