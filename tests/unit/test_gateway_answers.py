"""Answers as objects of OpenAI's interface: whole ones, and the events of those that are streamed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from samplerpool.data.answers import Answer
from samplerpool.gateway.answers import Heading, response
from samplerpool.gateway.events import DONE, ChatChoice, Events, TextChoice, broken_off
from samplerpool.gateway.logprobs import bytes_of, text_logprobs, token_ids_in
from samplerpool.gateway.problems import Problem
from samplerpool.rendering.parsing import parse_message
from samplerpool.types import TokenLogprobs

CHAT = Heading(True, "abc", 12, "m")
TEXT = Heading(False, "abc", 12, "m")
TAGS = {"think": ("<think>", "</think>"), "tool_call": ("<tool_call>", "</tool_call>")}
CALL = '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
FUNCTION = {"name": "f", "arguments": '{"a": "é"}'}
PIECES = {1: "a", 2: "<0xE2>", 3: "é"}


def answer(text: str, reason: Any = "stop", **more: Any) -> Answer:
    return Answer(text, reason, 3, len(text), 5, parse_message(text), **more)


def events_of(data: bytes) -> list[Any]:
    found = []
    for line in data.split(b"\n\n"):
        if line:
            assert line.startswith(b"data: ")
            found.append(json.loads(line[6:]) if line != DONE.strip() else "[DONE]")
    return found


def streamed(whole: Answer, cuts: list[str], **choice: Any) -> list[Any]:
    """The choices of the events of a stream."""
    events = Events(CHAT, include_usage=False)
    one = ChatChoice(events, CHAT, 0, **{"tags": TAGS, "reasoning_open": False, **choice})
    data = events.begin(0) + b"".join(one.feed(piece) for piece in cuts) + one.end(whole)
    return [event["choices"][0] for event in events_of(data)]


def joined(choices: list[Any]) -> dict[str, Any]:
    """The message that a client makes of them, and the finish reason."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for choice in choices:
        delta = choice["delta"]
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        message["tool_calls"] += [call["function"] for call in delta.get("tool_calls", [])]
    return {**message, "finish_reason": choices[-1]["finish_reason"]}


def test_a_whole_answer_with_all_its_parts() -> None:
    body = response(CHAT, [answer(f"<think>Hm.</think>So:{CALL}")], 1, {}, [])
    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 12,
        "model": "m",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "So:",
                    "refusal": None,
                    "reasoning_content": "Hm.",
                    "tool_calls": [{"id": "call_abc_0_0", "type": "function", "function": FUNCTION}],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
                "seed": 5,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 82, "total_tokens": 85},
    }


def test_content_is_null_beside_calls_alone_and_a_cut_off_answer_says_so() -> None:
    (choice,) = response(CHAT, [answer(CALL, "length")], 1, {}, [])["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    (choice,) = response(CHAT, [answer("")], 1, {}, [])["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


def test_each_prompt_counts_once() -> None:
    body = response(TEXT, [answer("a"), answer("bb"), answer("c"), answer("d")], 2, {}, ["x", "x", "y", "y"])
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "xa"),
        (1, "xbb"),
        (2, "yc"),
        (3, "yd"),
    ]
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}
    assert (body["id"], body["object"]) == ("cmpl-abc", "text_completion")


def test_log_probabilities_have_texts_and_bytes() -> None:
    entries = [TokenLogprobs(1, -0.5, [(1, -0.5), (2, -1.0)]), TokenLogprobs(3, -2.0, [])]
    assert token_ids_in(entries) == {1, 2, 3}
    (choice,) = response(CHAT, [answer("aé", logprobs=entries)], 1, PIECES, [])["choices"]
    first = {"token": "a", "logprob": -0.5, "bytes": [97]}
    part = {"token": "<0xE2>", "logprob": -1.0, "bytes": [0xE2]}
    assert choice["logprobs"] == {
        "content": [
            {**first, "top_logprobs": [first, part]},
            {"token": "é", "logprob": -2.0, "bytes": [0xC3, 0xA9], "top_logprobs": []},
        ],
        "refusal": None,
    }
    assert text_logprobs(entries, PIECES, 4) == {
        "tokens": ["a", "é"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"a": -0.5, "<0xE2>": -1.0}, {}],
        "text_offset": [4, 5],
    }
    assert bytes_of("a<0xF0><0x9F>é<0xZZ>") == [97, 0xF0, 0x9F, 0xC3, 0xA9, *b"<0xZZ>"]


def test_the_most_probable_of_tokens_with_one_text_is_told() -> None:
    entries = [TokenLogprobs(1, -0.5, [(1, -0.5), (9, -3.0)])]
    assert text_logprobs(entries, {1: "a", 9: "a"})["top_logprobs"] == [{"a": -0.5}]


