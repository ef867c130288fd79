"""What waits for a slow client joins up, in order, in messages of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.types import Message, TokenLogprobs
from samplerpool.wire.messages import Accepted, Completed, Failed, Finished, Pong, Reply, Tokens
from samplerpool.worker.outbox import MAX_WEIGHT, Outbox


def messages(outbox: Outbox) -> list[list[Reply]]:
    """Take all that is waiting, message by message."""
    found: list[list[Reply]] = []
    while outbox:
        count, _ = outbox.message(lambda replies: found.append(list(replies)) or b"")  # type: ignore[func-returns-value]
        outbox.sent(count)
    return found


def contents(outbox: Outbox) -> list[Reply]:
    return [reply for message in messages(outbox) for reply in message]


def pack(replies: Sequence[Reply]) -> bytes:
    return repr(list(replies)).encode()


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
    assert [len(message) for message in messages(outbox)] == [1, 1]


def test_what_was_sent_is_gone_and_the_rest_still_joins() -> None:
    outbox = Outbox()
    outbox.extend([Tokens(1, 0, [1], "a")])
    outbox.extend([Tokens(2, 0, [1], "x")])
    outbox.sent(1)
    outbox.extend([Tokens(2, 1, [2], "y")])
    outbox.extend([Tokens(1, 1, [2], "b")])
    assert contents(outbox) == [Tokens(2, 0, [1, 2], "xy"), Tokens(1, 1, [2], "b")]
    assert not outbox


def test_messages_have_a_bounded_size() -> None:
    outbox = Outbox()
    for request_id in range(1, 6):
        outbox.extend([Tokens(request_id, 0, [1], "x" * (MAX_WEIGHT // 2))])
    assert [len(message) for message in messages(outbox)] == [2, 2, 1]


def test_messages_and_errors_count_towards_the_size() -> None:
    outbox = Outbox()
    message: Message = {"role": "assistant", "content": [{"type": "text", "value": "x" * (MAX_WEIGHT // 2)}]}
    outbox.extend(Finished(request_id, "stop", 1, 1, message) for request_id in range(1, 4))
    outbox.extend(Failed(request_id, "EngineError", "x" * (MAX_WEIGHT // 2)) for request_id in range(4, 6))
    outbox.extend(Completed(request_id, "stop", 1, 1, 0, "x" * (MAX_WEIGHT // 2)) for request_id in range(6, 8))
    assert [len(message) for message in messages(outbox)] == [2, 2, 2, 1]


def test_a_held_message_stays_as_it_is_and_what_comes_later_joins_behind_it() -> None:
    outbox = Outbox()
    outbox.extend([Tokens(1, 0, [1], "a"), Tokens(2, 0, [1], "x")])
    count, data = outbox.message(pack)
    outbox.hold(count, data, now=10.0)
    outbox.extend([Tokens(1, 1, [2], "b")])
    outbox.extend([Tokens(1, 2, [3], "c"), Finished(2, "stop", 1, 1)])
    assert outbox.message(pack) == (2, data)
    outbox.sent(2)
    assert contents(outbox) == [Tokens(1, 1, [2, 3], "bc"), Finished(2, "stop", 1, 1)]


def test_a_held_message_is_tried_again_ever_more_rarely_until_something_is_taken() -> None:
    outbox = Outbox()
    outbox.extend([Failed(number, "EngineError", "broke") for number in range(1, 3)])
    waits = []
    for _ in range(9):
        outbox.hold(1, b"", now=10.0)
        waits.append(round(outbox.retry_at - 10.0, 3))
    assert waits == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2]
    assert outbox.held_since == 10.0
    outbox.sent(1)
    outbox.hold(1, b"", now=20.0)
    assert (outbox.retry_at, outbox.held_since) == (20.005, 20.0)


def test_the_weight_of_what_waits_grows_with_the_text_and_not_with_the_number_of_frames() -> None:
    together, apart = Outbox(), Outbox()
    for outbox in (together, apart):
        outbox.extend([Failed(9, "EngineError", "broke")])
        assert outbox.weight == 0
        outbox.hold(1, b"", now=0.0)
        assert outbox.weight > 0
    together.extend([Tokens(1, 0, list(range(1000)), "x" * 1000)])
    for index in range(1000):
        apart.extend([Tokens(1, index, [index], "x")])
    assert apart.weight == together.weight > 6000
    apart.sent(2)
    assert apart.weight == 0


def test_requests_with_something_waiting_are_named_once() -> None:
    outbox = Outbox()
    outbox.extend([Accepted(3, [1], 0), Tokens(3, 0, [1], "a"), Pong(7, "i", 0, []), Failed(0, "E", "m")])
    outbox.extend([Finished(2, "stop", 1, 1), Completed(4, "stop", 1, 1, 0, "a")])
    assert outbox.request_ids() == [3, 2, 4]
