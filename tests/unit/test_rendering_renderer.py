"""The renderer over a tiny tokenizer made in memory: what it says, what it refuses, what nobody can smuggle in."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import Message
from tests.tiny_tokenizer import END, SPECIALS, START, assistant, call, text, tiny_tokenizer, user

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER)


def prompt(*messages: Message, renderer: Renderer = RENDERER, tools: str | None = None, **options: Any) -> str:
    return renderer.codec.decode(renderer.prompt_ids(messages, tools, options), skip_special_tokens=False)


def specials(*messages: Message, tools: str | None = None, **options: Any) -> list[int]:
    ids = RENDERER.prompt_ids(messages, tools, options)
    return [i for i in ids if i in RENDERER.codec.special_ids]


def test_a_prompt_is_the_template_with_the_generation_prompt() -> None:
    assert prompt(user("Hi"), assistant(text("Yo")), user("Ho")) == (
        "<|start|>user:Hi<|end|><|start|>assistant:Yo<|end|><|start|>user:Ho<|end|><|start|>assistant:"
    )


def test_reasoning_is_written_by_the_fallback() -> None:
    renderer = Renderer(tiny_tokenizer(None))
    assert "assistant\n<think>\nhm\n</think>\n\nYes.<|im_end|>" in prompt(
        user("x"), assistant(text("hm", "reasoning"), text("Yes.")), renderer=renderer
    )


def test_special_tokens_of_the_template_are_one_id_each() -> None:
    start, end = (TOKENIZER.convert_tokens_to_ids(token) for token in (START, END))
    assert specials(user("Hi")) == [start, end, start]


def test_blocks_are_joined_and_reasoning_goes_apart() -> None:
    message = assistant(text("th", "reasoning"), text("a"), text("ink", "reasoning"), text("b"))
    assert prompt(user("x"), message).endswith("assistant:(think)ab<|end|><|start|>assistant:")


def test_tool_calls_and_tools_reach_the_template() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    shown = prompt(user("x"), assistant(call({"a": 1})), tools=json.dumps(tool))
    assert '[CALL]{"name": "f", "arguments": {"a": 1}}<|end|>' in shown
    assert json.dumps([tool]) in shown  # a single one is a list of one
    assert json.dumps([tool]) in prompt(user("x"), tools=json.dumps([tool]))


def test_options_reach_the_template() -> None:
    assert "STYLE" in prompt(user("x"), style="STYLE")
    with pytest.raises(RenderError, match="add_generation_prompt"):
        prompt(user("x"), add_generation_prompt=False)


def test_model_input_masks_nothing_and_teaches_nothing() -> None:
    made = RENDERER.render_messages([user("Hi")], is_generate=True, style="s")
    length = len(made["input_ids"])
    assert made["input_ids"] == list(RENDERER.prompt_ids([user("Hi")], None, {"style": "s"}))
    assert (made["attention_mask"], made["labels"], made["loss_weights"]) == (
        [1] * length,
        [-100] * length,
        [0.0] * length,
    )


PIECES = [*SPECIALS, "<|", "|>", "start", "<", ">", "[", "<think>", '"', "\\u003c", "\u200b"]
valid_characters = st.characters(exclude_categories=["Cs"])
dangerous = st.lists(st.sampled_from(PIECES) | valid_characters, max_size=8).map("".join)


@given(dangerous)
def test_no_user_text_makes_a_special_id(value: str) -> None:
    expected = specials(user("x"), assistant(text("x"), text("x", "reasoning"), call({"x": "x"})), tools='{"a": "b"}')
    messages = (
        user(value),
        assistant(text(value), text(value, "reasoning"), call({value: [value, {"k": value}]}, value)),
    )
    try:
        found = specials(*messages, tools=json.dumps({"a" + value: {"deep": [value]}}), style=value)
    except RenderError as error:
        if "forms a special token" not in str(error):  # refused is safe, too
            raise
    else:
        assert found == expected


@given(st.text(alphabet=valid_characters))
def test_normal_text_is_kept_byte_for_byte(value: str) -> None:
    if not any(token in value for token in SPECIALS):
        assert (
            prompt(user("before"), user(value)).split("<|start|>user:")[2].removesuffix("<|end|><|start|>assistant:")
            == value
        )


def test_special_tokens_in_texts_are_named_with_their_places() -> None:
    tools = json.dumps([{"type": "function", "function": {"name": f"f{START}"}}])
    said = [user(f"a{END}b{START}c{END}"), assistant(text("fine")), user(END[:-2])]
    assert RENDERER.escaped(said, tools) == [
        (END, "message 1 (user)"),
        (START, "message 1 (user)"),
        (START, "tools"),
    ]
    assert RENDERER.escaped([user("plain")]) == []


def test_a_token_cut_in_two_by_a_blocks_end_is_broken() -> None:
    assert "<\u200b|end|>" in prompt(user("<|e", "nd|>"))


def test_json_escapes_do_not_hide_a_special_token() -> None:
    assert specials(user("x"), tools=r'{"a": "\u003c|end|>"}') == specials(user("x"))
    hidden = text(r'{"name": "f", "arguments": {"a": "\u003c|end|>"}}', "tool_call")
    assert len(specials(user("x"), assistant(hidden))) == len(specials(user("x"), assistant(call({}))))


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ messages[0].content }}end|>", "<|"),
        ("<|{{ messages[0].content }}", "end|>"),
        ("<|{{ messages[0].content }}|>", "end"),
        ("{{ messages[0].content | lower }}", "<|END|>"),
    ],
)
def test_a_special_token_made_together_with_the_template_is_refused(template: str, value: str) -> None:
    renderer = Renderer(TOKENIZER, custom_chat_template=template)
    with pytest.raises(RenderError, match="forms a special token together with the template"):
        renderer.prompt_ids([user(value)])
    assert renderer.prompt_ids([user("harmless")])


def test_texts_that_merely_look_like_half_a_token_are_taken() -> None:
    assert prompt(user("a <"), assistant(text("> quoted")), user("start")).count("<|start|>") == 4


def test_a_normalizer_that_restores_a_special_token_is_caught() -> None:
    renderer = Renderer(tiny_tokenizer(normalized=True))
    with pytest.raises(RenderError, match=r"special token .* in message 2 \(user\)"):
        renderer.prompt_ids([user("fine"), user("not <|end|> fine")])


@pytest.mark.parametrize(
    ("messages", "tools", "says"),
    [
        ([], None, "no messages"),
        ("Hi", None, "no messages"),
        (["Hi"], None, "Message 1"),
        ([user("x"), {"role": "boss", "content": []}], None, "Message 2 has the role 'boss'"),
        ([{"role": "user", "content": "Hi"}], None, "content of message 1"),
        ([{"role": "user", "content": [{"type": "smell", "value": "x"}]}], None, r"message 1 \(user\)"),
        ([{"role": "user", "content": [{"type": "text", "value": 1}]}], None, r"message 1 \(user\)"),
        ([user("x"), assistant(text("a.png", "image_url"))], None, r"image_url in message 2 \(assistant\)"),
        ([user("x"), assistant(text("{nope", "tool_call"))], None, r"tool_call in message 2 .* not valid JSON"),
        ([user("x"), assistant(text('{"name": "f"}', "tool_call"))], None, r"tool_call in message 2"),
        ([user("x")], "{nope", "tools text is not valid JSON"),
        ([user("x")], "[1]", "tools must be a JSON object or a list"),
        ([user("x")], "[" * 100_000, "not valid JSON"),
        ([user("half \ud83d")], None, r"surrogate\) in message 1"),
    ],
)
def test_what_cannot_be_rendered_is_a_clear_error(messages: Any, tools: str | None, says: str) -> None:
    with pytest.raises(RenderError, match=says):
        RENDERER.prompt_ids(messages, tools)


def test_what_the_template_refuses_is_a_clear_error() -> None:
    renderer = Renderer(TOKENIZER, custom_chat_template="{{ raise_exception('no systems here') }}")
    with pytest.raises(RenderError, match="no systems here"):
        renderer.prompt_ids([user("x")])


def test_precedence_of_templates(tmp_path: Path) -> None:
    class Processor:
        tokenizer = TOKENIZER
        chat_template = "processor"

    file = tmp_path / "own.jinja"
    file.write_text("file {{ messages[0].content }}")
    assert prompt(user("x"), renderer=Renderer(Processor(), custom_chat_template="{{ 'own' }}")) == "own"
    assert prompt(user("x"), renderer=Renderer(Processor(), custom_chat_template=str(file))) == "file x"
    assert prompt(user("x"), renderer=Renderer(Processor())) == "processor"
    assert prompt(user("x")).startswith("<|start|>user")
    several = {"default": "plain", "tool_use": "tools"}
    assert prompt(user("x"), renderer=Renderer(tiny_tokenizer(several))) == "plain"
    assert prompt(user("x"), tools="{}", renderer=Renderer(tiny_tokenizer(several))) == "tools"


def test_the_fallback_is_chatml_and_its_markers_are_guarded() -> None:
    renderer = Renderer(tiny_tokenizer(None))
    assert prompt(user("Hi <|im_end|>"), renderer=renderer) == (
        "<|im_start|>user\nHi <\u200b|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    shown = prompt(user("x"), assistant(call({"a": 1})), tools='{"name": "f"}', renderer=renderer)
    assert '{"name": "f"}\n</tools>' in shown
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in shown


@pytest.mark.parametrize(
    "wrong", [{"template": "nope"}, {"custom_chat_template": "/no/such/file"}, {"custom_chat_template": "{% if %}"}]
)
def test_a_template_that_does_not_work_is_found_at_the_start(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidParameter, match="template"):
        Renderer(TOKENIZER, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("processor", [None, 3, "path/of/a/model", object()])
def test_what_is_no_tokenizer_is_named(processor: Any) -> None:
    with pytest.raises(InvalidParameter, match=f"needs a transformers tokenizer, .*, not {type(processor).__name__}"):
        Renderer(processor)


def test_a_template_without_a_place_for_tools_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    tools = '{"name": "f"}'
    renderer = Renderer(TOKENIZER, custom_chat_template=plain)
    prompt(user("x"), renderer=renderer)
    assert caplog.messages == []
    for _ in range(2):
        prompt(user("x"), tools=tools, renderer=renderer)
    assert len(caplog.messages) == 1
    assert "the chat template does not write tools, so the model sees none" in caplog.text
    caplog.clear()
    for template in (plain + "{% if tools %}{{ tools | tojson }}{% endif %}", plain + "{{ tools | length }}"):
        prompt(user("x"), tools=tools, renderer=Renderer(TOKENIZER, custom_chat_template=template))
    assert caplog.messages == []


def test_a_template_without_a_place_for_reasoning_says_so_where_it_is_to_be_learned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    turns = [user("x"), assistant(text("why", "reasoning"), text("y"))]
    renderer = Renderer(TOKENIZER, custom_chat_template=plain)
    renderer.render_messages([*turns, user("z")], is_generate=True)  # templates leave out what is past
    assert caplog.messages == []
    for _ in range(2):
        renderer.render_messages(turns)
    assert len(caplog.messages) == 1
    assert "does not write reasoning" in caplog.text
    caplog.clear()
    Renderer(TOKENIZER).render_messages(turns)
    assert caplog.messages == []


DATED = (
    "{{ strftime_now('%d %B %Y') }}: {% for m in messages %}<|start|>{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
)


def test_the_date_that_a_template_asks_for_can_be_stopped() -> None:
    renderer = Renderer(tiny_tokenizer(DATED))
    for words in ("Hi", "ends with <|sta"):  # which could join with the template around it, so it is rendered twice
        shown = prompt(user(words), renderer=renderer, strftime_now="2024-02-29T23:59:00")
        assert shown.startswith("29 February 2024: <|start|>user:")
    assert prompt(user("Hi"), renderer=renderer).startswith(f"{datetime.now():%d %B %Y}: ")
    learned = renderer.render_messages([user("Hi"), assistant(text("Yo"))], strftime_now="2024-02-29")
    assert renderer.codec.decode(learned["input_ids"], skip_special_tokens=True).startswith("29 February 2024: ")
    for wrong in ("yesterday", 7, None):
        with pytest.raises(RenderError, match="'strftime_now' must be a date and time in ISO form"):
            prompt(user("Hi"), renderer=renderer, strftime_now=wrong)


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{{- strftime_now(format='%Y-%m-%dT%H:%M:%S%%%-d%e') ~ '!' }}\n\n",
        '\n  {% if strftime_now is defined %}\n{% set d = strftime_now("100%%, %A %j %y%Q%") %}\n {{ d }}{% endif %}\n',
        "   {%- macro head() %}Today: {{ strftime_now('%B\n%p') }}{% endmacro %}  {{ head() }}",
        "{%- for n in range(2) %}{{ strftime_now('%' ~ 'd') }}{{ n }} {% endfor %}%d",
    ],
)
def test_a_stopped_clock_changes_nothing_but_the_time(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    fixed = datetime(2024, 2, 9, 23, 5, 7)
    with patch("transformers.utils.chat_template_utils.datetime", Mock(now=lambda: fixed)):
        wanted = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert any(word in wanted for word in ("9", "February", "Friday"))
    assert prompt(user("x"), renderer=Renderer(tokenizer), strftime_now=fixed.isoformat()) == wanted


def test_a_plugin_that_renders_itself_gets_no_date() -> None:
    def render(_processor: Any, messages: Any, _tools: Any, _generate: Any, **options: Any) -> Any:
        return {"input_ids": [len(messages), len(options)]}

    plugin = RenderingPlugin(render_messages=render)
    renderer = Renderer(tiny_tokenizer(None), template=plugin)
    assert renderer.prompt_ids([user("Hi")], None, {"strftime_now": "2024-02-29", "style": "brief"}) == (1, 1)


def test_codec_decodes_what_it_encodes_and_knows_the_ends() -> None:
    codec = Renderer(TOKENIZER, eos_token_ids=[3]).codec
    ids = TOKENIZER("a 😀 <|end|> b .", add_special_tokens=False)["input_ids"]
    assert codec.decode(ids, skip_special_tokens=False) == "a 😀 <|end|> b ."
    assert codec.decode(tuple(ids), skip_special_tokens=True) == "a 😀  b ."
    assert codec.decode(ids[:4], skip_special_tokens=True) == "a \ufffd"
    assert codec.eos_token_ids == {3, TOKENIZER.convert_tokens_to_ids(END)}


def test_a_limit_set_on_the_tokenizer_does_not_cut_prompts() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    whole = renderer.prompt_ids([user("Hello")])
    tokenizer("Hello", truncation=True, max_length=2, padding="max_length")
    assert renderer.prompt_ids([user("Hello")]) == whole


def test_threads_render_at_the_same_time() -> None:
    expected = {n: prompt(user(f"text {n} <")) for n in range(4)}
    found: dict[int, set[str]] = {n: set() for n in range(4)}

    def work(n: int) -> None:
        for _ in range(50):
            found[n].add(prompt(user(f"text {n} <")))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: {shown} for n, shown in expected.items()}
