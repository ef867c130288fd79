"""Serving a gateway until a signal: the running answers may end first, new ones are refused meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from samplerpool.config.wording import plural
from samplerpool.errors import UsageError
from samplerpool.gateway.app import application
from samplerpool.gateway.service import Gateway

_LAST_WORDS_S = 2
_KEEP_ALIVE_S = 75
_HEAD_S = 30.0
"""For the headers of a request, from their first byte, or the connection's beginning."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 means any that is free.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
        except BaseException:
            bound.close()
            raise
    except OSError as error:  # a name that is not known as well
        raise _cannot_serve(host, port, error) from error
    return bound


def start_listening(bound: socket.socket) -> None:
    """Let clients come.

    Raises:
        UsageError: another server has the address. Linux lets several be bound there until one listens.
    """
    try:
        bound.listen()
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise _cannot_serve(host, port, error) from error


def _cannot_serve(host: str, port: int, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(
        f"Nothing can be served at {host}, port {port}: {reason}. Give another one with --host and --port."
    )


def url_of(bound: socket.socket) -> str:
    """How a browser would write where a socket is bound."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(uvicorn.Server):
    """Leaves the signals to us: uvicorn would close at once, or wait without saying no to new requests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Connection(H11Protocol):
    """Closes a connection whose request does not come. uvicorn waits for it without an end, so that who opens enough of
    them, and sends nothing or a byte now and then, keeps all others out."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._no_longer()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # it has come, and is being answered
            self._no_longer()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(_HEAD_S, self._late)

    def _no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _late(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.close()


async def serve(gateway: Gateway, bound: socket.socket, drain_s: float, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second one skips the drain.

    Args:
        bound: see ``bound_socket``; closed at the end.
        drain_s: how long running answers may take to end then.
        say: gets a line when the end begins.
    """
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    config = uvicorn.Config(
        application(gateway),
        http=Connection,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = _Server(config)
    watching = asyncio.create_task(gateway.watch())
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        await _first(serving, signals)
        gateway.places.closed = True
        if taken := gateway.places.taken:
            say(f"Stopping: {plural(taken, 'answer')} in progress may take {drain_s:g} s more; Ctrl-C skips that.")
            await _first(asyncio.create_task(_drained(gateway)), signals, drain_s)
        gateway.stop_all()
        server.should_exit = True
        await serving
    finally:
        for task in (watching, serving):
            task.cancel()
        await asyncio.gather(watching, serving, return_exceptions=True)
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _first(task: asyncio.Task[None], signals: asyncio.Queue[int], timeout_s: float | None = None) -> None:
    """Until a task has ended, or a signal has come, or time is over."""
    told = asyncio.create_task(signals.get())
    await asyncio.wait({task, told}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()


async def _drained(gateway: Gateway) -> None:
    while gateway.places.taken:
        await asyncio.sleep(0.05)
