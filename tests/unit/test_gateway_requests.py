"""What requests of OpenAI's interface ask, in our own terms, and what of them is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from samplerpool.config.sampling import MAX_INT32
from samplerpool.data.answers import row_seed
from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.gateway.requests import Asked, Rules, read_chat, read_completion

RULES = Rules(max_answers=8)
HELLO = [{"role": "user", "content": "Hello."}]
V1 = [{"role": "user", "content": [{"type": "text", "value": "Hello."}]}]
PIXEL = "data:image/png;base64,AAAA"


def chat(rules: Rules = RULES, **body: Any) -> Asked:
    return read_chat({"model": "m", "messages": HELLO, **body}, rules)


def refused(**body: Any) -> tuple[str | None, str]:
    with pytest.raises((InvalidParameter, RenderError)) as caught:
        chat(**body)
    return caught.value.data.get("param"), caught.value.message


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_a_bare_conversation() -> None:
    assert chat() == Asked(chat=True, model="m", params=[{"max_new_tokens": MAX_INT32}], messages=V1)


def test_all_that_can_be_asked_for() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = chat(
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"17": 3},
        stop=["a", "b"],
        seed=3,
        logprobs=True,
        top_logprobs=2,
        tools=tools,
        stream=True,
        stream_options={"include_usage": True},
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        ignore_eos=True,
        bad_words=["no"],
        chat_template_kwargs={"enable_thinking": False},
        prefill="Well,",
        user="u",
        metadata={"a": "b"},
        store=False,
        parallel_tool_calls=True,
        response_format={"type": "text"},
        service_tier=None,
    )
    params = {
        "max_new_tokens": 5,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {"17": 3.0},
        "stop": ["a", "b"],
        "seed": 3,
        "logprobs": 2,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "bad_words": ["no"],
    }
    assert asked == Asked(
        chat=True,
        model="m",
        params=[params],
        messages=V1,
        tools='[{"type": "function", "function": {"name": "f"}}]',
        template_options={"enable_thinking": False},
        prefill="Well,",
        stream=True,
        include_usage=True,
    )
    assert asked.logprobs


def test_samples_have_seeds_as_in_batches() -> None:
    assert [each["seed"] for each in chat(n=3, seed=7).params] == [7, row_seed(7, 0, 1), row_seed(7, 0, 2)]
    assert ["seed" in each for each in chat(n=2).params] == [False, False]


def test_what_a_request_leaves_open_is_the_gateway_s_and_then_the_pool_s() -> None:
    rules = Rules(8, defaults={"do_sample": False, "top_k": 5})
    open_end = {"max_new_tokens": MAX_INT32}
    assert chat(rules).params == [{"do_sample": False, "top_k": 5, **open_end}]
    said = {"do_sample": True, "temperature": 1.0, "top_k": 1}
    assert chat(rules, temperature=1, top_k=1).params == [{**said, **open_end}]
    assert chat(Rules(8, pool_defaults={"max_new_tokens": 64})).params == [{}]
    assert read_completion({"prompt": "x"}, RULES).params == [{}]


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    assert chat(tools=[{"type": "function"}], tool_choice="none").tools is None
    assert chat(tools=[{"type": "function"}], tool_choice="auto").tools == '[{"type": "function"}]'


def test_roles_parts_and_what_comes_back_from_earlier_answers() -> None:
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, *image(PIXEL)[0]["content"]]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]},
    ]
    assert chat(messages=messages).messages == [
        {"role": "system", "content": [{"type": "text", "value": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "value": "Look:"}, {"type": "image_url", "value": PIXEL}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"a": 1}}'}]},
        {"role": "tool", "content": [{"type": "text", "value": "2"}]},
        {"role": "user", "content": [{"type": "audio_url", "value": "data:audio/wav;base64,AAAA"}]},
    ]


@pytest.mark.parametrize(
    "url",
    ["/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "~/x.png", "x.png", " data:,", "ftp://a/b", "http://a"],
)
def test_no_client_makes_the_server_read_files_or_fetch_urls(url: str) -> None:
    as_block = [{"role": "user", "content": [{"type": "image_url", "value": url}]}]
    for messages in (image(url), as_block):
        param, message = refused(messages=messages)
        assert param == "messages"
        assert message.startswith("messages[0].content[0]: media must come as a data: URL")


def test_urls_of_the_web_where_that_is_allowed() -> None:
    fetching = Rules(8, fetch_media=True)
    assert chat(fetching, messages=image("HTTPS://a/b.png")).messages[0]["content"][0]["value"] == "HTTPS://a/b.png"
    for url in ("file:///etc/passwd", "httpx://a", "/etc/http://"):
        with pytest.raises(RenderError, match="reads no files"):
            chat(fetching, messages=image(url))


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number, not 'hot'."),
        ({"temperature": float("nan")}, "temperature", "temperature must be at least 0 and at most 100, not nan."),
        ({"stop": ["\ud800"]}, "stop", "half a surrogate pair"),
        ({"stop": ["x"] * 1025}, "stop", "stop has 1,025 values, and may have 1,024."),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias", "logit_bias has 1,025 values"),
        ({"template_options": {"a": 2**64}}, "template_options", "64 bits"),
        ({"top_p": 0}, "top_p", "top_p must be above 0 and at most 1, not 0."),
        ({"n": 0}, "n", "n must be at least 1 and at most 65536, not 0."),
        ({"n": 9}, "n", "9 answers are asked for at once, and this server gives 8 at most."),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "differ"),
        ({"tool_choice": "required"}, "tool_choice", 'tool_choice = "required" cannot be honoured, only "auto"'),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "cannot be honoured"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls", "cannot be honoured, only true"),
        ({"response_format": {"type": "json_object"}}, "response_format", "cannot be honoured"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "reasoning_effort cannot be honoured; leave it out."),
        ({"functions": [{"name": "f"}]}, "functions", "cannot be honoured"),
        ({"prompt": "x"}, "prompt", "prompt cannot be honoured at /v1/chat/completions"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs to be true"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "top_logprobs must be at least 0 and at most 20, not 21.",
        ),
        ({"logprobs": 3}, "logprobs", "logprobs must be true or false, not 3."),
        ({"stream": "yes"}, "stream", "stream must be true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream to be true"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "include_usage alone"),
        ({"tools": "f"}, "tools", "tools must be a list of objects"),
        ({"messages": "Hello."}, "messages", "messages must be a list"),
        ({"messages": []}, "messages", "needs at least one user turn"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages", "messages[0]: the role must be one of"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half a surrogate pair"),
        ({"messages": [{"role": "assistant", "function_call": {}}]}, "messages", "function_call cannot be honoured"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": []}}]}]},
            "messages",
            "messages[0].content[0]: input_audio needs data",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages", "unknown type"),
        ({"messages": None}, "messages", "messages is missing"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "must be a mapping"),
        ({"model": 7}, "model", "model must be the name of one, not 7."),
        ({"prefill": 7}, "prefill", "text expected"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(body: dict[str, Any], param: str, said: str) -> None:
    named, message = refused(**body)
    assert (named, said in message) == (param, True), message


def test_the_body_must_be_an_object() -> None:
    with pytest.raises(InvalidParameter, match="JSON object"):
        read_chat([1], RULES)


def test_texts_to_go_on_with() -> None:
    asked = read_completion({"prompt": ["a", "b"], "n": 2, "seed": 1, "logprobs": 0, "max_tokens": 3}, RULES)
    assert asked.prompts == ["a", "b"]
    assert [params.pop("seed") for params in map(dict, asked.params)] == [
        1,
        row_seed(1, 0, 1),
        row_seed(1, 1, 0),
        row_seed(1, 1, 1),
    ]
    assert {name for params in asked.params for name in params} == {"seed", "logprobs", "max_new_tokens"}
    assert (asked.answers, asked.per_prompt, asked.chat) == (4, 2, False)
    assert read_completion({"prompt": [1, 2]}, RULES).prompts == [[1, 2]]
    assert read_completion({"prompt": [[1], [2, 3]]}, RULES).prompts == [[1], [2, 3]]
    assert read_completion({"prompt": "a", "echo": True, "suffix": "", "best_of": 1}, RULES).echo
    assert read_completion({"prompt": "a", "n": 2, "best_of": 2}, RULES).answers == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
        ({"prompt": "a", "tools": []}, "tools"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
)
def test_completions_that_cannot_be(body: dict[str, Any], param: str) -> None:
    with pytest.raises((InvalidParameter, RenderError)) as caught:
        read_completion(body, RULES)
    assert caught.value.data.get("param") == param, caught.value.message
