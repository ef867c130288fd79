"""The codec: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.errors import PromptTooLong, ProtocolError, SamplerPoolError
from samplerpool.types import PromptCount, RenderedPrompt, TokenLogprobs
from samplerpool.wire import codec
from samplerpool.wire.codec import PROTOCOL_VERSION, decode_replies, decode_requests, encode, encode_requests
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    AddKey,
    ChatPrompt,
    Completed,
    Count,
    Counted,
    Describe,
    Description,
    Failed,
    Finished,
    Generate,
    ListKeys,
    Malformed,
    Ping,
    Pong,
    Render,
    Rendered,
    Restart,
    RevokeKey,
    Scale,
    Stop,
    TextPrompt,
    TokenPrompt,
    Tokens,
)

MESSAGES = [
    {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
    {"role": "user", "content": [{"type": "text", "value": "héllo 👋"}], "loss_weight": 0.0},
]
REQUESTS = [
    Generate(
        1, "abc", ChatPrompt(MESSAGES, '[{"name": "f"}]', {"enable_thinking": False}), {"top_k": 3}, 1, False, True
    ),
    Generate(2, "abc", TokenPrompt([1, 2], [3], 4), {}),
    Generate(3, "abc", TokenPrompt([1, 2], [3], 4, ChatPrompt(MESSAGES, None, {"style": "x"})), {}),
    Count(4, "abc", ChatPrompt(MESSAGES, None, {"style": "x"}), {"top_k": 3}),
    Generate(16, "abc", ChatPrompt(MESSAGES, None, {}, "Sure, héllo"), {}),
    Generate(17, "abc", TokenPrompt([1, 2], [3], 4, None, "Sure"), {}),
    Generate(18, "abc", TokenPrompt([1, 2], [3], 4, ChatPrompt(MESSAGES, None, {}, "Sure"), "Sure"), {}),
    Render(19, "abc", ChatPrompt(MESSAGES, "[]", {"style": "x"}, "Sure")),
    Render(20, "abc", TokenPrompt([1, 2], [3])),
    Generate(21, "abc", TextPrompt("Once upon é"), {}),
    Generate(22, "abc", TokenPrompt([1, 2], [3], 4, goes_on=True), {}),
    Render(23, "abc", TextPrompt("")),
    Abort(2),
    Ping(7),
    Describe(8),
    Stop(9, 2.5),
    Restart(10, None, 1.0),
    Restart(11, 3, 0.0),
    Scale(12, 4, 60.0),
    ListKeys(13),
    AddKey(14, "alice", "k" * 40),
    RevokeKey(15, "alice"),
]
REPLIES = [
    Accepted(1, [5, 6], 42),
    Accepted(2, [5, 6], 42, True),
    Tokens(1, 0, [7, 8], "ab"),
    Tokens(1, 2, [9, 4], "cd", [TokenLogprobs(9, -0.5, [(9, -0.5), (2, -1.25)]), TokenLogprobs(4, -9999.0, [])]),
    Finished(1, "stop", 2, 2, MESSAGES[0]),
    Finished(2, "length", 2, 2, None),
    Finished(3, "stop", 2, 2, {**MESSAGES[0], "parse_error": "not JSON"}),
    Completed(4, "stop", 2, 2, 42, "ab"),
    Completed(5, "length", 2, 1, 42, "", MESSAGES[0], [TokenLogprobs(9, -0.5, [(9, -0.5), (2, -1.25)])]),
    Counted(6, PromptCount(20, 128, 8192, [("<|im_end|>", "message 1 (user)")])),
    Rendered(9, RenderedPrompt([5, 6], ["<|im_start|>", "<0xE2>"])),
    Failed(3, "PromptTooLong", "too long", {"limit": 5}),
    Pong(7, "abc", 99, [1, 2]),
    Description(8, {"running": 3, "nested": {"a": [1, None]}}),
]


def test_requests_and_replies_survive() -> None:
    assert decode_requests(encode(REQUESTS)) == REQUESTS
    assert decode_replies(encode(REPLIES)) == REPLIES


def test_an_error_survives_with_its_class_and_data() -> None:
    error = PromptTooLong("too long", prompt_tokens=9, limit=5)
    back = SamplerPoolError.from_wire(*error.to_wire())
    assert (type(back), back.message, back.data) == (PromptTooLong, "too long", {"prompt_tokens": 9, "limit": 5})


def test_data_of_an_error_may_have_any_names() -> None:
    data = {"message": "m", "self": 1, "name": "n"}
    back = SamplerPoolError.from_wire("EngineError", "broke", data)
    assert (back.message, back.data) == ("broke", data)


def test_one_malformed_entry_leaves_the_others_alone() -> None:
    data = msgpack.packb((PROTOCOL_VERSION, [[2, 5], [2, "x"], [1, 6, "abc"], [99, 7], [3, 8]]))
    first, second, third, fourth, fifth = decode_requests(data)
    assert (first, fifth) == (Abort(5), Ping(8))
    assert [type(m) for m in (second, third, fourth)] == [Malformed] * 3
    assert [m.request_id for m in (second, third, fourth)] == [0, 6, 7]


@pytest.mark.parametrize(
    "prompt",
    [
        [0, [], None, {}, []],
        [0, [], None, {}, None],
        [0, [], None, {}, "Sure", "Sure"],
        [1, [1], [], 0, [1, [1], [], 0]],
        [1, [1], [], 0, {}],
        [1, [1], [], 0, "Sure"],
        [1, [1], [], 0, None, 5],
        [1, [1], [], 0, None, "Sure", "Sure"],
        [1, [1], [], 0, None, "", True, True],
        [1],
        [2],
        [2, 5],
        [2, "Once", "upon"],
        [],
    ],
)
def test_prompts_of_all_kinds_have_what_belongs_to_them(prompt: list[Any]) -> None:
    (message,) = decode_requests(msgpack.packb((PROTOCOL_VERSION, [[1, 5, "i", prompt, {}, 0, True, False]])))
    assert isinstance(message, Malformed)
    assert message.request_id == 5


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def generate_entry(**changes: Any) -> list[Any]:
    fields = {
        "id": 1,
        "incarnation": "abc",
        "prompt": [0, MESSAGES, None, {}],
        "params": {},
        "priority": 0,
        "stream": True,
        "parse": False,
    }
    return [1, *{**fields, **changes}.values()]


@pytest.mark.parametrize(
    "entry",
    [
        generate_entry(id=0),
        generate_entry(id=-1),
        generate_entry(id=True),
        generate_entry(id=2**60),
        generate_entry(incarnation=5),
        generate_entry(params={"stop": nested(100)}),
        generate_entry(params=[1]),
        generate_entry(priority=2),
        generate_entry(priority=True),
        generate_entry(stream=1),
        generate_entry(prompt=[1, [2**31], [], 0]),
        generate_entry(prompt=[1, [-1], [], 0]),
        generate_entry(prompt=[1, ["a"], [], 0]),
        generate_entry(prompt=[7, [], [], 0]),
        generate_entry(prompt=[0, [{"role": "root", "content": []}], None, {}]),
        generate_entry(prompt=[0, [{"role": "user", "content": "text"}], None, {}]),
        generate_entry(prompt=[0, [{"role": "user", "content": [{"type": "text", "value": 1}]}], None, {}]),
        generate_entry(prompt=[0, [{"role": "user", "content": [{"type": "code", "value": ""}]}], None, {}]),
        generate_entry(prompt=[0, MESSAGES, 5, {}]),
        [11, 1, 5, [0, MESSAGES, None, {}], {}],
        [11, 1, "abc", [0, MESSAGES, None], {}],
        [11, 1, "abc", [0, MESSAGES, None, {}], [1]],
        [11, 1, "abc", [0, MESSAGES, None, {}], {}, 1],
        [12, 1, 5, [0, MESSAGES, None, {}]],
        [12, 1, "abc", [0, MESSAGES, None]],
        [12, 1, "abc", [0, MESSAGES, None, {}], {}],
        [5, 1, float("nan")],
        [5, 1, -1],
        [5, 1, True],
        [nested(900), 1],
        [{"kind": "x" * 5000}, 1],
        generate_entry(params={"seed": msgpack.Timestamp(5)}),
        generate_entry(params={"seed": b"bytes"}),
    ],
)
def test_a_bad_field_is_refused(entry: list[Any]) -> None:
    (message,) = decode_requests(msgpack.packb((PROTOCOL_VERSION, [entry])))
    assert isinstance(message, Malformed)
    assert message.reason.startswith("Malformed message: ")
    assert len(message.reason) < 300


@pytest.mark.parametrize(
    "logprobs",
    [
        5,
        None,
        [],
        [[7, -0.5, []]],
        [[7, -0.5, []], [7, -0.5, []]],
        [[7, -0.5, []], [8, "x", []]],
        [[7, -0.5, []], [8, -1, []]],
        [[7, -0.5, []], [8, -0.5]],
        [[7, -0.5, [[1, -0.5]]], [8, -0.5, [[1]]]],
        [[7, -0.5, [[1, -0.5]]], [8, -0.5, [["a", -0.5]]]],
        [[7, -0.5, [[1, -0.5]]], [8, -0.5, [[-1, -0.5]]]],
        [[7, -0.5, [[1, -0.5]]], [8, -0.5, [5]]],
    ],
)
def test_bad_logprobs_are_refused(logprobs: Any) -> None:
    (message,) = decode_replies(msgpack.packb((PROTOCOL_VERSION, [[65, 1, 0, [7, 8], "ab", logprobs]])))
    assert isinstance(message, Malformed)


@pytest.mark.parametrize(
    "fields", [[-1, 5, 9, []], [1, 5, 9, {}], [1, 5, 9, [["a"]]], [1, 5, 9, [["a", 1]]], [1, 5, 9]]
)
def test_a_bad_count_is_refused(fields: list[Any]) -> None:
    (message,) = decode_replies(msgpack.packb((PROTOCOL_VERSION, [[71, 1, *fields]])))
    assert isinstance(message, Malformed)


@pytest.mark.parametrize(
    "entry",
    [[72, 1, [5], []], [72, 1, [5], [6]], [72, 1, [-5], ["a"]], [72, 1, [5], "a"], [72, 1, [5]], [64, 1, [5], 0]],
)
def test_a_prompt_that_is_told_has_a_text_for_each_token(entry: list[Any]) -> None:
    (message,) = decode_replies(msgpack.packb((PROTOCOL_VERSION, [entry])))
    assert isinstance(message, Malformed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([PROTOCOL_VERSION]),
        msgpack.packb([PROTOCOL_VERSION, 5]),
        msgpack.packb([PROTOCOL_VERSION + 1, []]),
        msgpack.packb([PROTOCOL_VERSION, [msgpack.ExtType(5, b"x")]]),
        msgpack.packb([PROTOCOL_VERSION, [msgpack.Timestamp(5)]]),
        msgpack.packb([PROTOCOL_VERSION, []]) + b"x",
        b"\x92\x01\x91\xa2\xff\xfe",
        b"\x91" * 5000 + b"\x01",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_an_unreadable_envelope_is_one_malformed(data: bytes) -> None:
    (message,) = decode_requests(data)
    assert isinstance(message, Malformed)
    assert message.request_id == 0


def test_too_many_entries_are_refused() -> None:
    (message,) = decode_requests(msgpack.packb((PROTOCOL_VERSION, [[3, 1]] * (codec.MAX_REQUESTS + 1))))
    assert isinstance(message, Malformed)


def test_a_request_knows_what_it_took_on_its_way() -> None:
    small, large = Generate(1, "i", TokenPrompt([1]), {}), Generate(2, "i", TokenPrompt([1] * 5000), {})
    received = decode_requests(encode([small, large]))
    sizes = [message.size_bytes for message in received if isinstance(message, Generate)]
    assert sizes[0] < 30
    assert 5000 < sizes[1] < 5030


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\x91\x80"])
def test_many_small_containers_are_refused_before_they_take_much_memory(item: bytes) -> None:
    count = codec.MAX_CONTAINERS // len(item) + 10
    data = b"\x92\x01\x91\x93\x02\x01\xdd" + count.to_bytes(4, "big") + item * count
    (message,) = decode_requests(data)
    assert isinstance(message, Malformed)
    assert "arrays and maps" in message.reason


def test_an_array_of_any_announced_length_sets_little_memory_aside() -> None:
    header = b"\xdd" + (codec.MAX_ARRAY + 1).to_bytes(4, "big")
    (message,) = decode_requests(b"\x92\x01\x91" + header * 3 + b"\xc0" * (codec.MAX_ARRAY + 2))
    assert isinstance(message, Malformed)
    assert "max_array_len" in message.reason


def test_what_is_too_large_or_cannot_be_packed_is_an_error_of_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError, match="surrogate"):
        encode([Tokens(1, 0, [1], "\ud800")])
    with pytest.raises(ProtocolError, match="cannot be packed"):
        encode([Description(1, {"value": object()})])
    monkeypatch.setattr(codec, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(ProtocolError, match="limit is 100"):
        encode([Tokens(1, 0, [1], "x" * 200)])


def test_what_a_worker_would_not_read_is_an_error_of_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_ARRAY", 100)
    monkeypatch.setattr(codec, "MAX_CONTAINERS", 50)
    good = Generate(1, "i", TokenPrompt([1] * 99), {})
    assert encode_requests([good]) == encode([good])
    assert isinstance(decode_requests(encode([good]))[0], Generate)
    for prompt, params in ((TokenPrompt([1] * 101), {}), (TokenPrompt([1]), {"bad_words": [[1]] * 51})):
        (unread,) = decode_requests(encode([Generate(1, "i", prompt, params)]))
        assert isinstance(unread, Malformed)
        assert unread.request_id == 0
        with pytest.raises(ProtocolError, match="A worker would not read this") as caught:
            encode_requests([good, Generate(1, "i", prompt, params)])
        assert caught.value.data["bytes"] > 50


@given(st.binary(max_size=400))
@settings(max_examples=500, deadline=None)
def test_random_bytes_never_raise(data: bytes) -> None:
    assert all(isinstance(m, Malformed) or m for m in decode_requests(data))
    assert all(isinstance(m, Malformed) or m for m in decode_replies(data))


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_mutated_messages_never_raise(data: st.DataObject) -> None:
    good = bytearray(encode(data.draw(st.sampled_from([REQUESTS, REPLIES]))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    decode_requests(bytes(good))
    decode_replies(bytes(good))
