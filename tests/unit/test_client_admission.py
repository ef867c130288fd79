"""What the beginnings of a socket's connections mean to a client."""

from __future__ import annotations

import pytest
import zmq

from samplerpool.client.admission import Beginnings, refusal
from samplerpool.errors import AccessDenied, SamplerPoolError, TransportError
from samplerpool.wire.endpoint import ConnectionFile, ProcessId
from samplerpool.wire.keys import ClientKeys

CONNECTED, GREETED, GONE = zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED
AGAIN, DENIED = zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_HANDSHAKE_FAILED_AUTH
ODD, DUMB = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@pytest.mark.parametrize(
    ("events", "meanings"),
    [
        ([CONNECTED, GREETED], [None, None]),
        ([CONNECTED, GREETED, GONE, AGAIN, CONNECTED, GREETED], [None] * 6),  # a network that comes back
        ([CONNECTED, DENIED, GONE, AGAIN], [None, "unknown key", None, None]),
        ([CONNECTED, GONE, AGAIN], [None, "other keys", None]),
        ([CONNECTED, ODD], [None, "other keys"]),
        ([CONNECTED, DUMB], [None, "other keys"]),
        ([AGAIN, AGAIN], ["unreachable", "unreachable"]),
        ([CONNECTED, GREETED, GONE, AGAIN, AGAIN], [None, None, None, None, "unreachable"]),
    ],
)
def test_what_events_mean(events: list[int], meanings: list[str | None]) -> None:
    beginnings = Beginnings()
    assert [beginnings.feed(event) for event in events] == meanings


def test_each_says_what_was_wrong_and_what_to_do() -> None:
    keys = ClientKeys("s" * 40, "p" * 40, "x" * 40)
    pool = ConnectionFile("p", "m", "e", "running", ProcessId(0, 0), "tcp://h:1", keys=keys)
    unknown = refusal("unknown key", pool, "tcp://h:1")
    assert type(unknown) is AccessDenied
    assert f"does not know this key ({'p' * 40})" in unknown.message
    assert "samplerpool keys add" in unknown.message
    assert "x" * 40 not in unknown.message
    other, nobody = refusal("other keys", pool, "tcp://h:1"), refusal("unreachable", pool, "tcp://h:1")
    assert type(other) is type(nobody) is TransportError
    assert "copy its connection file again" in other.message
    assert "Nothing listens at tcp://h:1" in nobody.message


def test_the_error_survives_the_wire() -> None:
    assert type(SamplerPoolError.from_wire(*AccessDenied("no").to_wire())) is AccessDenied
