"""Every file format gives the same rows, one after the other and by number, and says what is wrong where."""

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import threading

import datasets
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samplerpool.data.json_list import JsonList
from samplerpool.data.jsonl import JsonLines
from samplerpool.data.plain_text import SeparatedValues, TextLines
from samplerpool.data.rows import rows_from_dataset
from samplerpool.data.sources import open_file, open_source
from samplerpool.errors import DataFileError

ROWS = [
    {"id": str(number), "prompt": prompt}
    for number, prompt in enumerate(["plain", 'quoted "text", with commas', "two\nlines", "Köln 😀", " spaced\t", "x"])
]


def write_jsonl(path, rows):
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(rows)))


def write_json(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2))


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_arrow_file(path, rows, writer=None):
    table = pyarrow.Table.from_pylist(rows)
    with (writer or pyarrow.ipc.new_file)(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=2)


def write_arrow_stream(path, rows):
    write_arrow_file(path, rows, pyarrow.ipc.new_stream)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.ndjson": write_jsonl,
    "lines.json": write_jsonl,
    "list.json": write_json,
    "list": write_json,
    "lines": write_jsonl,
    "a.csv": write_table,
    "a.tsv": write_table,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_stream,
    "b.arrow": write_arrow_file,
    "a.feather": write_arrow_file,
}


def by_number(records):
    return [records[index] for index in range(len(records))]


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_in_order_and_by_number(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    records = open_file(tmp_path / name)
    streamed = list(records)
    assert [record.columns for record in streamed] == ROWS
    assert by_number(records) == list(records) == streamed
    assert [records[index] for index in (5, 0, 3)] == [streamed[index] for index in (5, 0, 3)]
    assert records.count() == len(ROWS)
    assert by_number(pickle.loads(pickle.dumps(records))) == streamed
    records.close()


def test_text_files_hold_a_prompt_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n  two, Köln\n".encode() + b"caf\xe9\nlast")
    records = open_file(tmp_path / "a.txt")
    streamed = list(records)
    assert [record.columns.get("prompt") for record in streamed] == ["one", "  two, Köln", None, "last"]
    assert str(streamed[2].error) == "a.txt, line 4: byte 4 is not valid UTF-8."
    assert [(r.place, r.columns) for r in by_number(records)] == [(r.place, r.columns) for r in streamed]


def test_places_are_those_that_an_editor_shows(tmp_path):
    for name in ("a.jsonl", "a.csv", "list.json"):
        WRITERS[name](tmp_path / name, ROWS[:4])
    assert [r.place for r in open_file(tmp_path / "a.jsonl")] == [f"a.jsonl, line {n}" for n in (1, 3, 5, 7)]
    assert [r.place for r in open_file(tmp_path / "a.csv")] == [f"a.csv, line {n}" for n in (2, 3, 4, 6)]
    assert [r.place for r in open_file(tmp_path / "list.json")] == [f"list.json, row {n}" for n in (1, 2, 3, 4)]


def test_broken_rows_of_a_table_spoil_themselves_only(tmp_path):
    lines = [b"prompt,id", b"a,1", b"b", b"c,3,4", b"\xff,5", b'"d"x,6', b"", b'"e', b'f",7']
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    records = open_file(tmp_path / "a.csv")
    streamed = list(records)
    assert [r.columns for r in streamed] == [
        {"prompt": "a", "id": "1"},
        {},
        {},
        {},
        {},
        {"prompt": "e\r\nf", "id": "7"},
    ]
    assert [str(record.error) for record in streamed[1:5]] == [
        "a.csv, line 3: the row has 1 values, and the header 2 columns.",
        "a.csv, line 4: the row has 3 values, and the header 2 columns.",
        "a.csv, line 5: prompt is not valid UTF-8.",
        "a.csv, line 6: not a row of a table: ',' expected after '\"'.",
    ]
    assert [(r.place, r.columns, str(r.error)) for r in by_number(records)] == [
        (r.place, r.columns, str(r.error)) for r in streamed
    ]


def test_long_fields_of_a_table(tmp_path):
    long = "word " * 100_000
    write_table(tmp_path / "a.csv", [{"prompt": long}])
    assert [record.columns for record in open_file(tmp_path / "a.csv")] == [{"prompt": long}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"prompt,id\n", "no rows below its header"),
        ("a.csv", b"prompt,id,prompt\n1,2,3\n", "names the column 'prompt' twice"),
        ("a.csv", b'"prompt"x\n1\n', "header of"),
        ("a.csv", b"caf\xe9\n1\n", "header of .* not valid UTF-8"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "line 2: ',' expected"),
        ("a.json", b'[{"a": 1},\n\n{"a": nil}]', "line 3: Expecting value"),
        ("a.json", b'[{"a": 1},\n]', "line 2: Expecting value"),
        ("a.json", b'[{"a": 1}', "line 1: ',' expected"),
        ("a.json", b'[{"a": "endless', "line 1: Unterminated string"),
        ("a.json", b'[{"a": 1}] x', "something behind"),
        ("a.json", b'[{"a": "caf\xe9"}]', "not valid UTF-8"),
        ("a.json", b"[" * 100_000, "recursion"),
        ("a.json", b'{\n "a": 1}', "one JSON document"),
        ("a.jsonl", b'[\n{"a": 1}]', "not JSON Lines; name it .json"),
        ("a.parquet", b"PAR1 not really", "cannot be read as Parquet"),
        ("a.arrow", b"ARROW1 not really", "cannot be read as Arrow"),
        ("a.arrow", b"", "is empty"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "UTF-16"),
    ],
)
def test_files_that_are_useless_as_a_whole(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFileError, match=words) as caught:
        list(open_file(tmp_path / name))
    assert str(tmp_path / name) in caught.value.message


