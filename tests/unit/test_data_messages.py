"""Every form in which people write conversations becomes v1, and what cannot says where and why."""

import json

import pytest

from samplerpool.data.messages import split_reference, template_options_of, to_v1, tools_text
from samplerpool.errors import InvalidParameter, RenderError


def text(role, value):
    return {"role": role, "content": [{"type": "text", "value": value}]}


def test_a_plain_string_is_one_user_turn():
    assert to_v1("Why?") == [text("user", "Why?")]


def test_common_form_v1_form_and_openai_parts_may_be_mixed():
    v1 = {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Hi"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]}
    assert to_v1([{"role": "system", "content": "Be brief."}, text("user", "Hello"), v1, parts]) == [
        text("system", "Be brief."),
        text("user", "Hello"),
        v1,
        {"role": "user", "content": [{"type": "text", "value": "Look: "}, {"type": "text", "value": "here"}]},
    ]


def test_openai_media_parts_keep_their_url():
    parts = [
        {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}},
        {"type": "video_url", "video_url": "file:///c.mp4"},
        {"type": "audio_url", "value": "d.wav"},
    ]
    assert to_v1([{"role": "user", "content": parts}])[0]["content"] == [
        {"type": "image_url", "value": "https://a/b.png"},
        {"type": "video_url", "value": "file:///c.mp4"},
        {"type": "audio_url", "value": "d.wav"},
    ]


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', {"city": "Köln"}])
def test_openai_tool_calls_and_reasoning_become_blocks_in_order(arguments):
    message = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I need the weather.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}],
    }
    (result,) = to_v1([message])
    assert [block["type"] for block in result["content"]] == ["reasoning", "tool_call"]
    assert json.loads(result["content"][1]["value"]) == {"name": "weather", "arguments": {"city": "Köln"}}


def test_tool_turns_and_older_role_names():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "tool", "content": "12 °C", "tool_call_id": "c1", "name": "weather"},
        {"role": "function", "content": "ok"},
    ]
    assert to_v1(messages) == [text("system", "Be brief."), text("tool", "12 °C"), text("tool", "ok")]


def test_empty_columns_of_tables_count_as_absent():
    message = {"role": "user", "content": "Hi", "tool_calls": None, "reasoning_content": None, "loss_weight": None}
    assert to_v1([message]) == [text("user", "Hi")]


def test_loss_weight_is_kept():
    assert to_v1([{"role": "user", "content": "Hi", "loss_weight": 0.5}]) == [
        {**text("user", "Hi"), "loss_weight": 0.5}
    ]


def test_the_input_is_not_changed_and_not_shared():
    original = [text("user", "Hi")]
    result = to_v1(original)
    result[0]["content"][0]["value"] = "changed"
    assert original == [text("user", "Hi")]


OK = {"role": "user", "content": "fine"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], ["no messages"]),
        (7, ["list of messages", "int 7"]),
        (None, ["list of messages", "nothing"]),
        ([OK, "text"], ["messages[1]", "object"]),
        ([OK, {"content": "x"}], ["messages[1]", "role", "None"]),
        ([OK, {"role": "bot", "content": "x"}], ["messages[1]", "'bot'", "assistant"]),
        ([{"role": ["user"], "content": "x"}], ["messages[0]", "role"]),
        ([{"role": "user"}], ["messages[0]", "no content"]),
        ([{"role": "user", "content": 5}], ["messages[0]", "string or a list", "int 5"]),
        ([{"role": "user", "content": ["x"]}], ["content[0]", "object"]),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], ["messages[0]", "content[0]", "'input_audio'"]),
        ([{"role": "user", "content": [{"type": "text"}]}], ["content[0]", "text", "nothing"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], ["image_url", "nothing"]),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], ["only an assistant"]),
        ([{"role": "assistant", "tool_calls": "x"}], ["tool_calls must be a list"]),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], ["function with a name"]),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}], ["'f'", "not JSON"]),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], ["'f'", "must be an object"]),
        ([{"role": "user", "content": "x", "loss_weight": "1"}], ["loss_weight", "'1'"]),
        ([OK, {"role": "user", "content": "bad \ud83d"}], ["messages[1]", "character 4", "surrogate"]),
        ("bad \ud83d", ["prompt", "surrogate"]),
    ],
)
def test_errors_name_the_message_and_what_is_wrong(messages, words):
    with pytest.raises(RenderError) as caught:
        to_v1(messages)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_a_trailing_assistant_turn_is_the_reference():
    turns = [text("user", "2+2?"), text("assistant", "4")]
    assert split_reference(turns) == ([turns[0]], turns[1])
    assert split_reference(turns[:1]) == ([turns[0]], None)
    longer = [*turns, text("user", "Sure?")]
    assert split_reference(longer) == (longer, None)


def test_an_assistant_turn_alone_leaves_nothing_to_answer():
    with pytest.raises(RenderError, match="nothing to answer"):
        split_reference([text("assistant", "4")])


def test_tools_are_json_text_or_what_it_would_say():
    tools = [{"type": "function", "function": {"name": "größe"}}]
    assert tools_text(tools) == json.dumps(tools, ensure_ascii=False)
    assert tools_text(tools[0]) == json.dumps(tools[0], ensure_ascii=False)
    assert tools_text("{not json") == "{not json"
    assert [tools_text(nothing) for nothing in (None, "", [], {})] == [None] * 4
    with pytest.raises(RenderError, match=r"^tools cannot be written as JSON: .*set"):
        tools_text([{"names": {1}}])


def test_template_options_are_names_and_values():
    assert template_options_of(None) == template_options_of({}) == {}
    assert template_options_of({"enable_thinking": False, "date": [1, "x"]}) == {
        "enable_thinking": False,
        "date": [1, "x"],
    }
    for wrong in (3, [1], "x", {1: 2}):
        with pytest.raises(InvalidParameter, match=r"^template_options must be a mapping of names to values, .* not "):
            template_options_of(wrong)
    assert template_options_of({"a": {1: (2, 2**64 - 1)}}) == {"a": {"1": [2, 2**64 - 1]}}
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    for wrong, said in (({1}, "set"), (deep, "nested deeper"), (2**64, "64 bits"), (["\ud800"], "surrogates")):
        with pytest.raises(InvalidParameter, match=rf"^template_options cannot be written as JSON .*{said}"):
            template_options_of({"a": wrong})
    own: list[object] = []
    for _ in range(100_000):
        own = [own]
    with pytest.raises(InvalidParameter, match=r"^template_options cannot be written as JSON"):
        template_options_of({"a": own})
