"""Rendering plugins: found by name, imported late, and each reads back what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool import AnswerTags, RenderingPlugin, register_rendering_plugin
from samplerpool.config.arguments import ModelArguments, PoolArguments
from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.pool.launcher import checked_model
from samplerpool.rendering import plugins
from samplerpool.rendering.plugins import portable_name, rendering_plugin
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import Message, ModelInput
from tests.tiny_tokenizer import assistant, call, text, tiny_tokenizer, user

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
BUILT_IN = ("chatml", "qwen3", "qwen3_nothink")
TOKENIZER = tiny_tokenizer(more_specials=CHATML_TOKENS)

MINE = RenderingPlugin(chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
NO_PLUGIN = "text"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registered", {})


def shown(renderer: Renderer, *messages: Message, tools: str | None = None, **options: Any) -> str:
    return renderer.codec.decode(renderer.prompt_ids(messages, tools, options), skip_special_tokens=False)


# ---- what they write ---------------------------------------------------------------------------------------------


def test_qwen3_writes_what_its_models_were_trained_with() -> None:
    conversation = (
        {"role": "system", "content": [text("S")]},
        user("old"),
        assistant(text("forgotten", "reasoning"), text("A")),
        user("new"),
        assistant(text("kept", "reasoning"), call({"x": "é"}), call({})),
        {"role": "tool", "content": [text("1")]},
        {"role": "tool", "content": [text("2")]},
    )
    written = (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nold<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nnew<|im_end|>\n<|im_start|>assistant\n<think>\nkept\n</think>\n\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    renderer = Renderer(TOKENIZER, template="qwen3")
    assert shown(renderer, *conversation) == written  # type: ignore[arg-type]
    assert shown(renderer, user("q"), enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert shown(renderer, user("q"), enable_thinking=True).endswith("assistant\n")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_nothink"])
def test_qwen3_tells_of_tools_in_the_system_turn(name: str) -> None:
    renderer = Renderer(TOKENIZER, template=name)
    tools = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        'You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{"name": "f"}\n</tools>\n'
        "\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n<|im_start|>user\n'
    )
    assert shown(renderer, user("q"), tools='{"name": "f"}').startswith("<|im_start|>system\n" + tools)
    system: Message = {"role": "system", "content": [text("S")]}
    assert shown(renderer, system, user("q"), tools='{"name": "f"}').startswith("<|im_start|>system\nS\n\n" + tools)


def test_qwen3_nothink_has_no_thinking_to_enable() -> None:
    renderer = Renderer(TOKENIZER, template="qwen3_nothink")
    with pytest.raises(RenderError, match="leave enable_thinking out"):
        renderer.prompt_ids([user("q")], None, {"enable_thinking": True})
    assert shown(renderer, user("q"), enable_thinking=False).endswith("<|im_start|>assistant\n")


# ---- what they read is what they wrote ---------------------------------------------------------------------------

TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "<tool_call>", "</tool_call>")
words = (
    st.lists(
        st.sampled_from(["<", ">", "think", "tool_call", "{}", "\n\n", "😀"]) | st.characters(exclude_categories=["Cs"])
    )
    .map("".join)
    .map(str.strip)
    .filter(lambda value: value and not any(tag in value for tag in (*TAGS, *CHATML_TOKENS, "<|", "[CALL]", "<pad>")))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(lambda arguments, name: call(arguments, name), st.dictionaries(words, json_values, max_size=2), words)


@st.composite
def turns(draw: st.DrawFn) -> Message:
    reasoning, answer = draw(st.none() | words), draw(st.none() | words)
    content = [] if reasoning is None else [text(reasoning, "reasoning")]
    content += [] if answer is None else [text(answer)]
    content += draw(st.lists(calls, max_size=2))
    return assistant(*content) if content else assistant(text(""))


def canonical(message: Message) -> Message:
    blocks = [(b["type"], b["value"]) for b in message["content"]]
    kept = [(kind, json.dumps(json.loads(value)) if kind == "tool_call" else value) for kind, value in blocks]
    return {**message, "content": [text(value, kind) for kind, value in kept]}


RENDERERS = {name: Renderer(TOKENIZER, template=name) for name in BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
@given(turn=turns())
def test_an_answer_that_was_rendered_is_parsed_to_the_same_turn(name: str, turn: Message) -> None:
    renderer = RENDERERS[name]
    made = renderer.render_messages([user("q"), turn])
    begin = next(i for i, label in enumerate(made["labels"]) if label != -100)
    answer = renderer.codec.decode(made["input_ids"][begin:], skip_special_tokens=False).removesuffix("<|im_end|>\n")
    assert canonical(renderer.parse_message(answer, made["input_ids"][:begin])) == canonical(turn)


dangerous = st.lists(
    st.sampled_from([*CHATML_TOKENS, "<|", "|>", "im_end", "\\u003c"]) | st.characters(exclude_categories=["Cs"]),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", BUILT_IN)
@given(value=dangerous)
def test_no_text_makes_a_special_id_in_any_plugin(name: str, value: str) -> None:
    renderer = RENDERERS[name]

    def specials(inner: str) -> list[int]:
        messages = [user(inner), assistant(text(inner, "reasoning"), text(inner), call({"k": [inner]}, inner))]
        made = renderer.render_messages(messages, json.dumps([{"name": inner, "deep": {"a": [inner]}}]))
        return [token_id for token_id in made["input_ids"] if token_id in renderer.codec.special_ids]

    assert specials(value) == specials("x")


# ---- registering -------------------------------------------------------------------------------------------------


def test_a_registered_plugin_is_used_by_its_name() -> None:
    register_rendering_plugin("mine", MINE)
    assert shown(Renderer(TOKENIZER, template="mine"), user("Hi")) == "<user>Hi"
    assert shown(Renderer(TOKENIZER, template=MINE), user("Hi")) == "<user>Hi"
    with pytest.raises(InvalidParameter, match="'mine' already"):
        register_rendering_plugin("mine", RenderingPlugin())
    register_rendering_plugin("mine", RenderingPlugin(), replace=True)
    assert shown(Renderer(TOKENIZER, template="mine"), user("Hi")).startswith("<|start|>user:Hi")


def test_a_path_is_imported_when_it_is_first_used() -> None:
    register_rendering_plugin("late", f"{__name__}:MINE")
    assert rendering_plugin("late") is MINE
    assert rendering_plugin(f"{__name__}:MINE") is MINE
    register_rendering_plugin("broken", "no_such_module_anywhere:PLUGIN")  # nothing is imported yet
    with pytest.raises(InvalidParameter, match=r"'broken' cannot be imported \(ModuleNotFoundError.*PYTHONPATH"):
        rendering_plugin("broken")
    with pytest.raises(InvalidParameter, match="NO_PLUGIN is not a RenderingPlugin, but str"):
        rendering_plugin(f"{__name__}:NO_PLUGIN")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("quen3", "Unknown rendering plugin .* 'quen3'; did you mean 'qwen3'"),
        ("minne", "did you mean 'mine'"),
        ("zzz", "known: chatml, mine, qwen3, qwen3_nothink"),
        ("a b:c", "Unknown rendering plugin"),
        ("", "Unknown rendering plugin"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, says: str) -> None:
    register_rendering_plugin("mine", MINE)
    with pytest.raises(InvalidParameter, match=says):
        Renderer(TOKENIZER, template=name)


@pytest.mark.parametrize(
    ("name", "plugin"), [("chatml", MINE), ("a:b", MINE), ("", MINE), (3, MINE), ("x", "no path"), ("x", print)]
)
def test_what_cannot_be_registered_is_an_error(name: Any, plugin: Any) -> None:
    with pytest.raises(InvalidParameter, match="rendering plugin"):
        register_rendering_plugin(name, plugin)


def test_a_plugin_with_two_ways_to_render_is_an_error() -> None:
    with pytest.raises(InvalidParameter, match="give one of them"):
        RenderingPlugin(chat_template="x", render_messages=lambda *_: {})  # type: ignore[arg-type,return-value]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with a plugin, as pip would have left it."""
    (tmp_path / "their_plugin.py").write_text(
        "from samplerpool import RenderingPlugin\nTHEIRS = RenderingPlugin(chat_template='theirs')\n"
    )
    info = tmp_path / "their_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[samplerpool.rendering]\ntheirs = their_plugin:THEIRS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("their_plugin", None)


