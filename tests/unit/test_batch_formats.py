"""What an output is written as, and that it is read back to the same rows."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.results import RunFiles, open_results
from samplerpool.data import parquet_out
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.collection import DataCollection
from samplerpool.data.data_engine import DataEngine
from samplerpool.data.json_text import from_json, to_json
from samplerpool.data.parquet_out import write_parquet
from samplerpool.data.rows import Row, row_from
from samplerpool.data.sources import open_source
from samplerpool.errors import BadRow, DataFileError, FingerprintMismatch, UsageError
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import TokenLogprobs
from tests.tiny_tokenizer import tiny_tokenizer

MANIFEST = Manifest("in.jsonl", 10, None, None, None, {}, {"name": "m"}, "1", 7)
ENDINGS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
COLUMNS: list[dict[str, Any]] = [
    {"prompt": "0", "score": 1, "tags": ["a"], "meta": {"a": 1}},
    {"prompt": "1", "score": 2.5, "tags": [], "mixed": "x"},
    {"messages": [{"role": "user", "content": "2"}, {"role": "assistant", "content": "ja"}], "mixed": 3},
    {"messages": "\ud800", "big": 2**70, "empty": []},
    {"prompt": "4", "flag": True, "float": 1e-3, "big": 5},
]


def results() -> list[RowResult]:
    rows = [row_from(columns, index, f"Row {index}") for index, columns in enumerate(COLUMNS)]
    answer = Answer("ß!", "stop", 3, 2, 11, None, [TokenLogprobs(5, -0.5, [(5, -0.5), (7, -1.25)])])
    return [
        RowResult(row, 0, 11, error=row.error) if row.error else RowResult(row, 0, 11, answer if row.index else plain())
        for row in rows
    ]


def plain() -> Answer:
    message: Any = {"role": "assistant", "content": [{"type": "text", "value": "x"}], "parse_error": "odd"}
    return Answer("x", "length", 3, 2, 11, message)


def written(path: Path, **settings: Any) -> Path:
    manifest = Manifest(**{**vars(MANIFEST), "output_format": OutputFormat.of(path).name})
    with BatchOutput(path, **settings) as output:
        output.begin(manifest)
        for result in reversed(results()):
            output.write(result)
        output.assemble()
    return path


def columns_in(path: Path) -> list[dict[str, Any]]:
    records = list(open_source(str(path)))
    assert [record.error for record in records] == [None] * len(records)
    return [record.columns for record in records]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = written(tmp_path_factory.mktemp("plain") / "out.jsonl")
    rows = [from_json(line) for line in path.read_bytes().splitlines()]
    assert [row["generation"]["index"] for row in rows] == list(range(5))
    assert [sorted(row.keys() - COLUMNS[index].keys()) for index, row in enumerate(rows)] == [
        ["generation", "messages"],
        ["generation", "messages"],
        ["generation", "reference"],
        ["generation"],
        ["generation", "messages"],
    ]
    return rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_is_read_back_to_the_same_rows(ending: str, tmp_path: Path, expected: list[Any]) -> None:
    path = written(tmp_path / f"out.{ending}")
    found = columns_in(path)
    assert found == expected
    assert [list(row["generation"]) for row in found] == [list(row["generation"]) for row in expected]
    assert written(tmp_path / f"again.{ending}").read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith("out")) == [
        f"out.{ending}",
        f"out.{ending}.journal",  # a row failed
        f"out.{ending}.run.json",
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_goes_on_and_knows_its_own_output_in_every_format(ending: str, tmp_path: Path) -> None:
    path = written(tmp_path / f"out.{ending}")
    with BatchOutput(path, resume=True) as output:
        assert output.complete
        assert output.finished.errors == 1
    with BatchOutput(path, retry_errors=True) as output:  # replaces its own
        output.begin(Manifest(**{**vars(MANIFEST), "output_format": output.format.name}))
        (missing,) = output.missing([result.row for result in results()])
        output.write(RowResult(missing, 0, 11, plain()))
        output.assemble()
    assert [row["generation"]["error"] for row in columns_in(path)] == [None] * 5
    assert not output.journal_path.exists()
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(UsageError, match="cannot be written as \\.xlsx"):
        BatchOutput(tmp_path / "out.xlsx")


def test_another_format_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with BatchOutput(path) as output:
        output.begin(MANIFEST)
        output.write(results()[0])
    with BatchOutput(path, resume=True, output_format=OutputFormat.of(path, "parquet")) as output:
        now = Manifest(**{**vars(MANIFEST), "output_format": output.format.name})
        with pytest.raises(FingerprintMismatch, match='output_format: was "jsonl", is "parquet"'):
            output.begin(now)


def test_the_parquet_file_has_native_columns_where_it_can(tmp_path: Path, expected: list[Any]) -> None:
    path = written(tmp_path / "out.parquet")
    schema = pyarrow.parquet.read_schema(path)
    types = {name: str(schema.field(name).type) for name in schema.names}
    message = "struct<role: string, content: list<element: struct<type: string, value: string>>, loss_weight: double>"
    assert types == {
        "prompt": "string",
        "score": "double",
        "tags": "list<element: string>",
        "meta": "string",
        "messages": f"list<element: {message}>",
        "messages_json": "string",
        "generation": types["generation"],
        "mixed": "string",
        "reference": message,
        "big": "string",
        "empty": "list<element: string>",
        "flag": "bool",
        "float": "double",
    }
    table = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["generation"]["text"] for row in table] == ["x", "ß!", "ß!", "", "ß!"]
    assert table[0]["messages"] == [{**turn, "loss_weight": None} for turn in expected[0]["messages"]]
    assert json.loads(table[0]["meta"]) == {"a": 1}
    assert table[3]["messages"] is None
    assert json.loads(table[3]["messages_json"]) == "\ud800"


def test_a_parquet_output_can_be_picked_from_and_pickled(tmp_path: Path, expected: list[Any]) -> None:
    records = open_source(str(written(tmp_path / "out.parquet")))
    assert [pickle.loads(pickle.dumps(records))[index].columns for index in range(5)] == expected


def test_row_groups_are_small_and_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_out, "ROWS_AT_ONCE", 10)
    path = tmp_path / "rows.parquet"
    rows = [{"n": n} for n in range(35)]
    with path.open("wb") as file:
        write_parquet(lambda: (to_json(row) for row in rows), file)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 4
    assert columns_in(path) == rows


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, width=64)
    | st.text(max_size=3)
    | st.sampled_from(["\udfff", {"role": "\ud800", "content": []}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(["a", "b", "\ud800", "messages_json", "messages", "reference", "generation"])


@given(st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), min_size=1, max_size=4))
def test_whatever_rows_hold_comes_back(rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    lines = [to_json(row) for row in rows]
    write_parquet(lambda: iter(lines), buffer)
    layout = json.loads(pyarrow.parquet.read_schema(io.BytesIO(buffer.getvalue())).metadata[b"samplerpool"])
    table = pyarrow.parquet.read_table(io.BytesIO(buffer.getvalue())).to_pylist()
    from samplerpool.data.table_rows import restored

    found = [restored(cells, layout) for cells in table]
    wanted = [from_json(line) for line in lines]
    assert told_apart(found, wanted) == told_apart(wanted, wanted)


def told_apart(rows: list[dict[str, Any]], as_they_were: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the nulls that a table cannot tell from nothing, those in the column of a record included."""
    kept = without_nulls(rows, as_they_were)
    records = [row["generation"] for row in as_they_were if isinstance(row.get("generation"), dict)]
    for row in kept:
        if isinstance(row.get("generation"), dict):
            (row["generation"],) = without_nulls([row["generation"]], records)
    return kept


