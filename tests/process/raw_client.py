"""A client of its own making: a bare DEALER socket. As a program, one stream that says what it gets, line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import zmq

from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import WorkerEntry
from samplerpool.wire.messages import (
    ChatPrompt,
    Completed,
    Failed,
    Finished,
    Generate,
    Malformed,
    Ping,
    Pong,
    Reply,
    WireMessage,
)

DEADLINE_S = 60.0


class RawClient:
    """Sends what it is told, and reads only when it is told.

    Args:
        receive_high_water: messages that ZeroMQ takes without being asked.
    """

    def __init__(self, endpoint: str, incarnation: str = "", *, receive_high_water: int = 1000) -> None:
        self.incarnation = incarnation
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, receive_high_water)
        self._socket.setsockopt(zmq.SNDTIMEO, int(DEADLINE_S * 1000))
        self._socket.connect(endpoint)
        self._last_id = 0

    @classmethod
    def of(cls, worker: WorkerEntry, **options: Any) -> RawClient:
        """A client of a worker in the connection file."""
        return cls(worker.endpoint, worker.incarnation, **options)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Vanish without a word."""
        self._socket.close()
        self._context.term()

    def request(self, text: str, **changes: Any) -> Generate:
        """A new request with this user message."""
        self._last_id += 1
        prompt = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": text}]}])
        params = changes.pop("params", {"max_new_tokens": 1_000_000})
        return Generate(self._last_id, changes.pop("incarnation", self.incarnation), prompt, params, **changes)

    def send(self, *messages: WireMessage) -> None:
        """Send these as one message."""
        self._socket.send(encode(messages))

    def send_raw(self, *parts: bytes) -> None:
        """Send anything."""
        self._socket.send_multipart(parts)

    def drain(self) -> list[Reply | Malformed]:
        """What has come, without waiting."""
        found: list[Reply | Malformed] = []
        while self._socket.poll(0):
            found += decode_replies(self._socket.recv())
        return found

    def receive(self) -> list[Reply | Malformed]:
        """The replies of the next message."""
        assert self._socket.poll(int(DEADLINE_S * 1000)), "nothing came"
        return decode_replies(self._socket.recv())

    def until_ended(self, request_ids: Sequence[int]) -> dict[int, Failed | Finished | Completed]:
        """Read until all of these have ended; how each did."""
        ends: dict[int, Failed | Finished | Completed] = {}
        while not set(request_ids) <= set(ends):
            for reply in self.receive():
                if isinstance(reply, Failed | Finished | Completed):
                    assert reply.request_id not in ends or not reply.request_id, "a second end"
                    ends[reply.request_id] = reply
        return ends

    def wait_for_pong(self, ping_id: int = 1) -> Pong:
        """Ping, and read up to the answer: then all that was sent before has been taken."""
        self.send(Ping(ping_id))
        while True:
            for reply in self.receive():
                if isinstance(reply, Pong) and reply.ping_id == ping_id:
                    return reply


def main(endpoint: str, incarnation: str, text: str) -> None:
    """Ask for one answer, and ping; print the kind of each reply, of errors the class."""
    with RawClient(endpoint, incarnation) as client:
        client.send(client.request(text))
        while True:
            for reply in client.drain():
                print(reply.error if isinstance(reply, Failed) else type(reply).__name__, flush=True)
            time.sleep(0.1)
            client.send(Ping(1))


if __name__ == "__main__":
    main(*sys.argv[1:])
