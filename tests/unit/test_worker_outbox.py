"""What waits for a slow client joins up, in order, in messages of bounded size."""

from __future__ import annotations

from samplerpool.types import Message, TokenLogprobs
from samplerpool.wire.messages import Accepted, Failed, Finished, Reply, Tokens
from samplerpool.worker.outbox import MAX_WEIGHT, Outbox


def contents(outbox: Outbox) -> list[Reply]:
    return [reply for batch in outbox.batches() for reply in batch]


def test_tokens_of_a_request_join() -> None:
    outbox = Outbox()
    for reply in (
        Accepted(1, [9], 0),
        Tokens(1, 0, [1], "a"),
        Tokens(2, 0, [7], "x"),
        Tokens(1, 1, (2, 3), "bc"),
        Finished(1, "stop", 1, 3),
        Tokens(2, 1, [8], "y"),
    ):
        outbox.extend([reply])
    assert contents(outbox) == [
        Accepted(1, [9], 0),
        Tokens(1, 0, [1, 2, 3], "abc"),
        Tokens(2, 0, [7, 8], "xy"),
        Finished(1, "stop", 1, 3),
    ]


def test_logprobs_join_with_their_tokens() -> None:
    first, second = TokenLogprobs(1, -0.5, [(1, -0.5)]), TokenLogprobs(2, -1.0, [])
    outbox = Outbox()
    outbox.extend([Tokens(1, 0, (), "a"), Tokens(1, 0, [1], "b", (first,)), Tokens(1, 1, [2], "c", [second])])
    assert contents(outbox) == [Tokens(1, 0, [1, 2], "abc", [first, second])]
    outbox.extend(
        [Tokens(2, 0, [1], "x", [TokenLogprobs(1, -0.5, [(1, -0.5)] * (MAX_WEIGHT // 16))]), Accepted(3, [], 0)]
    )
    assert [len(batch) for batch in outbox.batches()] == [2, 1]


def test_what_was_sent_is_gone_and_the_rest_still_joins() -> None:
    outbox = Outbox()
    outbox.extend([Tokens(1, 0, [1], "a")])
    outbox.extend([Tokens(2, 0, [1], "x")])
    outbox.sent(1)
    outbox.extend([Tokens(2, 1, [2], "y")])
    outbox.extend([Tokens(1, 1, [2], "b")])
    assert contents(outbox) == [Tokens(2, 0, [1, 2], "xy"), Tokens(1, 1, [2], "b")]
    outbox.sent(2)
    assert not outbox


def test_messages_have_a_bounded_size() -> None:
    outbox = Outbox()
    for request_id in range(1, 6):
        outbox.extend([Tokens(request_id, 0, [1], "x" * (MAX_WEIGHT // 2))])
    assert [len(batch) for batch in outbox.batches()] == [2, 2, 1]


def test_messages_and_errors_count_towards_the_size() -> None:
    outbox = Outbox()
    message: Message = {"role": "assistant", "content": [{"type": "text", "value": "x" * (MAX_WEIGHT // 2)}]}
    outbox.extend(Finished(request_id, "stop", 1, 1, message) for request_id in range(1, 4))
    outbox.extend(Failed(request_id, "EngineError", "x" * (MAX_WEIGHT // 2)) for request_id in range(4, 6))
    assert [len(batch) for batch in outbox.batches()] == [2, 2, 1]
