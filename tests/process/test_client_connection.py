"""``PoolConnection`` against a worker that is a bare socket in the test: whatever happens, every call ends."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from samplerpool.client.connection import Call, PoolConnection, WorkerAddress
from samplerpool.errors import Aborted, EngineError, TransportError, UsageError
from samplerpool.wire.codec import MAX_REQUESTS, decode_requests, encode
from samplerpool.wire.messages import ChatPrompt, Failed, Generate, Ping
from tests.process.conftest import DEADLINE_S


class BareWorker:
    """A ROUTER that answers only what the test tells it to."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        self._socket = socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        socket.bind(endpoint)

    def take(self) -> list[Any]:
        """Wait for a message that is no sign of life, and decode it."""
        while isinstance((messages := decode_requests(self._socket.recv_multipart()[1]))[0], Ping):
            pass
        return messages

    def answer(self, *replies: Any) -> None:
        """Wait for a message, and answer its sender."""
        identity, _ = self._socket.recv_multipart()
        self._socket.send_multipart([identity, encode(replies)])


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[BareWorker]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        yield BareWorker(socket, f"ipc://{tmp_path}/w.sock")


@pytest.fixture
def connection(worker: BareWorker, tmp_path: Path) -> Iterator[PoolConnection]:
    with PoolConnection([WorkerAddress(0, f"ipc://{tmp_path}/w.sock", "i")]) as connection:
        yield connection


def a_call(ended: queue.SimpleQueue[Call]) -> Call:
    return Call(ChatPrompt([]), stream=False, on_update=ended.put)


def test_an_error_with_any_data_ends_its_call_alone(connection: PoolConnection, worker: BareWorker) -> None:
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    connection.submit(0, [a_call(ended)])
    worker.answer(Failed(1, "EngineError", "broke", {"message": "odd", "self": 1}))
    error = ended.get(timeout=DEADLINE_S).error
    assert isinstance(error, EngineError)
    assert error.message == "broke"
    assert connection.workers()[0].up


def test_thousands_of_calls_come_in_messages_that_a_worker_takes(
    connection: PoolConnection, worker: BareWorker
) -> None:
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    calls = [a_call(ended) for _ in range(MAX_REQUESTS + 5)]
    connection.submit(0, calls)
    received = [worker.take(), worker.take()]
    assert [len(messages) for messages in received] == [MAX_REQUESTS, 5]
    assert all(isinstance(message, Generate) for messages in received for message in messages)
    connection.abort(calls)
    assert [len(worker.take()), len(worker.take())] == [MAX_REQUESTS, 5]


def test_a_caller_that_raises_does_not_end_the_calls_of_others(connection: PoolConnection, worker: BareWorker) -> None:
    def broken(call: Call) -> None:
        raise KeyError("broken")

    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    connection.submit(0, [Call(ChatPrompt([]), on_update=broken), a_call(ended)])
    worker.answer(Failed(1, "EngineError", "first"), Failed(2, "EngineError", "second"))
    assert isinstance(ended.get(timeout=DEADLINE_S).error, EngineError)


def test_a_call_that_is_submitted_while_the_connection_closes_ends(
    connection: PoolConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = connection._members.peers[0]
    reserve = peer.reserve

    def reserve_and_close(calls: Sequence[Call]) -> None:
        reserve(calls)
        connection.close()  # as another thread may, between the check and the command

    monkeypatch.setattr(peer, "reserve", reserve_and_close)
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    connection.submit(0, [a_call(ended)])
    assert isinstance(ended.get(timeout=DEADLINE_S).error, Aborted)


def test_a_fault_of_the_connection_itself_ends_its_calls(
    connection: PoolConnection, worker: BareWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(connection._members.peers[0], "receive", broken)
    ended: queue.SimpleQueue[Call] = queue.SimpleQueue()
    connection.submit(0, [a_call(ended)])
    worker.answer(Failed(1, "EngineError", "unread"))
    error = ended.get(timeout=DEADLINE_S).error
    assert isinstance(error, TransportError)
    assert "no more" in error.message
    with pytest.raises(UsageError, match="closed"):
        connection.submit(0, [a_call(ended)])
