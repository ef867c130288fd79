"""The training form: what is to be learned, and with which weight; single answers and pairs of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.errors import RenderError
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import Message, ModelInput
from tests.tiny_tokenizer import SPECIALS, assistant, call, text, tiny_tokenizer, user

TOKENIZER = tiny_tokenizer()
RENDERER = Renderer(TOKENIZER)
CHATML = Renderer(tiny_tokenizer(None, more_specials=["<|im_start|>", "<|im_end|>"]))
MASKED = -100

system: Message = {"role": "system", "content": [text("Be brief.")]}
tool_result: Message = {"role": "tool", "content": [text("4")]}
CONVERSATIONS: list[list[Message]] = [
    [user("Hi"), assistant(text("Yo"))],
    [system, user("a", "b"), assistant(text("x")), user("Grüße 😀\n"), assistant(text(" y\n"), text("z"))],
    [user("2+2?"), assistant(text("hm", "reasoning"), call({"a": [2, "é"]})), tool_result, assistant(text("4"))],
]


def learned(made: ModelInput, renderer: Renderer = RENDERER) -> str:
    """The text of what has labels; the labels must be the tokens themselves, and the weights in the same places."""
    for token_id, label, weight in zip(made["input_ids"], made["labels"], made["loss_weights"], strict=True):
        assert (label, weight > 0) in ((MASKED, False), (token_id, True))
    return renderer.codec.decode([i for i in made["labels"] if i != MASKED], skip_special_tokens=False)


def plain(message: Message) -> dict[str, Any]:
    """A message in the form of chat templates, made without this project's code."""
    made: dict[str, Any] = {"role": message["role"], "content": ""}
    for block in message["content"]:
        if block["type"] == "text":
            made["content"] += block["value"]
        elif block["type"] == "reasoning":
            made["reasoning_content"] = made.get("reasoning_content", "") + block["value"]
        else:
            function = json.loads(block["value"])
            made.setdefault("tool_calls", []).append({"type": "function", "function": function})
    return made


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_both_forms_are_the_tokenizers_own_token_for_token(messages: list[Message]) -> None:
    converted = [plain(message) for message in messages]
    whole = TOKENIZER.apply_chat_template(converted, return_dict=False)
    prompt = TOKENIZER.apply_chat_template(converted[:-1], add_generation_prompt=True, return_dict=False)
    made = RENDERER.render_messages(messages)
    assert made["input_ids"] == whole
    assert made["labels"] == [MASKED] * len(prompt) + whole[len(prompt) :]
    assert RENDERER.render_messages(messages[:-1], is_generate=True)["input_ids"] == prompt


def test_only_the_last_turn_is_learned() -> None:
    made = RENDERER.render_messages(CONVERSATIONS[1])
    assert learned(made) == " y\nz<|end|>"
    assert set(made["loss_weights"]) == {0.0, 1.0}
    assert made["attention_mask"] == [1] * len(made["input_ids"])
    assert set(made) == {"input_ids", "attention_mask", "labels", "loss_weights"}


@pytest.mark.parametrize(("weight", "shown"), [(0.5, "Yo<|end|>"), (2, "Yo<|end|>"), (0, ""), (0.0, "")])
def test_the_last_turns_weight_is_that_of_its_tokens(weight: float, shown: str) -> None:
    made = RENDERER.render_messages([user("Hi"), {**assistant(text("Yo")), "loss_weight": weight}])
    assert learned(made) == shown
    assert made["loss_weights"][-3:] == [float(weight)] * 3


def test_weights_of_earlier_turns_count_for_nothing() -> None:
    earlier: list[Message] = [{**user("a"), "loss_weight": 1.0}, {**assistant(text("b")), "loss_weight": 1.0}]
    assert learned(RENDERER.render_messages([*earlier, user("c"), assistant(text("d"))])) == "d<|end|>"


def test_thinking_follows_the_reasoning_of_the_answer() -> None:
    renderer = Renderer(TOKENIZER, template="qwen3")
    without = renderer.render_messages([user("q"), assistant(text("a"))], enable_thinking=True)
    assert learned(without, renderer) == "a<|im_end|>\n"
    with_it = renderer.render_messages([user("q"), assistant(text("r", "reasoning"), text("a"))])
    assert learned(with_it, renderer) == "<think>\nr\n</think>\n\na<|im_end|>\n"


def test_tools_and_options_reach_the_template_in_training() -> None:
    made = CHATML.render_messages([user("q"), assistant(call({"x": 1}))], '{"name": "f"}')
    assert '{"name": "f"}\n</tools>' in CHATML.codec.decode(made["input_ids"], skip_special_tokens=False)
    assert learned(made, CHATML).startswith('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')
    renderer = Renderer(TOKENIZER, custom_chat_template="{{ style }}{% for m in messages %}{{ m.content }}{% endfor %}")
    made = renderer.render_messages([user("q"), assistant(text("a"))], style="S")
    assert renderer.codec.decode(made["input_ids"], skip_special_tokens=False) == "Sqa"


pieces = st.lists(
    st.sampled_from([*SPECIALS, "<|", "|>", "end", "[", "\u200b"]) | st.characters(exclude_categories=["Cs"])
)


