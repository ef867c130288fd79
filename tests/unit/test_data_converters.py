"""Converters make conversations of what people's rows look like, and a row that may mean something else is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.data.builtin_converters import detect
from samplerpool.data.converters import AutoConverter, converter_names, get_converter, register_converter, sample_of
from samplerpool.errors import BadRow, InvalidParameter, RenderError

auto = AutoConverter()


def text(role, value):
    return {"role": role, "content": [{"type": "text", "value": value}]}


def call(name, **arguments):
    value = json.dumps({"name": name, "arguments": arguments})
    return {"role": "assistant", "content": [{"type": "tool_call", "value": value}]}


QUESTION = [text("user", "2+2?")]
ANSWERED = [*QUESTION, text("assistant", "4")]
TURN = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4"}
HUMAN, GPT = {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}
TOOLS = [{"name": "weather", "parameters": {}}]


@pytest.mark.parametrize(
    ("name", "row", "sample"),
    [
        ("openai", {"messages": [TURN, REPLY], "id": 5}, {"messages": ANSWERED, "id": 5}),
        ("openai", {"conversations": [TURN, REPLY]}, {"messages": ANSWERED}),
        ("openai", {"messages": json.dumps([TURN, REPLY]), "prompt": ""}, {"messages": ANSWERED, "prompt": ""}),
        ("openai", {"messages": "[1, 2] is a list"}, {"messages": [text("user", "[1, 2] is a list")]}),
        ("openai", {"messages": [TURN], "tools": TOOLS}, {"messages": QUESTION, "tools": json.dumps(TOOLS)}),
        ("openai", {"messages": [TURN], "tools": ""}, {"messages": QUESTION}),
        ("prompt", {"prompt": "2+2?", "answer": "4"}, {"messages": QUESTION, "answer": "4"}),
        ("prompt", {"prompt": [TURN], "messages": None}, {"messages": QUESTION, "messages_": None}),
        ("alpaca", {"instruction": "2+2?", "input": "", "output": "4"}, {"messages": ANSWERED}),
        ("alpaca", {"instruction": "2+2?", "input": None}, {"messages": QUESTION}),
        ("alpaca", {"instruction": "2+2?", "id": 1}, {"messages": QUESTION, "id": 1}),
        (
            "alpaca",
            {"system": "Be brief.", "history": [["a", "b"]], "instruction": "Add.", "input": "2+2", "output": "4"},
            {
                "messages": [
                    text("system", "Be brief."),
                    text("user", "a"),
                    text("assistant", "b"),
                    text("user", "Add.\n2+2"),
                    text("assistant", "4"),
                ]
            },
        ),
        ("sharegpt", {"conversations": [HUMAN, GPT], "tools": "[]"}, {"messages": ANSWERED, "tools": "[]"}),
        ("sharegpt", {"messages": [HUMAN, GPT]}, {"messages": ANSWERED}),
        (
            "sharegpt",
            {
                "system": "Be brief.",
                "conversations": [
                    {"from": "human", "value": "Köln?"},
                    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Köln"}}'},
                    {"from": "observation", "value": "12 °C"},
                    {"from": "function_call", "value": '[{"name": "a", "arguments": "{}"}, {"name": "b"}]'},
                    {"from": "gpt", "value": "Mild."},
                ],
            },
            {
                "messages": [
                    text("system", "Be brief."),
                    text("user", "Köln?"),
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "tool_call", "value": '{"name": "weather", "arguments": {"city": "Köln"}}'}
                        ],
                    },
                    text("tool", "12 °C"),
                    {"role": "assistant", "content": [*call("a")["content"], *call("b")["content"]]},
                    text("assistant", "Mild."),
                ]
            },
        ),
        ("pair", {"chosen_messages": [TURN, REPLY], "rejected_messages": [TURN, GPT | REPLY]}, "5"),
        ("pair", {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "5"),
        ("pair", {"prompt": [TURN], "chosen": REPLY, "rejected": {"role": "assistant", "content": "5"}}, "5"),
        ("pair", {"prompt": "2+2?", "chosen": [TURN, REPLY], "rejected": [TURN, REPLY | {"content": "5"}]}, "5"),
        ("pair", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "5"}}, "5"),
        ("pair", {"messages": [TURN], "chosen": [REPLY], "rejected": "5"}, "5"),
        ("pair", {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"}, "5"),
    ],
)
def test_each_converter_by_name_and_by_the_columns(name, row, sample):
    if name == "pair":
        other = row["rejected_messages"][-1]["content"] if "rejected_messages" in row else sample
        sample = {"chosen_messages": ANSWERED, "rejected_messages": [*QUESTION, text("assistant", other)]}
    if "messages_" in sample:  # an empty column of the same name gives way
        del sample["messages_"]
    before = json.dumps(row)
    assert sample_of(get_converter(name), row) == sample
    assert detect(row) == name
    assert sample_of(auto, row) == sample
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("alpaca", {"instruction": 5}, ["instruction", "text", "int"]),
        ("alpaca", {"output": "x", "id": 1}, ["instruction", "output, id"]),
        ("alpaca", {"instruction": "x", "history": ["ab"]}, ["history[0]"]),
        ("sharegpt", {"conversations": "no"}, ["conversations", "list"]),
        ("sharegpt", {"conversations": [HUMAN, {"from": "bot", "value": "x"}]}, ["conversations[1].from", "'bot'"]),
        ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "value": 4}]}, ["conversations[1].value", "int"]),
        ("sharegpt", {"conversations": [HUMAN, "x"]}, ["conversations[1]", "str"]),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "f("}]}, ["[1].value", "JSON"]),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "[1]"}]}, ["messages[1]", "name"]),
        ("sharegpt", {"text": "x"}, ["conversations", "text"]),
        ("openai", {"text": "x"}, ["messages", "text"]),
        ("openai", {"messages": [{"role": "bot"}]}, ["messages[0]", "'bot'"]),
        ("prompt", {"text": "x"}, ["prompt", "text"]),
        ("pair", {"chosen": "x"}, ["chosen and rejected"]),
        ("pair", {"chosen": "x", "rejected": "y"}, ["chosen", "question", "prompt"]),
        ("pair", {"prompt": "p", "chosen": [TURN], "rejected": "y"}, ["chosen must end", "preference pair"]),
        ("pair", {"prompt": "p", "chosen": "x", "rejected": []}, ["rejected must be", "preference pair"]),
        ("pair", {"prompt": "p", "chosen": "x", "rejected": "\ud83d"}, ["rejected_messages: messages[1]", "surrogate"]),
    ],
)
def test_errors_name_the_column(name, row, words):
    with pytest.raises((BadRow, RenderError)) as caught:
        sample_of(get_converter(name), row)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "context": "2+2", "response": "4"},  # a column of this would be dropped
        {"question": "2+2?", "answer": "4"},
        {"text": "once upon a time"},
        {"chosen": "a dialogue", "rejected": None},
        {"instruction": "", "input": "x", "output": "y"},
        {},
    ],
)
def test_rows_that_no_converter_is_sure_of_are_refused(row):
    assert detect(row) is None
    with pytest.raises(BadRow, match="a row needs a messages or a prompt column"):
        sample_of(auto, row)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), min_size=1, max_size=5)
AS_SHAREGPT = {"user": "human", "assistant": "gpt"}
WRITERS = {
    "openai": lambda spoken: {"messages": [{"role": role, "content": value} for role, value in spoken]},
    "sharegpt": lambda spoken: {
        "conversations": [{"from": AS_SHAREGPT[role], "value": value} for role, value in spoken]
    },
    "pair": lambda spoken: {
        "chosen": [{"role": role, "content": value} for role, value in [*spoken, ("assistant", "yes")]],
        "rejected": [{"role": role, "content": value} for role, value in [*spoken, ("assistant", "no")]],
    },
}
extras = st.dictionaries(
    st.sampled_from(["id", "source", "text", "score", "question", "reference", "extra_info"]),
    texts | st.none() | st.integers(),
)
absent = st.dictionaries(
    st.sampled_from(["prompt", "instruction", "input", "output", "system", "tools", "chosen", "rejected"]),
    st.none(),
)


@given(st.sampled_from(sorted(WRITERS)), turns, extras, absent)
def test_columns_that_mean_nothing_do_not_mislead(name, spoken, extra, empty):
    """Neither further columns nor empty ones of other forms change what is read, and nothing of it is lost."""
    sample = sample_of(auto, {**extra, **empty, **WRITERS[name](spoken)})
    read = sample["chosen_messages"][:-1] if name == "pair" else sample["messages"]
    assert read == [text(role, value) for role, value in spoken]
    assert {key: sample[key] for key in extra} == extra


@given(texts, texts | st.just(""), texts, extras)
def test_alpaca_rows_are_told_by_their_columns(instruction, more, output, extra):
    sample = sample_of(auto, {"instruction": instruction, "input": more, "output": output, **extra})
    asked = f"{instruction}\n{more}" if more else instruction
    assert sample["messages"] == [text("user", asked), text("assistant", output)]


@given(st.dictionaries(st.sampled_from(["question", "answer", "text", "response", "context", "content", "q"]), texts))
def test_foreign_columns_are_never_taken_for_something(row):
    assert detect(row) is None
    assert detect({**row, "instruction": "Do it."}) == (None if row else "alpaca")


@given(texts)
def test_a_prompt_stays_what_it_is_even_if_it_looks_like_json(value):
    for prompt in (value, json.dumps([TURN]), f"[{value}]"):
        assert sample_of(auto, {"prompt": prompt})["messages"] == [text("user", prompt)]


def test_what_was_chosen_is_said_once_for_each_form():
    notes = []
    converter = AutoConverter(notes.append, "mixed.jsonl")
    for _ in range(3):
        for row in ({"instruction": "a", "output": "b", "id": 1}, {"conversations": [HUMAN]}, {"prompt": "x"}):
            converter(row)
    assert notes == [
        "mixed.jsonl: converter alpaca, chosen by the columns instruction, output",
        "mixed.jsonl: converter sharegpt, chosen by the columns conversations",
    ]


# ---- a user's own ---------------------------------------------------------------------------------------------------


def questions(row):
    return {"messages": [{"role": "user", "content": row["question"]}], "tools": None}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("samplerpool.data.converters._converters", {"openai": get_converter("openai")})
    register_converter("questions", questions)


@pytest.mark.parametrize("name", ["questions", f"{__name__}.questions", f"{__name__}:questions"])
def test_a_converter_of_ones_own_by_name_or_import(registered, name):
    assert sample_of(get_converter(name), {"question": "2+2?"}) == {"messages": QUESTION}
    assert converter_names() == ["auto", "openai", "questions"]


@pytest.mark.parametrize("name", ["auto", "openai", "", "a.b", "a:b"])
def test_names_that_cannot_be_registered(registered, name):
    with pytest.raises(InvalidParameter):
        register_converter(name, questions)
    register_converter("questions", questions)  # again the same: nothing to complain about
    register_converter("openai", questions, replace=True)
    assert get_converter("openai") is questions


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alpacca", ["'alpacca'", "Did you mean 'alpaca'", "sharegpt"]),
        ("nowhere.to.be.found", ["nowhere.to.be.found", "ModuleNotFoundError"]),
        ("json.nothing", ["json.nothing", "AttributeError"]),
        ("json.decoder", ["no function", "module"]),
    ],
)
def test_converters_that_are_not_there(name, words):
    with pytest.raises(InvalidParameter) as caught:
        get_converter(name)
    assert all(word in caught.value.message for word in words), caught.value.message


@pytest.mark.parametrize(
    ("converter", "words"),
    [
        (questions, "the converter questions failed: KeyError: 'question'"),
        (lambda row: None, "made NoneType"),
        (lambda row: {"text": "x"}, "made no messages of it, and no pair of them; it made: text"),
        (lambda row: {"messages": []}, "no messages"),
        (lambda row: get_converter("nil"), "no converter 'nil'"),
    ],
)
def test_a_converter_that_fails_spoils_its_row_only(converter, words):
    with pytest.raises((BadRow, RenderError), match=words):
        sample_of(converter, {"text": "x"})