def test_rows_of_a_list_that_are_no_objects(tmp_path):
    (tmp_path / "a.json").write_text('["a", {"prompt": "b"}, 12, null]')
    records = open_file(tmp_path / "a.json")
    assert [str(record.error) for record in records] == [
        "a.json, row 1: a row must be a JSON object with columns, not a string.",
        "None",
        "a.json, row 3: a row must be a JSON object with columns, not a number.",
        "a.json, row 4: a row must be a JSON object with columns, not null.",
    ]
    assert [str(record.error) for record in by_number(records)] == [str(record.error) for record in records]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
tables = st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=4), min_size=1, max_size=8)
own_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@own_folder
@given(rows=tables, size=st.integers(1, 40), indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
def test_a_json_list_read_in_pieces_of_any_size(tmp_path, monkeypatch, rows, size, indent, ascii_only):
    """Wherever a piece ends, within a character or an escape too."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent))
    monkeypatch.setattr("samplerpool.data.opening.START_BYTES", size)
    monkeypatch.setattr("samplerpool.data.opening.CHUNK_BYTES", size)
    records = JsonList(path)
    assert [record.columns for record in records] == rows
    assert [record.columns for record in by_number(records)] == rows


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
wide = st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), max_size=6))


@own_folder
@given(rows=wide.filter(bool), end=st.sampled_from(["\r\n", "\n"]))
def test_a_table_comes_back_as_it_was_written(tmp_path, rows, end):
    names = [f"c{number}" for number in range(len(rows[0]))]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    records = SeparatedValues(tmp_path / "a.csv")
    expected = [dict(zip(names, row, strict=True)) for row in rows]
    assert [record.columns for record in records] == expected
    assert [record.columns for record in by_number(records)] == expected


def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(json.dumps(ROWS),))
    writer.start()
    records = open_file(tmp_path / "pipe")
    assert isinstance(records, JsonList)
    assert records.count() is None
    with pytest.raises(DataFileError, match="is a pipe"):
        len(records)
    assert [record.columns for record in records] == ROWS
    with pytest.raises(DataFileError, match="read only once"):
        next(iter(records))
    writer.join()


# ---- folders and other sources --------------------------------------------------------------------------------------


def test_a_folder_is_all_its_data_files_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    write_parquet(tmp_path / "sub" / "train-1.parquet", ROWS[4:])
    write_jsonl(tmp_path / "a-train.jsonl", ROWS[:2])
    write_table(tmp_path / "b-test.csv", ROWS[2:4])
    for name in ("notes.md", "dataset_info.json", "_SUCCESS.json", ".hidden/x.jsonl"):
        (tmp_path / name).write_text("not data")
    records = open_source(str(tmp_path))
    assert [record.columns for record in records] == ROWS
    assert by_number(records) == list(records)
    assert records.count() == 6
    assert [path.name for path in records.paths] == ["a-train.jsonl", "b-test.csv", "train-1.parquet"]
    assert [r.columns for r in open_source(str(tmp_path), split="train")] == [*ROWS[:2], *ROWS[4:]]
    assert [r.columns for r in open_source(str(tmp_path), split="test")] == ROWS[2:4]
    with pytest.raises(DataFileError, match="of the split 'tra'"):
        open_source(str(tmp_path), split="tra")


def test_files_of_a_folder_that_may_be_data_are_left_out_with_a_word(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    said = []
    assert len(list(open_source(str(tmp_path), note=said.append))) == 1
    (tmp_path / "notes.md").write_text("not data")
    (tmp_path / "cat.png").write_bytes(b"not data either")
    open_source(str(tmp_path), note=said.append)
    assert said == []
    (tmp_path / "sub").mkdir()
    for name in ("b.xlsx", "sub/c.jsonl.bz2"):
        (tmp_path / name).write_text("who knows")
    open_source(str(tmp_path), note=said.append)
    assert said == [f"{tmp_path}: left out, as they are of no format that is read: b.xlsx, sub/c.jsonl.bz2"]


@pytest.mark.parametrize(
    ("name", "data"), [("a.xlsx", b"PK\x03\x04\x14\x00\x06\x00"), ("b.bin", b"\x00\x01"), ("c.xml", b"<rows/>")]
)
def test_a_file_of_another_format_is_refused_as_a_whole(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataFileError, match=r"is no text, and of no format that is read\. Known are \.json, \.jsonl"):
        open_source(str(tmp_path / name))


def test_media_are_looked_for_beside_their_own_file(tmp_path):
    for place in (tmp_path, tmp_path / "sub", tmp_path / "alone"):
        place.mkdir(exist_ok=True)
        write_jsonl(place / "a.jsonl", ROWS[:1])
    for dataset, folders in ((tmp_path, ("", "alone", "sub")), (tmp_path / "alone" / "a.jsonl", ("alone",))):
        rows = list(rows_from_dataset(dataset))
        assert [row.folder for row in rows] == [str(tmp_path / name) for name in folders]


def test_folders_that_datasets_wrote(tmp_path):
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(str(tmp_path / "both"))
    records = open_source(str(tmp_path / "one"))
    assert [record.columns for record in records] == ROWS
    assert by_number(records) == list(records)
    assert records[1].place == "one, row 2"
    assert [path.suffix for path in records.paths] == [".arrow"]
    notes = []
    assert len(open_source(str(tmp_path / "both"), note=notes.append)) == 6
    assert notes == [f"{tmp_path / 'both'}: the split train, of train, test; a YAML file can name another one"]
    assert [r.columns for r in open_source(str(tmp_path / "both"), split="test")] == [ROWS[2]]
    datasets.DatasetDict({"test": one}).save_to_disk(str(tmp_path / "only"))
    assert len(open_source(str(tmp_path / "only"))) == 6
    with pytest.raises(DataFileError, match="no split 'dev'; it has: train, test"):
        open_source(str(tmp_path / "both"), split="dev")
    with pytest.raises(DataFileError, match="has no splits"):
        open_source(str(tmp_path / "one"), split="test")


def test_a_file_has_no_splits(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert len(open_source(str(tmp_path / "a.jsonl"), split="train")) == 6
    with pytest.raises(DataFileError, match="has no splits"):
        open_source(str(tmp_path / "a.jsonl"), split="test")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "owner/name.parquet", "/no/such/folder", "./a/b", "word"])
def test_a_path_that_leads_nowhere_is_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(DataFileError, match="There is no data file"):
        open_source(path)


def test_a_data_set_of_the_hub(monkeypatch):
    """The library is asked for it; what it gives, memory-mapped or as a stream, is gone through."""
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        data = datasets.Dataset.from_list(ROWS)
        return data.to_iterable_dataset() if streaming else data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = open_source("owner/name")
    assert [record.columns for record in records] == [r.columns for r in by_number(records)] == ROWS
    stream = open_source("owner/name", split="test", streaming=True)
    assert [record.columns for record in stream] == ROWS
    assert stream.count() is None
    with pytest.raises(DataFileError, match="is a stream"):
        stream[0]
    assert asked == [("owner/name", "train", False), ("owner/name", "test", True)]


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch):
    """Truly offline: the library and the hub's client are told so."""
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    with pytest.raises(DataFileError, match="no file or folder owner/name here, and as a data set of the hub"):
        open_source("owner/name")


@pytest.mark.parametrize(
    ("name", "missing"), [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("folder", "datasets")]
)
def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch, name, missing):
    if name == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    else:
        WRITERS[name](tmp_path / name, ROWS)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DataFileError, match=rf"{missing}; install it with: pip install 'samplerpool\[data\]'"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("kind", [JsonLines, TextLines])
def test_files_left_behind_are_closed(tmp_path, kind):
    """Nothing is held between two uses, so nobody must close anything."""
    write_jsonl(tmp_path / "a.txt", ROWS)
    records = kind(tmp_path / "a.txt")
    records[2]
    next(iter(records))
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert str(tmp_path / "a.txt") not in held


def test_no_format_brings_torch_into_a_client(tmp_path):
    write_parquet(tmp_path / "a.parquet", ROWS)
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    script = (
        "import sys; from samplerpool.data.collection import DataCollection\n"
        "for path in sys.argv[1:]: print(len(list(DataCollection.open(path).rows())))\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.parquet"), str(tmp_path / "saved")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.stdout.split("\n")[:3] == ["6", "6", "[]"], child.stderr