@pytest.mark.usefixtures("installed")
def test_an_installed_package_brings_a_plugin() -> None:
    assert shown(Renderer(TOKENIZER, template="theirs"), user("Hi")) == "theirs"


@pytest.mark.usefixtures("installed")
def test_workers_find_what_they_are_told_of() -> None:
    register_rendering_plugin("here", MINE)
    register_rendering_plugin("late", f"{__name__}:MINE")
    assert [portable_name(name) for name in ("qwen3", "a.b:c.d", "theirs", "late")] == [
        "qwen3",
        "a.b:c.d",
        "their_plugin:THEIRS",
        f"{__name__}:MINE",
    ]
    with pytest.raises(InvalidParameter, match=r"'here' is registered in this process alone.*module:attribute"):
        portable_name("here")


def test_a_pool_with_an_unknown_plugin_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    model, pool = str(tmp_path / "tiny.gguf"), PoolArguments()
    with pytest.raises(InvalidParameter, match="did you mean 'chatml'"):
        checked_model(ModelArguments(model_name_or_path=model, template="chatlm"), pool)
    register_rendering_plugin("late", f"{__name__}:MINE")
    checked = checked_model(ModelArguments(model_name_or_path=model, template="late"), pool)
    assert checked == ModelArguments(model_name_or_path=model, template=f"{__name__}:MINE")


