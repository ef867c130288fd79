"""From an answer's text to reasoning, tool calls and text; whatever the model wrote, nothing is lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.rendering.parsing import AnswerTags, parse_message
from samplerpool.rendering.renderer import Renderer
from tests.tiny_tokenizer import assistant, tiny_tokenizer, user
from tests.tiny_tokenizer import text as block

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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a <tool_call>{oops}</tool_call>", "tool call at character 2 is not valid JSON (Expecting property name"),
        (f"{TAGGED}<tool_call>{{", "tool call at character 61 was cut off"),
        ('<tool_call>{"name": 1}</tool_call>', "is not an object with a string 'name' and an object 'arguments'"),
        (f"<tool_call>{CALL}{CALL}</tool_call>", "has more than one JSON object before its </tool_call>"),
        ("<tool_call>1</tool_call><tool_call>2</tool_call>", "it was kept as text. (and 1 more)"),
    ],
)
def test_a_malformed_tool_call_is_marked(text: str, says: str) -> None:
    assert says in parse_message(text)["parse_error"]


@pytest.mark.parametrize("text", ["", "hello", TAGGED, "<think>cut off", f"<think><tool_call>{{</think>{TAGGED}"])
def test_what_is_well_formed_has_no_mark(text: str) -> None:
    assert "parse_error" not in parse_message(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cut off", [("reasoning", "cut off")]),
        ("hm</think>Yes.", [("reasoning", "hm"), ("text", "Yes.")]),
        ("<think>hm</think>Yes.", [("reasoning", "hm"), ("text", "Yes.")]),  # opened once more by the model
        (f"maybe {TAGGED}", [("reasoning", f"maybe {TAGGED}")]),
        ("", [("text", "")]),
    ],
)
def test_reasoning_that_the_prompt_opened(text: str, expected: list[tuple[str, str]]) -> None:
    message = parse_message(text, reasoning_is_open=True)
    assert [(block["type"], block["value"]) for block in message["content"]] == expected


@pytest.mark.parametrize(
    ("template", "opened"), [("<think>\n", True), ("<think>", True), ("<think>\n\n</think>\n\n", False), ("", False)]
)
def test_the_renderer_knows_from_the_prompt_whether_reasoning_is_open(template: str, opened: bool) -> None:
    renderer = Renderer(tiny_tokenizer(), custom_chat_template="{{ messages[0].content }}" + template)
    prompt = renderer.prompt_ids([user("q")])
    assert renderer.parse_message("a", prompt) == assistant(block("a", "reasoning" if opened else "text"))
    assert renderer.parse_message("a") == assistant(block("a"))


def test_other_tags() -> None:
    tags = AnswerTags(think=("[T]", "[/T]"), tool_call=("[C]", "[/C]"))
    message = parse_message(f"[T]hm[/T]<think>x</think>[C]{CALL}[/C]", tags)
    assert [(block["type"], block["value"]) for block in message["content"]] == [
        ("reasoning", "hm"),
        ("text", "<think>x</think>"),
        ("tool_call", CALL),
    ]


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
