"""From an answer's text to reasoning, tool calls and text; whatever the model wrote, nothing is lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.rendering.parsing import parse_message

CALL = '{"name": "add", "arguments": {"a": 1}}'
TAGGED = f"<tool_call>{CALL}</tool_call>"
PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", CALL, '{"name": 1}', "{", " ", "\n", "hello", "</tool", "😀",
]  # fmt: skip


def blocks(text: str) -> list[tuple[str, str]]:
    message = parse_message(text)
    assert message["role"] == "assistant"
    return [(block["type"], block["value"]) for block in message["content"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("text", "")]),
        ("  just text \n", [("text", "  just text \n")]),
        ("<think>\nhm\n</think>\n\nYes.", [("reasoning", "hm"), ("text", "Yes.")]),
        ("<think>\n\n</think>\n\nYes.", [("text", "Yes.")]),
        ("<think>cut off", [("reasoning", "cut off")]),
        ("opened by the prompt</think>\nYes.", [("reasoning", "opened by the prompt"), ("text", "Yes.")]),
        ("a<think>b</think>c<think>d</think>", [("text", "a"), ("reasoning", "b"), ("text", "c"), ("reasoning", "d")]),
        ("<think>a</think> b </think> c", [("reasoning", "a"), ("text", "b </think> c")]),
        (f"Hm.\n<tool_call>\n{CALL}\n</tool_call>\nSo.", [("text", "Hm."), ("tool_call", CALL), ("text", "So.")]),
        (f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", [("tool_call", CALL), ("tool_call", CALL)]),
        (f"<tool_call>{CALL}\n", [("tool_call", CALL)]),
        (f"<tool_call>{CALL} and more", [("text", f"<tool_call>{CALL} and more")]),
        ("<tool_call>{oops}</tool_call> x", [("text", "<tool_call>{oops}</tool_call> x")]),
        ('<tool_call>{"name": "f"}</tool_call>', [("text", '<tool_call>{"name": "f"}</tool_call>')]),
        (
            '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
            [("text", '<tool_call>{"name": "f", "arguments": "text"}</tool_call>')],
        ),
        (f"<tool_call>{{</tool_call>\n{TAGGED}", [("text", "<tool_call>{</tool_call>"), ("tool_call", CALL)]),
        (f"<think>maybe {TAGGED}</think>No.", [("reasoning", f"maybe {TAGGED}"), ("text", "No.")]),
        (f"maybe {TAGGED}</think>No.", [("reasoning", f"maybe {TAGGED}"), ("text", "No.")]),
    ],
)  # fmt: skip
def test_blocks(text: str, expected: list[tuple[str, str]]) -> None:
    assert blocks(text) == expected


@pytest.mark.parametrize("tag", ["</tool_call>", "<think>", "</think>", "<tool_call>"])
def test_tags_inside_an_argument_belong_to_the_argument(tag: str) -> None:
    call = json.dumps({"name": "write", "arguments": {"text": f"a {tag} b"}})
    assert blocks(f"<tool_call>{call}</tool_call>") == [("tool_call", call)]


@given(st.text())
def test_text_without_tags_is_kept_byte_for_byte(text: str) -> None:
    if "<think>" not in text and "</think>" not in text and "<tool_call>" not in text:
        assert blocks(text) == [("text", text)]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_nothing_is_lost(text: str) -> None:
    def letters(value: str) -> str:
        return re.sub(r"</?think>|</?tool_call>|\s", "", value)

    assert letters("".join(value for _, value in blocks(text))) == letters(text)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_tool_calls_are_always_whole(text: str) -> None:
    for kind, value in blocks(text):
        if kind == "tool_call":
            assert set(json.loads(value)) == {"name", "arguments"}