def test_a_stream_s_events() -> None:
    text = f"<think>Hm.</think>So:{CALL}"
    choices = streamed(answer(text), [text[:10], text[10:21], text[21:]])
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "So:"},
        {"tool_calls": [{"index": 0, "id": "call_abc_0_0", "type": "function", "function": FUNCTION}]},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "tool_calls"]
    assert choices[-1]["seed"] == 5


PARTS = st.sampled_from(["<think>", "</think>", CALL, "<tool_call>", "</tool_call>", " ", "a", "b é", "{", '{"name":'])


@given(st.lists(PARTS, max_size=6), st.lists(st.integers(1, 9), max_size=20))
def test_streamed_or_whole_it_is_the_same_answer(parts: list[str], sizes: list[int]) -> None:
    text, cuts, at = "".join(parts), [], 0
    for size in sizes:
        cuts.append(text[at : at + size])
        at += size
    whole = answer(text)
    # A closing tag that nothing opened means that the prompt had opened it; a stream is told so at its beginning.
    opened = "</think>" in text and not text.partition("</think>")[0].count("<think>")
    if opened:
        return
    (choice,) = response(CHAT, [whole], 1, {}, [])["choices"]
    message = choice["message"]
    assert joined(streamed(whole, [*cuts, text[at:]])) == {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [call["function"] for call in message.get("tool_calls", [])],
        "finish_reason": choice["finish_reason"],
    }


def test_parts_that_the_text_does_not_show_wait_for_the_whole() -> None:
    parsed = replace(answer(f"<think>Hm.</think>So{CALL}"), text="Hm.So{...}")
    choices = streamed(parsed, ["Hm.", "So{", "...}"], hidden=True)
    assert [choice["delta"].keys() for choice in choices] == [
        {"role", "content"},
        {"reasoning_content"},
        {"content"},
        {"tool_calls"},
        set(),
    ]
    assert joined(choices)["finish_reason"] == "tool_calls"


def test_calls_that_only_the_parser_knows_come_last() -> None:
    parsed = replace(answer(f"So{CALL}"), text="So")
    assert joined(streamed(parsed, ["So"]))["tool_calls"] == [FUNCTION]


def test_log_probabilities_wait_for_the_next_event() -> None:
    entries = [TokenLogprobs(1, -0.5, []), TokenLogprobs(3, -2.0, [])]
    one = ChatChoice(Events(CHAT, include_usage=False), CHAT, 0, tags=TAGS, reasoning_open=False)
    assert one.feed("<thi", entries[:1], PIECES) == b""
    (event,) = events_of(one.feed("s", entries[1:], PIECES))
    assert event["choices"][0]["delta"] == {"content": "<this"}
    assert [told["token"] for told in event["choices"][0]["logprobs"]["content"]] == ["a", "é"]
    (event,) = events_of(one.end(answer("<this"), entries[:1], PIECES))
    assert [told["token"] for told in event["choices"][0]["logprobs"]["content"]] == ["a"]


def test_texts_are_streamed_with_offsets_that_go_on() -> None:
    events = Events(TEXT, include_usage=False)
    one = TextChoice(events, 1)
    entry = [TokenLogprobs(3, -2.0, [])]
    data = events.begin(1, "Once") + one.feed("é", entry, PIECES) + one.feed("é", entry, PIECES) + one.end(answer("éé"))
    choices = [event["choices"][0] for event in events_of(data)]
    assert [(choice["index"], choice["text"]) for choice in choices] == [(1, "Once"), (1, "é"), (1, "é"), (1, "")]
    assert [choice["logprobs"] and choice["logprobs"]["text_offset"] for choice in choices] == [None, [0], [1], None]
    assert choices[-1]["finish_reason"] == "stop"
    assert events.begin(0) == b""


def test_usage_comes_last_where_it_is_wanted() -> None:
    quiet, telling = Events(CHAT, include_usage=False), Events(CHAT, include_usage=True)
    assert events_of(quiet.last([answer("ab")], 1)) == ["[DONE]"]
    last, done = events_of(telling.last([answer("ab")], 1))
    assert (last["choices"], last["usage"]["total_tokens"], done) == ([], 5, "[DONE]")
    assert events_of(telling.choice(0, {"delta": {}})) == [
        {
            "id": "chatcmpl-abc",
            "object": "chat.completion.chunk",
            "created": 12,
            "model": "m",
            "system_fingerprint": None,
            "choices": [{"index": 0, "logprobs": None, "finish_reason": None, "delta": {}}],
            "usage": None,
        }
    ]
    assert "usage" not in events_of(quiet.choice(0, {}))[0]


def test_a_stream_that_breaks_off_says_why() -> None:
    assert events_of(broken_off(Problem(503, "Gone.", "unavailable"))) == [
        {"error": {"message": "Gone.", "type": "server_error", "param": None, "code": "unavailable"}}
    ]
