"""Waiting for many sockets at a cost that grows with those that have something to say, not with all there are."""

from __future__ import annotations

import select
from typing import Any

import zmq


class Readiness:
    """See the module's docstring. All of it belongs to one thread.

    ZeroMQ's own poller asks every socket several times a wait. Here the system waits for the descriptors by which
    sockets say that something has become of them (``ZMQ_FD`` of ``zmq_getsockopt(3)``). They say it once, to whoever
    does anything with the socket next. Hence two rules: who is told that a socket is ready receives until nothing is
    left, or calls ``touched``; and who has sent something calls ``touched``, upon which the socket is asked.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._names: dict[int, object] = {}
        self._touched: dict[object, tuple[zmq.Socket[Any], int]] = {}

    def watch(self, name: object, source: zmq.Socket[Any] | int) -> None:
        """Have ``wait`` tell the name when its socket or descriptor has something to say."""
        descriptor = source if isinstance(source, int) else source.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        self._names[descriptor] = name
        self._poll.register(descriptor, select.EPOLLIN)
        if not isinstance(source, int):
            self.touched(name, source)

    def unwatch(self, name: object) -> None:
        """Before it is closed; no matter if it is not watched."""
        self._touched.pop(name, None)
        for descriptor in [d for d, known in self._names.items() if known == name]:
            del self._names[descriptor]
            self._poll.unregister(descriptor)

    def touched(self, name: object, socket: zmq.Socket[Any], *, waiting_to_send: bool = False) -> None:
        """A socket was used, and may have had something to say that is lost now; so ask it before the next wait.

        Args:
            waiting_to_send: it is ready as well when it takes a message again.
        """
        self._touched[name] = socket, zmq.POLLIN | zmq.POLLOUT if waiting_to_send else zmq.POLLIN

    def wait(self, longest_s: float) -> set[object]:
        """The names of those that are ready, if need be after waiting for one. Some may turn out to have nothing."""
        ready = {name for name, (socket, events) in self._touched.items() if _events(socket) & events}
        self._touched.clear()
        for descriptor, _ in self._poll.poll(0.0 if ready else max(0.0, longest_s)):
            ready.add(self._names[descriptor])
        return ready

    def close(self) -> None:
        """Watch nothing any more."""
        self._poll.close()


def _events(socket: zmq.Socket[Any]) -> int:
    events = socket.getsockopt(zmq.EVENTS)
    assert isinstance(events, int)
    return events
