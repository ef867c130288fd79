"""Which rows are answered, in which order, and prompts by template or from a column."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.config.arguments import DataArguments
from samplerpool.data.data_engine import DataEngine
from samplerpool.data.expressions import predicate, prompt_maker
from samplerpool.data.rows import Row
from samplerpool.data.selection import Selection
from samplerpool.data.shuffle import shuffled
from samplerpool.errors import DataFileError, InvalidParameter, TemplateError

ROWS: list[dict[str, Any]] = [
    {"text": f"t{number}", "split": "test" if number % 3 == 0 else "train", "score": number} for number in range(12)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def rows(path: Path | DataArguments, **settings: Any) -> list[Row]:
    selection = Selection(**settings)
    with selection.open(path) as data:
        return list(selection.rows(data))


def asked(row: Row) -> str:
    return row.messages[-1]["content"][0]["value"]


# ---- prompts --------------------------------------------------------------------------------------------------------


def test_a_template_makes_the_user_turn_and_the_columns_stay(path: Path) -> None:
    found = rows(path, prompt_template="{{ text }} of {{ row['split'] }}{% if score > 1 %}!{% endif %}")
    assert [asked(row) for row in found[:3]] == ["t0 of test", "t1 of train", "t2 of train!"]
    assert found[2].columns == ROWS[2]


def test_a_template_may_stand_in_a_file(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.j2"
    file.write_text("@ {{ text }}\n")
    assert asked(rows(path, prompt_template=f"@{file}")[1]) == "@ t1"
    assert Selection(prompt_template=f"@{file}").settings()["prompt_template"] == "@ {{ text }}\n"
    engine = DataEngine(DataArguments(train_dataset=str(path), prompt_template=f"@{file}"))
    assert engine[2]["messages"][0]["content"][0]["value"] == "@ t2"
    with pytest.raises(InvalidParameter, match=r"missing\.j2 cannot be read: No such file"):
        Selection(prompt_template=f"@{tmp_path}/missing.j2")


@pytest.mark.parametrize(
    ("template", "columns", "words"),
    [
        ("{{ txet }}", {"text": "a"}, "'txet' is undefined. This row has: text."),
        ("{{ text }}", {"text": None}, "is null; say what to write instead"),
        ("{{ text }}", {"text": " "}, "makes an empty text"),
        ("{{ 1 // n }}", {"n": 0}, "ZeroDivisionError: "),
        ("{{ text + 1 }}", {"text": "1"}, "| int and name | float make numbers"),
        ("{{ text.__class__.__mro__ }}", {"text": "1"}, "SecurityError: "),
        ("{{ rows.append(1) }}", {"rows": []}, "SecurityError: "),
    ],
)
def test_what_a_template_cannot_do_is_the_row_s_error(template: str, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        prompt_maker(template)(columns)
    assert words in caught.value.message


def test_a_row_s_error_says_where_it_stands_and_the_others_go_on(path: Path) -> None:
    found = rows(path, prompt_template="{{ 12 // score }}")
    assert found[0].error is not None
    assert found[0].error.message.startswith("in.jsonl, line 1: the prompt template cannot be applied: ZeroDivision")
    assert [row.error for row in found[1:]] == [None] * 11


def test_the_messages_of_another_column(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sharegpt = [{"from": "human", "value": "a"}]
    values = ["a", chat, json.dumps(chat), sharegpt, None]
    path.write_text(json.dumps([{"chat": value, "messages": 5, "tools": [{"name": "f"}]} for value in values]))
    found = rows(path, messages_column="chat")
    assert [asked(row) for row in found[:4]] == ["a"] * 4
    assert [row.reference is not None for row in found] == [False, True, True, False, False]
    assert found[0].tools == '[{"name": "f"}]'
    assert "the column chat, which is to hold the messages, holds nothing (None)" in str(found[4].error)
    assert "caht" in str(rows(path, messages_column="caht")[0].error)


def test_only_one_way_to_say_what_rows_mean(path: Path) -> None:
    with pytest.raises(InvalidParameter, match="Give just one of converter and prompt_template"):
        rows(path, converter="prompt", prompt_template="{{ text }}")
    with pytest.raises(InvalidParameter, match="a: just one of converter and messages_column"):
        DataEngine({"a": {"path": str(path), "converter": "prompt", "messages_column": "text"}})


def test_a_data_set_s_own_say_goes_first(path: Path) -> None:
    named = {"a": {"path": str(path), "size": 1, "messages_column": "text"}, "b": {"path": str(path), "size": 1}}
    selection = Selection(prompt_template="Say {{ text }}.")
    with selection.open(named) as data:
        assert [asked(row) for row in selection.rows(data)] == ["t0", "Say t0."]


@pytest.mark.parametrize("wrong", ["{{ text", "{% if %}", "{{ text | nofilter }}"])
def test_what_is_no_template_is_refused_at_once(path: Path, wrong: str) -> None:
    with pytest.raises(InvalidParameter, match="is not valid Jinja"):
        rows(path, prompt_template=wrong)


# ---- which rows -----------------------------------------------------------------------------------------------------


def test_rows_are_selected_and_keep_their_numbers(path: Path) -> None:
    found = rows(path, messages_column="text", select="split == 'test' and score > 3")
    assert [row.index for row in found] == [6, 9]
    assert [row.index for row in rows(path, messages_column="text", select="split == 'test'", limit=2)] == [0, 3]


def test_where_it_cannot_be_told_the_row_carries_the_error(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "score": 1}\n{"prompt": "b"}\nbroken\n{"prompt": "c", "score": "4"}\n')
    found = rows(path, select="score > 3")
    assert [row.index for row in found] == [1, 2, 3]
    said = [str(row.error) for row in found]
    assert said[0].startswith("in.jsonl, line 2: the expression to select by cannot be applied: 'score' is undefined")
    assert "line 3: not valid JSON" in said[1]
    assert "'>' not supported" in said[2]
    assert "name | int" in said[2]
    kept = rows(path, select="score is defined and score | int > 3")
    assert [row.index for row in kept] == [2, 3]


@pytest.mark.parametrize("wrong", ["split ==", "a b", "x | nofilter", ""])
def test_what_is_no_expression_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(InvalidParameter, match="is not valid Jinja"):
        Selection(select=wrong)


def test_a_name_that_is_missing_is_no_false(path: Path) -> None:
    with pytest.raises(TemplateError):
        predicate("nothing")({"a": 1})
    assert predicate("nothing is not defined")({"a": 1})


# ---- their order ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(0, 2**63))
def test_each_number_comes_once(count: int, seed: int) -> None:
    order = list(shuffled(count, seed))
    assert sorted(order) == list(range(count))
    assert order == list(shuffled(count, seed))


def test_seeds_give_different_orders_and_first_places_are_fair() -> None:
    assert len({tuple(shuffled(8, seed)) for seed in range(50)}) > 45
    first = Counter(next(shuffled(10, seed)) for seed in range(2000))
    assert all(130 < first[number] < 270 for number in range(10))  # 200 expected, 5 standard deviations


def test_shuffled_rows_keep_their_numbers_and_a_limit_takes_some_of_them(path: Path) -> None:
    found = rows(path, messages_column="text", shuffle_seed=1)
    order = [row.index for row in found]
    assert sorted(order) == list(range(12))
    assert order != list(range(12))
    assert [asked(row) for row in found] == [f"t{index}" for index in order]
    assert [row.index for row in rows(path, messages_column="text", shuffle_seed=1, limit=5)] == order[:5]
    tests = [index for index in order if index % 3 == 0]
    settings: dict[str, Any] = {"messages_column": "text", "shuffle_seed": 1, "limit": 3, "select": "split == 'test'"}
    assert [row.index for row in rows(path, **settings)] == tests[:3]


def test_a_stream_is_not_shuffled(tmp_path: Path, path: Path) -> None:
    with pytest.raises(DataFileError, match="leave shuffle_seed out"):
        rows({"a": {"path": str(path), "streaming": True}}, shuffle_seed=1)  # type: ignore[arg-type]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert len(rows(tmp_path / "in.jsonl.gz", messages_column="text")) == 12
    with pytest.raises(DataFileError, match="Unpack it"):
        rows(tmp_path / "in.jsonl.gz", shuffle_seed=1)


def test_some_rows_are_drawn_from_those_that_are_meant_or_the_first_of_them(tmp_path: Path, path: Path) -> None:
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))

    def some(source: Path, count: int, **settings: Any) -> tuple[list[int], bool]:
        selection = Selection(**settings)
        with selection.open(source) as data:
            found, drawn = selection.sample(data, count)
            return [row.index for row in found], drawn

    places, drawn = some(path, 6)
    assert drawn
    assert len(set(places)) == 6
    assert places != sorted(places)
    assert some(path, 6) == (places, True)
    assert sorted(some(path, 50)[0]) == list(range(12))
    assert some(path, 3, select="split == 'test'") == ([n for n in some(path, 12)[0] if n % 3 == 0][:3], True)
    within, drawn = some(path, 4, limit=5)
    assert drawn
    assert len(set(within)) == 4
    assert set(within) < set(range(5))
    assert some(path, 2, limit=3, select="split == 'test'") == ([0, 3], False)
    assert some(path, 9, limit=2, select="split == 'test'") == ([0, 3], False)
    shuffled_rows = [row.index for row in rows(path, shuffle_seed=7)]
    assert some(path, 5, shuffle_seed=7) == (shuffled_rows[:5], True)
    assert some(path, 5, shuffle_seed=7, limit=3) == (shuffled_rows[:3], True)
    assert some(packed, 4) == ([0, 1, 2, 3], False)


def test_rows_are_found_again_by_their_numbers_and_what_a_manifest_has_of_them(path: Path) -> None:
    chosen = Selection(prompt_template="{{ text }}?", select="score > 3", shuffle_seed=5, limit=3, system="Be brief.")
    with chosen.open(path) as data:
        before = {row.index: row for row in chosen.rows(data)}
        again = Selection.noted({**chosen.settings(), "model": {}})
        assert again == chosen
        assert {row.index: row for row in again.rows_at(data, [*before, 99])} == before
    template = {**Selection().settings(), "prompt_template": "@ {{ text }}"}  # no file's name
    assert Selection.noted(template).prompt_template == "@ {{ text }}"


def test_what_the_chat_template_is_told_goes_with_each_row(path: Path) -> None:
    told = {"enable_thinking": False, "levels": [1, 2]}
    chosen = Selection(template_options=told, system="Be brief.", prompt_template="{{ text }}")
    with chosen.open(path) as data:
        for rows in (chosen.rows(data), chosen.rows_at(data, [2, 3]), Selection.noted(chosen.settings()).rows(data)):
            assert all(row.template_options == told and row.messages[0]["role"] == "system" for row in rows)
        assert all(row.template_options == {} for row in Selection().rows(data))
    with pytest.raises(InvalidParameter, match="template_options must be a mapping"):
        Selection(template_options=["enable_thinking"])  # type: ignore[arg-type]


def test_how_many_rows_there_will_be(path: Path) -> None:
    for settings, count in (({}, 12), ({"limit": 5}, 5), ({"limit": 50}, 12), ({"select": "true"}, None)):
        selection = Selection(**settings)  # type: ignore[arg-type]
        with selection.open(path) as data:
            assert selection.count(data) == count


def test_arguments_say_the_same(path: Path) -> None:
    arguments = DataArguments(
        train_dataset=str(path), messages_column="text", select="score < 6", shuffle_seed=3, limit=2
    )
    selection = Selection.of(arguments)
    with selection.open(arguments) as data:
        assert list(selection.rows(data)) == rows(
            path, messages_column="text", select="score < 6", shuffle_seed=3, limit=2
        )
    with pytest.raises(InvalidParameter, match="select and shuffle_seed and limit: which rows"):
        DataEngine(arguments)
