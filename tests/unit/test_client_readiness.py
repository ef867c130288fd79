"""Sockets tell once that something has come; ``Readiness`` must not miss it, whatever was done to them meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from samplerpool.client.readiness import Readiness

PATIENCE_S = 5.0
A_MOMENT_S = 0.05


class Pair:
    """A router and a dealer that is connected to it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: Path, high_water: int = 1000) -> None:
        self.router, self.dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        self.router.setsockopt(zmq.RCVHWM, high_water)
        self.dealer.setsockopt(zmq.SNDHWM, high_water)
        self.router.bind(f"ipc://{path}")
        self.dealer.connect(f"ipc://{path}")
        self.dealer.send(b"here")
        self.identity = self.router.recv_multipart()[0]

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.router.send_multipart([self.identity, b"answer"])

    def drain(self) -> int:
        count = 0
        while True:
            try:
                self.dealer.recv(zmq.DONTWAIT)
            except zmq.Again:
                return count
            count += 1


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tmp_path: Path) -> Iterator[MakePair]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pairs: list[Pair] = []

    def make(high_water: int = 1000) -> Pair:
        pairs.append(Pair(context, tmp_path / str(len(pairs)), high_water))
        return pairs[-1]

    yield make
    context.destroy(linger=0)


def await_messages(readiness: Readiness, pairs: dict[object, Pair], wanted: int) -> dict[object, int]:
    """Drain whoever is ready until so many messages have come or none comes any more."""
    got: dict[object, int] = {}
    while sum(got.values()) < wanted:
        ready = readiness.wait(PATIENCE_S)
        assert ready, f"nothing is ready, and {wanted} messages were sent; got {got}"
        for name in ready:
            got[name] = got.get(name, 0) + pairs[name].drain()
    return got


def test_tells_who_has_something_and_nobody_else(make_pair: MakePair) -> None:
    pairs: dict[object, Pair] = {number: make_pair() for number in range(8)}
    readiness = Readiness()
    for name, pair in pairs.items():
        readiness.watch(name, pair.dealer)
    for round_ in range(50):
        chosen = {round_ % 8, (3 * round_) % 8}
        for name in chosen:
            pairs[name].answer(2)
        got = await_messages(readiness, pairs, 2 * len(chosen))
        assert got == dict.fromkeys(chosen, 2)
    assert readiness.wait(A_MOMENT_S) == set()


def test_what_came_before_it_was_watched_is_told(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.answer()
    assert pair.dealer.poll(1000 * PATIENCE_S) == zmq.POLLIN  # and the socket has said so, once
    readiness = Readiness()
    readiness.watch("it", pair.dealer)
    assert readiness.wait(PATIENCE_S) == {"it"}


def test_sending_cannot_hide_what_came_meanwhile(make_pair: MakePair) -> None:
    pair = make_pair()
    readiness = Readiness()
    readiness.watch("it", pair.dealer)
    assert readiness.wait(A_MOMENT_S) == set()
    pair.answer()
    assert pair.dealer.poll(1000 * PATIENCE_S) == zmq.POLLIN  # as a send may: the descriptor is quiet now
    assert readiness.wait(A_MOMENT_S) == set()
    readiness.touched("it", pair.dealer)
    assert readiness.wait(PATIENCE_S) == {"it"}


def test_a_socket_that_takes_messages_again_is_told_to_who_waits_to_send(make_pair: MakePair) -> None:
    pair = make_pair(high_water=1)
    readiness = Readiness()
    readiness.watch("it", pair.dealer)
    data = b"x" * 1_000_000  # more than the system's buffers hold
    sent = 0
    while pair.dealer.getsockopt(zmq.EVENTS) & zmq.POLLOUT:  # type: ignore[operator]
        pair.dealer.send(data, zmq.DONTWAIT)
        sent += 1
    for _ in range(sent):
        readiness.touched("it", pair.dealer, waiting_to_send=True)
        pair.router.recv_multipart()
        assert readiness.wait(PATIENCE_S) == {"it"}
        if pair.dealer.getsockopt(zmq.EVENTS) & zmq.POLLOUT:  # type: ignore[operator]
            break
    pair.dealer.send(data, zmq.DONTWAIT)


def test_descriptors_are_told_as_long_as_they_can_be_read() -> None:
    reader, writer = os.pipe()
    readiness = Readiness()
    readiness.watch("pipe", reader)
    assert readiness.wait(A_MOMENT_S) == set()
    os.write(writer, b"x")
    assert readiness.wait(PATIENCE_S) == readiness.wait(PATIENCE_S) == {"pipe"}
    readiness.unwatch("pipe")
    readiness.unwatch("pipe")
    assert readiness.wait(A_MOMENT_S) == set()
    readiness.close()
    os.close(reader)
    os.close(writer)