def without_nulls(rows: list[dict[str, Any]], as_they_were: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a name is missing in some row."""
    absent = {name for row in as_they_were for name in row if not all(name in other for other in as_they_were)}
    return [{name: value for name, value in row.items() if value is not None or name not in absent} for row in rows]


@pytest.mark.parametrize("ending", ENDINGS)
def test_answers_can_be_picked_from_an_output(ending: str, tmp_path: Path, expected: list[dict[str, Any]]) -> None:
    found = open_results(RunFiles(written(tmp_path / f"out.{ending}")))
    assert [found[place] for place in (4, 0)] == [expected[4], expected[0]]


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "found"),
    [
        ("a.jsonl", None, "jsonl"),
        ("a", None, "jsonl"),
        ("a.json", None, "jsonl"),
        ("a.JSONL.GZ", None, "jsonl.gz"),
        ("a.gz", None, "jsonl.gz"),
        ("a.jsonl.zst", None, "jsonl.zst"),
        ("a.parquet", None, "parquet"),
        ("a.out", "parquet", "parquet"),
        ("a.csv", "jsonl", "jsonl"),
    ],
)
def test_the_name_says_the_format(name: str, form: str | None, found: str) -> None:
    assert OutputFormat.of(Path(name), form).name == found


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("a.csv", None, "cannot be written as .csv; name it .jsonl"),
        ("a.csv.gz", None, "cannot be written"),
        ("a.jsonl.bz2", None, "cannot be written as .bz2"),
        ("a.parquet.gz", None, "cannot be both"),
        ("a.jsonl.gz", "parquet", "cannot be both"),
        ("a.parquet", "jsonl", "is named as Parquet"),
    ],
)
def test_names_that_cannot_be(name: str, form: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OutputFormat.of(Path(name), form)


def test_a_missing_library_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zstandard", "compression", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataFileError, match=r"Writing a\.jsonl\.zst needs the package zstandard.*samplerpool\[zstd\]"):
        OutputFormat.of(Path("a.jsonl.zst"))
    with pytest.raises(DataFileError, match=r"Writing a\.parquet needs pyarrow.*samplerpool\[data\]"):
        OutputFormat.of(Path("a.parquet"))


# ---- compressed inputs ----------------------------------------------------------------------------------------------


def test_compressed_files_of_every_text_format(tmp_path: Path) -> None:
    contents = {"a.jsonl.gz": b'{"prompt": "x"}\n', "b.json.gz": b'[{"prompt": "x"}]', "c.csv.gz": b"prompt\nx\n"}
    contents |= {"d.txt.gz": b"x\n", "e.gz": b'{"prompt": "x"}\n'}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert columns_in(tmp_path / name) == [{"prompt": "x"}], name
    with DataCollection.open(tmp_path) as data:  # a folder; the name of e.gz says nothing
        assert data.count_rows() == 4
        assert len(list(data.rows())) == 4
    records = open_source(str(tmp_path / "a.jsonl.gz"))
    assert [list(records), list(records)] == [list(records)] * 2
    with pytest.raises(DataFileError, match="is compressed: its rows can be gone through, but not picked; unpack it"):
        records[0]
    streamed = DataEngine({"a": {"path": str(tmp_path / "a.jsonl.gz"), "streaming": True}})
    assert [sample["_dataset_name"] for sample in streamed] == ["a"]


def test_damaged_compressed_files(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % n for n in range(100_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFileError, match=r"cut\.jsonl\.gz cannot be read: it is no whole gzip file"):
        list(open_source(str(tmp_path / "cut.jsonl.gz")))
    for name in ("none.jsonl.gz", "none.jsonl.zst"):
        (tmp_path / name).write_bytes(b'{"prompt": "x"}\n')
        with pytest.raises(DataFileError, match="it is no whole"):
            open_source(str(tmp_path / name))
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    with pytest.raises(DataFileError, match="unpack it"):
        open_source(str(tmp_path / "a.parquet.gz"))


# ---- an output as a training set and as an input --------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_output_is_an_input_again(ending: str, tmp_path: Path, expected: list[Any]) -> None:
    with DataCollection.open(written(tmp_path / f"out.{ending}")) as data:
        rows = list(data.rows())
    assert [isinstance(row.error, BadRow) or row.error is not None for row in rows] == [False] * 3 + [True, False]
    again: list[Row] = [row for row in rows if row.error is None]
    assert [row.messages for row in again] == [expected[index]["messages"][:-1] for index in (0, 1, 2, 4)]
    assert [row.reference for row in again] == [expected[index]["messages"][-1] for index in (0, 1, 2, 4)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_output_is_a_training_set(ending: str, tmp_path: Path) -> None:
    path = str(written(tmp_path / f"out.{ending}"))
    streamed = ending in ("jsonl.gz", "jsonl.zst")
    engine = DataEngine({"mine": {"path": path, "streaming": streamed}}, form="training")
    renderer = Renderer(tiny_tokenizer())
    samples = list(engine)  # the row that failed is none
    learned = [renderer.render_messages(sample["messages"], sample.get("tools")) for sample in samples]
    learned_ids = [[label for label in made["labels"] if label != -100] for made in learned]
    texts = [renderer.codec.decode(ids, skip_special_tokens=True) for ids in learned_ids]
    assert texts == ["x", "ß!", "ß!", "ß!"]
    assert [len(made["labels"]) for made in renderer.process_samples(samples)] == [len(m["labels"]) for m in learned]
    if not streamed:
        assert len(engine) == 4
        assert [sample["generation"]["index"] for sample in samples] == [0, 1, 2, 4]
        assert samples[2]["reference"]["content"][0]["value"] == "ja"


def test_a_request_of_openai_that_was_answered_is_learned_from_as_well(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "2+2?"}]}
    columns = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "out.jsonl"
    with BatchOutput(path) as output:
        output.begin(MANIFEST)
        output.write(RowResult(row_from(columns, 0, "row"), 0, 11, plain()))
        output.assemble()
    (sample,) = DataEngine(str(path), form="training")
    assert [turn["role"] for turn in sample["messages"]] == ["user", "assistant"]