@given(pieces.map("".join), pieces.map("".join))
def test_no_text_makes_a_special_id_in_training(question: str, answer: str) -> None:
    special = RENDERER.codec.special_ids
    ids = RENDERER.render_messages([user("x"), assistant(text("x"))])["input_ids"]
    expected = [token_id for token_id in ids if token_id in special]
    made = RENDERER.render_messages([user(question), assistant(text(answer))])
    assert [token_id for token_id in made["input_ids"] if token_id in special] == expected


def test_a_special_token_made_with_the_template_is_refused_in_training() -> None:
    renderer = Renderer(TOKENIZER, custom_chat_template="{% for m in messages %}<|{{ m.content }}{% endfor %}")
    with pytest.raises(RenderError, match="forms a special token together with the template"):
        renderer.render_messages([user("fine"), assistant(text("end|>"))])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no messages"),
        (None, "no messages"),
        (["Hi"], "Message 1 is not an object"),
        ([user("x")], r"message 1 is the user's.*is_generate=True"),
        ([user("x"), assistant(text("y")), tool_result], "message 3 is the tool's"),
        ([assistant(text("y"))], "nothing before the assistant's answer"),
        ([user("x"), {**assistant(text("y")), "loss_weight": -1}], "loss_weight of message 2 .* not -1"),
        ([user("x"), {**assistant(text("y")), "loss_weight": "1"}], "loss_weight of message 2 .* not '1'"),
        ([user("x"), {**assistant(text("y")), "loss_weight": True}], "loss_weight of message 2 .* not True"),
        ([user("x"), {**assistant(text("y")), "loss_weight": float("nan")}], "loss_weight of message 2 .* not nan"),
        ([user("x"), assistant(text("{nope", "tool_call"))], "tool_call in message 2"),
        ([user("x"), {"role": "assistant", "content": "y"}], "content of message 2"),
    ],
)
def test_what_cannot_be_learned_is_a_clear_error(messages: Any, says: str) -> None:
    with pytest.raises(RenderError, match=says):
        RENDERER.render_messages(messages)


def test_a_prompt_that_is_not_the_beginning_of_the_whole_is_refused() -> None:
    renderer = Renderer(TOKENIZER, custom_chat_template="{{ messages | length }}{{ messages[0].content }}")
    with pytest.raises(RenderError, match=r"prompt's 2 tokens .* differ from token 1 on.*cannot be told apart"):
        renderer.render_messages([user("x"), assistant(text("y"))])


def test_samples_get_positions_and_keep_their_columns() -> None:
    extra = {"source": "book"}
    first, second = RENDERER.process_samples(
        [
            {"messages": CONVERSATIONS[0], "extra_info": extra, "_dataset_name": "demo"},  # type: ignore[typeddict-item]
            {"messages": CONVERSATIONS[1], "chosen_messages": None, "tools": ""},  # type: ignore[typeddict-item]
        ]
    )
    assert first == {
        **RENDERER.render_messages(CONVERSATIONS[0]),
        "position_ids": list(range(1, len(first["input_ids"]) + 1)),
        "extra_info": extra,
        "_dataset_name": "demo",
    }
    assert set(second) == {"input_ids", "attention_mask", "labels", "loss_weights", "position_ids"}


def test_a_pair_is_one_sequence_of_two() -> None:
    chosen, rejected = [user("q"), assistant(text("good"))], [user("q"), assistant(text("bad"))]
    (made,) = CHATML.process_samples(
        [{"chosen_messages": chosen, "rejected_messages": rejected, "tools": '{"name": "f"}', "_dataset_name": "d"}]
    )
    good, bad = (CHATML.render_messages(messages, '{"name": "f"}') for messages in (chosen, rejected))
    for name in ("input_ids", "attention_mask", "labels", "loss_weights"):
        assert made[name] == good[name] + bad[name]  # type: ignore[literal-required]
    sizes = len(good["input_ids"]), len(bad["input_ids"])
    assert made["position_ids"] == [*range(1, sizes[0] + 1), *range(1, sizes[1] + 1)]
    assert made["token_type_ids"] == [1] * sizes[0] + [2] * sizes[1]
    assert (made["_dataset_name"], "extra_info" in made) == ("d", False)
    assert learned(made, CHATML) == "good<|im_end|>\nbad<|im_end|>\n"


PAIR = {"chosen_messages": CONVERSATIONS[0], "rejected_messages": CONVERSATIONS[0]}


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({}, "Sample 2 must have either messages, or .* it has neither"),
        ("text", "Sample 2 must have"),
        ({"messages": None}, "it has neither"),
        ({"chosen_messages": CONVERSATIONS[0]}, "it has chosen_messages"),
        ({**PAIR, "messages": CONVERSATIONS[0]}, "it has chosen_messages and messages and rejected_messages"),
        ({"messages": [user("x")]}, "Sample 2, messages: For training, the last message"),
        ({**PAIR, "rejected_messages": [user("x")]}, "Sample 2, rejected_messages: For training"),
        ({"messages": CONVERSATIONS[0], "tools": "{nope"}, "Sample 2, messages: The tools text is not valid JSON"),
    ],
)
def test_a_sample_that_cannot_be_learned_is_named(sample: Any, says: str) -> None:
    with pytest.raises(RenderError, match=says):
        RENDERER.process_samples([{"messages": CONVERSATIONS[0]}, sample])
