"""The sockets of the gateway: addresses that others have, and requests that do not come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from samplerpool.errors import UsageError
from samplerpool.gateway import server
from samplerpool.gateway.server import Connection, bound_socket, start_listening

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
DEADLINE_S = 30.0


def test_of_two_that_start_at_an_address_the_later_one_is_told() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bound_socket("127.0.0.1", port) as second:
            start_listening(first)
            with pytest.raises(UsageError, match=rf"at 127\.0\.0\.1, port {port}: .*in use"):
                start_listening(second)
        with pytest.raises(UsageError, match="in use"):
            bound_socket("127.0.0.1", port)


async def test_a_connection_without_a_request_is_closed_and_one_with_an_answer_to_wait_for_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 0.05)
    go = asyncio.Event()

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(answers, http=Connection, lifespan="off", ws="none", log_config=None, timeout_keep_alive=75)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    async with listening, asyncio.timeout(DEADLINE_S):
        port = listening.sockets[0].getsockname()[1]
        waiting, slow, silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        waiting[1].write(GET + b"\r\n")
        slow[1].write(GET)
        for reader, _ in (slow, silent):
            assert await reader.read() == b""
        go.set()
        assert (await waiting[0].readline()).startswith(b"HTTP/1.1 200")
        await waiting[0].readuntil(b"\r\n\r\n")
        waiting[1].write(GET + b"\r\n")
        assert (await waiting[0].readline()).startswith(b"HTTP/1.1 200")
        await waiting[0].readuntil(b"\r\n\r\n")
        waiting[1].write(GET)  # after an answer as well
        assert await waiting[0].read() == b""
        for _, writer in (waiting, slow, silent):
            writer.close()
