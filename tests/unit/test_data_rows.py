"""Rows from files and data sets: what is good goes on, what is bad says where and why."""

import json
from pathlib import Path

import pytest

from samplerpool.data.collection import DataCollection
from samplerpool.data.jsonl import JsonLines
from samplerpool.data.rows import Row, row_from, rows_from_dataset, with_expected_tokens, with_system
from samplerpool.errors import BadRow, DataFileError, RenderError, UsageError
from tests.nobody import folder_of_mode, without_privileges


def text(role, value):
    return {"role": role, "content": [{"type": "text", "value": value}]}


def read(tmp_path, data):
    path = tmp_path / "data.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with DataCollection.open(path) as data:
        return list(data.rows())


def test_prompt_messages_tools_and_own_columns(tmp_path):
    tools = [{"name": "f"}]
    lines = [
        {"id": "a", "prompt": "Hi"},
        {"prompt": [{"role": "user", "content": "Hello"}], "tools": tools},
        {"messages": [text("user", "2+2?"), text("assistant", "4")], "tools": "[]"},
        {"messages": [{"role": "user", "content": "x"}], "prompt": "ignored", "tools": None},
    ]
    rows = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert rows == [
        Row(0, lines[0], [text("user", "Hi")]),
        Row(1, lines[1], [text("user", "Hello")], json.dumps(tools)),
        Row(2, lines[2], [text("user", "2+2?")], "[]", text("assistant", "4")),
        Row(3, lines[3], [text("user", "x")]),
    ]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    rows = read(tmp_path, '\n  \n{"prompt": "a"}\r\n\n{broken\n{"prompt": "b"}')
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.error is None for row in rows] == [True, False, True]
    assert rows[1].error.message.startswith("data.jsonl, line 5: not valid JSON: Expecting property name")


def test_a_byte_order_mark_is_tolerated(tmp_path):
    (row,) = read(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert row == Row(0, {"prompt": "a"}, [text("user", "a")])
    rows = read(tmp_path, b'\xef\xbb\xbf\n{"prompt": "a"}\n')
    assert [(row.index, row.error) for row in rows] == [(0, None)]


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        (b'{"prompt": "a"', BadRow, ["line 2", "not valid JSON", "column 15"]),
        (b"[1, 2]", BadRow, ["line 2", "a list"]),
        (b"null", BadRow, ["line 2", "null"]),
        (b'"just text"', BadRow, ["line 2", "a string"]),
        (b'{"prompt": "caf\xe9"}', BadRow, ["line 2", "byte 16", "UTF-8"]),
        (b"[" * 200_000, BadRow, ["line 2", "cannot be read"]),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", BadRow, ["line 2", "cannot be read"]),
        (b'{"text": "a", "id": 3}', BadRow, ["line 2", "messages or a prompt", "text, id"]),
        (b"{}", BadRow, ["line 2", "messages or a prompt", "none"]),
        (b'{"chosen_messages": [], "rejected_messages": []}', BadRow, ["line 2", "preference pair"]),
        (b'{"prompt": "a", "tools": "\\ud83d"}', RenderError, ["line 2", "tools", "surrogate"]),
        (b'{"messages": [{"role": "bot", "content": "a"}]}', RenderError, ["line 2: messages[0]", "'bot'"]),
        (b'{"messages": []}', RenderError, ["line 2", "no messages"]),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', RenderError, ["line 2", "nothing to answer"]),
        (b'{"prompt": 5}', RenderError, ["line 2", "int 5"]),
    ],
)
def test_a_bad_line_is_an_error_row_that_names_it_and_the_others_go_on(tmp_path, line, kind, words):
    good = b'{"prompt": "a"}'
    rows = read(tmp_path, b"\n".join([good, line, good]))
    assert [row.index for row in rows] == [0, 1, 2]
    assert rows[0].error is None
    assert rows[2].error is None
    assert type(rows[1].error) is kind
    assert all(word in rows[1].error.message for word in words), rows[1].error.message


