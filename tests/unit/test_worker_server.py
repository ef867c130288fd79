"""What the worker's server makes of replies that cannot be sent. (Its socket is tested with real processes.)"""

from __future__ import annotations

import pytest

from samplerpool.wire import codec
from samplerpool.wire.codec import decode_replies
from samplerpool.wire.messages import Failed, Finished, Tokens
from samplerpool.worker.server import _pack


def test_a_reply_that_cannot_be_sent_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 1000)
    good = [Tokens(1, 0, [5], "a"), Finished(1, "stop", 1, 1)]
    assert decode_replies(_pack(good)) == good
    huge = Failed(2, "RenderError", "x" * 2000)
    surrogate = Finished(3, "stop", 1, 1, {"role": "assistant", "content": [{"type": "text", "value": "\ud800"}]})
    first, second, *rest = decode_replies(_pack([huge, surrogate, *good]))
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert [(reply.request_id, reply.error) for reply in (first, second)] == [
        (2, "ProtocolError"),
        (3, "ProtocolError"),
    ]
    assert rest == good
