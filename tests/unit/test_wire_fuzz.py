"""The codec and the worker's request table under a hundred thousand broken messages."""

from __future__ import annotations

import random
import typing

from samplerpool.config.arguments import ClientLimits
from samplerpool.types import PromptCount, RenderedPrompt
from samplerpool.wire.codec import decode_replies, decode_requests, encode
from samplerpool.wire.messages import (
    Accepted,
    Completed,
    Counted,
    Finished,
    Generate,
    Malformed,
    Rendered,
    Reply,
    Request,
    TokenPrompt,
    Tokens,
)
from samplerpool.worker.session import Send, Session, Submit
from tests.garbage import Garbage

REQUESTS = typing.get_args(Request)
REPLIES = typing.get_args(Reply)


def test_a_hundred_thousand_broken_messages_are_taken_or_refused_and_never_raise() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    table = Session("i", ClientLimits(max_queue_per_client=100))
    well_formed = 0
    for number, data in enumerate(Garbage(seed).messages(100_000)):
        try:
            messages = decode_requests(data)
            table.received(b"client", messages, now=0.0)
        except Exception as error:
            raise AssertionError(f"message {number} of seed {seed}, {data!r}") from error
        taken = [message for message in messages if not isinstance(message, Malformed)]
        assert all(isinstance(message, REQUESTS) for message in taken), (seed, number)
        if taken:
            assert len(encode(taken)) > 0, (seed, number)
        well_formed += bool(taken)
    assert 5_000 < well_formed < 60_000, seed
    assert 0 < table.live <= 100, seed


def test_a_client_bears_whatever_a_worker_sends() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    dice = random.Random(seed)
    good = encode(
        [
            Accepted(1, [5, 6], 42),
            Tokens(1, 0, [7, 8], "ab"),
            Finished(1, "stop", 2, 2),
            Completed(2, "stop", 2, 1, 42, "ab"),
            Rendered(4, RenderedPrompt([5, 6], ["a", "<0xE2>"])),
            Counted(3, PromptCount(2, 5, 9, [("<eos>", "message 1 (user)")])),
        ]
    )
    for number in range(20_000):
        data = bytearray(good)
        for _ in range(dice.choice((1, 2, 5))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            messages = decode_replies(bytes(data))
        except Exception as error:
            raise AssertionError(f"message {number} of seed {seed}, {bytes(data)!r}") from error
        assert all(isinstance(message, (*REPLIES, Malformed)) for message in messages), (seed, number)


def test_broken_messages_of_one_client_cost_another_nothing() -> None:
    table = Session("i")
    request = Generate(1, "i", TokenPrompt([1]), {})
    assert table.received(b"honest", [request], now=0.0) == [Submit((1, 1), request)]
    for data in Garbage(7).messages(2_000):
        for action in table.received(b"hostile", decode_requests(data), now=0.0):
            assert not isinstance(action, Send) or action.identity == b"hostile"
            assert getattr(action, "key", (2, 0))[0] == 2