def test_built_in_plugins_are_imported_when_they_are_used() -> None:
    script = (
        "import sys; from samplerpool.rendering.plugins import portable_name, rendering_plugin; portable_name('qwen3');"
        "before = 'samplerpool.rendering.qwen3' in sys.modules; rendering_plugin('qwen3');"
        "print(before, 'samplerpool.rendering.qwen3' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.split() == ["False", "True"]


# ---- functions of a plugin ---------------------------------------------------------------------------------------


def render_bytes(
    processor: Any, messages: list[Message], tools: str | None = None, is_generate: bool = False, **options: Any
) -> ModelInput:
    said = json.dumps([messages, tools, options], ensure_ascii=False)
    ids = processor(said, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [0] * len(ids),
        "loss_weights": [0.25] * len(ids),
    }


def test_a_function_renders_guarded_messages_in_both_forms() -> None:
    renderer = Renderer(TOKENIZER, template=RenderingPlugin(render_messages=render_bytes, markers=("MARK",)))
    messages = [user("a <|end|> ", "MARK"), assistant(call({"x": "<|end|>"}), text("t"), text("r", "reasoning"))]
    ids = renderer.prompt_ids(messages, '{"name": "f"}', {"style": "s"})
    got, tools, options = json.loads(renderer.codec.decode(ids, skip_special_tokens=False))
    assert [got[0], canonical(got[1])] == [
        user("a <\u200b|end|> M\u200bARK"),
        assistant(text("r", "reasoning"), text("t"), call({"x": "<\u200b|end|>"})),
    ]
    assert (json.loads(tools), options) == ([{"name": "f"}], {"style": "s"})
    made = renderer.render_messages(messages)
    assert (set(made["labels"]), set(made["loss_weights"])) == ({0}, {0.25})
    prompt = renderer.render_messages(messages, is_generate=True)
    assert (set(prompt["labels"]), set(prompt["loss_weights"])) == ({-100}, {0.0})


def test_a_function_cannot_be_tricked_into_a_special_token() -> None:
    def careless(processor: Any, messages: list[Message], *_: Any, **__: Any) -> Any:
        return processor("<|" + messages[0]["content"][0]["value"], add_special_tokens=False)

    renderer = Renderer(TOKENIZER, template=RenderingPlugin(render_messages=careless))
    assert renderer.prompt_ids([user("harmless")])
    with pytest.raises(RenderError, match="forms a special token"):
        renderer.prompt_ids([user("end|>")])


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "mapping with input_ids.*None"),
        ({"input_ids": "text"}, "mapping with input_ids"),
        ({"input_ids": [1], "labels": [1], "loss_weights": [1.0]}, "attention_mask for training, a list of 1"),
        ({"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [1]}, "labels for training, a list of 2"),
    ],
)
def test_what_a_function_returns_is_checked(returned: Any, says: str) -> None:
    plugin = RenderingPlugin(render_messages=lambda *_, **__: returned)
    with pytest.raises(RenderError, match=says):
        Renderer(TOKENIZER, template=plugin).render_messages([user("q"), assistant(text("a"))])


def test_what_a_function_raises_is_a_clear_error() -> None:
    plugin = RenderingPlugin(render_messages=lambda *_, **__: {}["x"])
    with pytest.raises(RenderError, match="rendering plugin refused these messages: KeyError: 'x'"):
        Renderer(TOKENIZER, template=plugin).prompt_ids([user("q")])


def test_a_custom_template_goes_before_a_plugins_way_to_render() -> None:
    plugin = RenderingPlugin(render_messages=render_bytes, tags=AnswerTags(think=("<r>", "</r>")))
    renderer = Renderer(TOKENIZER, template=plugin, custom_chat_template="{{ 'mine' }}")
    assert shown(renderer, user("q")) == "mine"
    assert renderer.parse_message("<r>a</r>b") == assistant(text("a", "reasoning"), text("b"))


def test_a_plugin_that_only_reads_leaves_the_fallback_its_markers() -> None:
    renderer = Renderer(tiny_tokenizer(None), template=RenderingPlugin(tags=AnswerTags(think=("<r>", "</r>"))))
    assert "user\n<\u200b|im_end|><|im_end|>" in shown(renderer, user("<|im_end|>"))
    assert renderer.parse_message("<r>a</r>") == assistant(text("a", "reasoning"))


def test_a_plugins_function_parses_answers() -> None:
    def shout(answer: str) -> Message:
        return assistant(text(answer.upper()), text("", "reasoning"))

    assert Renderer(TOKENIZER, template=RenderingPlugin(parse_message=shout)).parse_message("a") == assistant(text("A"))


@pytest.mark.parametrize("wrong", [None, {"role": "user", "content": []}, {"role": "assistant", "content": [{}]}])
def test_an_answer_survives_a_function_that_fails(wrong: Any) -> None:
    plugin = RenderingPlugin(parse_message=lambda _: wrong)
    parsed = Renderer(TOKENIZER, template=plugin).parse_message("<think>a</think>b")
    assert parsed["content"] == [text("a", "reasoning"), text("b")]
    assert "could not be parsed" in parsed["parse_error"]