def test_columns_of_a_bad_row_are_kept_where_they_could_be_read(tmp_path):
    (row,) = read(tmp_path, '{"id": 5, "text": "a"}')
    assert row.columns == {"id": 5, "text": "a"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n  \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b'[\n {"prompt": "a"}\n]', "one JSON document"),
        (b'{\n "prompt": "a"\n}', "one JSON document"),
        ('{"prompt": "a"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_useless_as_a_whole(tmp_path, data, words):
    with pytest.raises(DataFileError, match=words):
        read(tmp_path, data)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataFileError, match="There is no data file"):
        DataCollection.open(tmp_path / "none.jsonl")
    with pytest.raises(DataFileError, match="has no data files"):
        DataCollection.open(tmp_path)


def test_a_file_that_may_not_be_read():
    with folder_of_mode(0o755) as folder:
        path = folder / "data.jsonl"
        path.write_text("{}")
        path.chmod(0)
        with without_privileges(), pytest.raises(DataFileError, match="cannot be read: Permission denied"):
            DataCollection.open(path)


def test_rows_are_counted_and_files_closed(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"prompt": "a"}\n \n{broken\n')
    with DataCollection.open(path) as data:
        assert data.count_rows() == 2
        assert len(list(data.rows())) == 2


def test_a_file_is_read_as_a_stream(tmp_path):
    """The reader is not further in the file than a buffer ahead of the row that it gives."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n' * 200_000)
    records = iter(JsonLines(path))
    next(records)
    (descriptor,) = (each for each in Path("/proc/self/fd").iterdir() if each.exists() and each.samefile(path))
    position = Path(f"/proc/self/fdinfo/{descriptor.name}").read_text().split()[1]
    assert 0 < int(position) < 1 << 20
    records.close()


class MapStyle:
    """A torch map-style dataset whose end raises no IndexError."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"prompt": f"q{index % 2}"}


class Streaming:
    def __iter__(self):
        yield {"prompt": "s"}


def test_rows_from_any_dataset(tmp_path):
    assert [row.messages for row in rows_from_dataset(MapStyle())] == [[text("user", "q0")], [text("user", "q1")]]
    assert [row.messages for row in rows_from_dataset(Streaming())] == [[text("user", "s")]]
    mixed = ["a", [{"role": "user", "content": "b"}], {"prompt": "c"}, 7, {"id": 1}]
    rows = list(rows_from_dataset(mixed))
    assert [row.messages for row in rows[:3]] == [[text("user", t)] for t in "abc"]
    assert rows[3].error.message == "Row 3: a row must be an object with columns, not int."
    assert rows[4].error.message.startswith("Row 4: a row needs a messages or a prompt column")
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n')
    assert list(rows_from_dataset(str(path))) == list(rows_from_dataset(path)) == [row_from({"prompt": "a"}, 0, "")]


def test_datasets_are_not_read_ahead():
    seen = []

    def endless():
        index = 0
        while True:
            seen.append(index)
            yield {"prompt": str(index)}
            index += 1

    rows = rows_from_dataset(endless())
    next(rows)
    next(rows)
    assert seen == [0, 1]


@pytest.mark.parametrize("value", [{"train": [], "test": []}, 5])
def test_what_is_no_dataset(value):
    with pytest.raises(UsageError):
        rows_from_dataset(value)


def test_a_system_turn_for_those_without():
    rows = [Row(0, {}, [text("user", "a")]), Row(1, {}, [text("system", "own"), text("user", "b")]), Row(2, {})]
    first, second, broken = with_system(rows, "be kind")
    assert first.messages == [text("system", "be kind"), text("user", "a")]
    assert second.messages == [text("system", "own"), text("user", "b")]
    assert broken.messages == []


def test_lengths_that_a_column_tells():
    def told(column, *values):
        return [row.expected_tokens for row in with_expected_tokens([Row(0, {"n": value}) for value in values], column)]

    assert told("n", 3, "20", 4.7, None, "many", True, float("inf"), -1) == [3, 20, 4, None, None, None, None, None]
    assert told("n.tokens", {"tokens": 5}, {}, "x") == [5, None, None]
    for column, value in (("n", "many"), ("n", [1]), ("n", None), ("m", 3), ("n.tokens", 3)):
        with pytest.raises(UsageError, match=f"column '{column}' should tell lengths in tokens, and "):
            told(column, value)
