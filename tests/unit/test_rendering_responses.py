"""Answers read with a tokenizer's own response template, in order and without loss."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.config.sampling import sampling_params
from samplerpool.engine.answer import Answer
from samplerpool.engine.base import EngineRequest
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import Message
from tests.tiny_tokenizer import assistant, text, tiny_tokenizer, user

CHANNEL, CALL_OPEN, CALL_CLOSE = "<|thought|>", "<|call>", "<call|>"
TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start|>assistant:",
    "fields": {
        "reasoning_content": {"open": CHANNEL, "close": "<|/thought|>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<\|call>(?P<name>\w+)",
            "close": CALL_CLOSE,
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<|end|>", "content": "text"},
    },
}


def renderer(template: Any = TEMPLATE, **options: Any) -> Renderer:
    tokenizer = tiny_tokenizer(more_specials=[CHANNEL, "<|/thought|>", CALL_OPEN, CALL_CLOSE])
    tokenizer.response_template = template
    return Renderer(tokenizer, **options)


READER = renderer()


def tool_call(name: str, arguments: dict[str, Any]) -> Any:
    return text(json.dumps({"name": name, "arguments": arguments}), "tool_call")


def test_the_tokenizers_own_way_goes_first_and_keeps_the_order() -> None:
    answer = 'So <|thought|>hm<|/thought|>let me <|call>add{"a": 1}<call|><|call>sub{}<call|> see<|end|>'
    assert READER.needs_special_tokens
    assert READER.parse_message(answer) == assistant(
        text("So"),
        text("hm", "reasoning"),
        text("let me"),
        tool_call("add", {"a": 1}),
        tool_call("sub", {}),
        text("see"),
    )
    tags_are_text = "<think>a</think>b"
    assert READER.parse_message(tags_are_text) == assistant(text(tags_are_text))


def test_what_the_prompt_began_is_known() -> None:
    prompt = READER.codec.encode("<|start|>user:<|thought|>no<|end|><|start|>assistant:<|thought|>")
    assert READER.parse_message("cut off", prompt) == assistant(text("cut off", "reasoning"))
    assert READER.parse_message("r<|/thought|>a", prompt) == assistant(text("r", "reasoning"), text("a"))
    long = READER.codec.encode("<|start|>assistant:<|thought|>" + "x" * 1000)
    assert READER.parse_message("y", long)["content"][0]["type"] == "reasoning"


def test_a_prompt_without_a_beginning_of_the_answer_is_no_answer() -> None:
    prompt = READER.codec.encode("nothing of the kind, and <|thought|>")
    assert READER.parse_message("a", prompt) == assistant(text("a"))


def test_a_pattern_can_say_where_the_answer_begins() -> None:
    spec = {name: value for name, value in TEMPLATE.items() if name != "start_anchor"}
    reader = renderer({**spec, "start_anchor_pattern": r"<\|start\|>\w+:"})
    assert reader.parse_message("a", reader.codec.encode("<|start|>model:<|thought|>")) == assistant(
        text("a", "reasoning")
    )


def test_text_for_which_the_template_has_no_field_is_kept() -> None:
    fields = {"reasoning_content": TEMPLATE["fields"]["reasoning_content"]}
    reader = renderer({**TEMPLATE, "fields": fields})
    assert reader.parse_message("a<|thought|>b<|/thought|>c") == assistant(text("a"), text("b", "reasoning"), text("c"))


def test_a_field_that_nobody_knows_is_kept_as_text() -> None:
    fields = {**TEMPLATE["fields"], "score": {"open": "[", "close": "]", "content": "json"}}
    assert renderer({**TEMPLATE, "fields": fields}).parse_message("a[ 12 ]") == assistant(text("a"), text("12"))


@pytest.mark.parametrize("answer", ["a<|call>add{oops<call|>b", 'x<|call>add["no object"]<call|>', "<|call>add"])
def test_a_malformed_tool_call_is_kept_and_told(answer: str) -> None:
    parsed = READER.parse_message(answer)
    assert parsed["content"] == [text(answer)]
    assert "could not be parsed" in parsed["parse_error"]


@given(
    st.lists(st.sampled_from([CHANNEL, "<|/thought|>", CALL_OPEN, "add", '{"a": "b"}', CALL_CLOSE, "one", " ", "é"]))
)
def test_no_word_is_lost(pieces: list[str]) -> None:
    answer = "".join(pieces)
    kept = "".join(block["value"] for block in READER.parse_message(answer)["content"])
    assert kept.count("one") == answer.count("one")
    assert kept.count("é") == answer.count("é")


def test_arguments_given_as_text_are_an_object_in_the_end() -> None:
    calls = {**TEMPLATE["fields"]["tool_calls"], "content": "text"}
    reader = renderer({**TEMPLATE, "fields": {**TEMPLATE["fields"], "tool_calls": calls}})
    assert reader.parse_message('<|call>add{"a": 1}<call|>') == assistant(tool_call("add", {"a": 1}))


def test_a_plugins_own_function_goes_before_it() -> None:
    own = renderer(template=TEMPLATE)
    assert own.needs_special_tokens
    plugin = RenderingPlugin(parse_message=lambda answer: assistant(text(answer + "!")))
    tokenizer = tiny_tokenizer()
    tokenizer.response_template = TEMPLATE
    with_plugin = Renderer(tokenizer, template=plugin)
    assert not with_plugin.needs_special_tokens
    assert with_plugin.parse_message("a") == assistant(text("a!"))


def test_a_broken_template_is_told_once_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        reader = renderer({"fields": {}})
    assert "response template is not used" in caplog.text
    assert reader.parse_message("<think>a</think>b") == assistant(text("a", "reasoning"), text("b"))


def test_tags_that_are_special_tokens_are_seen() -> None:
    tokenizer = tiny_tokenizer(more_specials=["</think>"])
    assert Renderer(tokenizer).needs_special_tokens
    assert not Renderer(tiny_tokenizer()).needs_special_tokens


def message_of(reader: Renderer, answer: str, stop: list[str] | None = None, before: int = 0) -> Message:
    """As the engine's loop does it: the text is without special tokens, and tokens came in two parts."""
    ids = reader.codec.encode(answer)
    prompt = reader.prompt_ids([user("q")])
    params = sampling_params({"stop": stop} if stop else {})
    request = EngineRequest((0, 0), prompt, params, generated_ids=tuple(ids[:before]))
    collected = Answer(request, reader, reader.codec.decode(ids[:before], skip_special_tokens=True))
    collected.add(ids[before:], reader.codec.decode(ids[before:], skip_special_tokens=True))
    return collected.message()


@pytest.mark.parametrize("before", [0, 3])
def test_special_tokens_reach_the_parser_although_the_text_is_without_them(before: int) -> None:
    answer = '<|thought|>hm<|/thought|>Yes.<|call>add{"a": 1}<call|><|end|>'
    parts = text("hm", "reasoning"), text("Yes."), tool_call("add", {"a": 1})
    assert message_of(READER, answer, before=before) == assistant(*parts)
    assert message_of(READER, answer, ["s."], before) == assistant(text("hm", "reasoning"), text("Ye"))
    plain = Renderer(tiny_tokenizer())
    assert message_of(plain, "<think>hm</think>Yes.<|end|>", before=before) == assistant(
        text("hm", "reasoning"), text("Yes.")
    )
