"""``samplerpool.ray.Sampler`` as Ray Data calls it, without Ray: batches in, tables out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from samplerpool.data.answers import row_seed
from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.ray import Sampler

pa = pytest.importorskip("pyarrow", reason="the extra 'data' is not installed")


@pytest.fixture
def made() -> Iterator[list[Sampler]]:
    samplers: list[Sampler] = []
    yield samplers
    for sampler in samplers:
        sampler.close()


def scripted(made: list[Sampler], **arguments: Any) -> Sampler:
    made.append(Sampler(engine="scripted", **{"seed": 7, **arguments}))
    return made[-1]


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def table() -> Any:
    rows = [
        {"row_number": 40, "prompt": "[[say:forty]]", "tag": 1},
        {"row_number": 41, "prompt": "[[fail]]", "tag": 2},
        {"row_number": 42, "prompt": None, "tag": 3},
    ]
    return pa.Table.from_pylist(rows)


def test_rows_are_answered_by_their_numbers_and_keep_their_columns(made: list[Sampler]) -> None:
    answered = scripted(made)(table())
    assert answered.column_names == ["row_number", "prompt", "tag", "messages", "reference", "generation"]
    assert answered.schema.field("tag").type == pa.int64()
    good, failed, unreadable = answered.to_pylist()
    assert good["generation"]["text"] == "forty"
    assert [row["generation"]["seed"] for row in (good, failed)] == [row_seed(7, 40, 0), row_seed(7, 41, 0)]
    assert [row["generation"]["index"] for row in (good, failed, unreadable)] == [40, 41, 42]
    assert failed["generation"]["error"].startswith("EngineError")
    assert unreadable["generation"]["error"].startswith("BadRow: Row 42")
    assert unreadable["messages"] is None


def test_all_batches_have_one_schema(made: list[Sampler]) -> None:
    sampler, whole = scripted(made), table()
    schemas = {str(sampler(whole.slice(at, 1)).schema) for at in range(3)}
    assert len(schemas) == 1


def test_all_formats_of_a_batch_are_taken(made: list[Sampler]) -> None:
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    chats = [[turn("user", "[[random:8]]"), turn("assistant", "r")], [turn("user", "[[random:8]]")]]
    rows = [{"row_number": number, "messages": chat} for number, chat in enumerate(chats)]
    nested = numpy.empty(2, dtype=object)
    nested[:] = [numpy.array(chat, dtype=object) for chat in chats]
    sampler = scripted(made)
    expected = sampler(pa.Table.from_pylist(rows)).to_pylist()
    assert expected[0]["reference"]["content"] == [{"type": "text", "value": "r"}]
    assert sampler({"row_number": numpy.arange(2), "messages": nested}).to_pylist() == expected
    assert sampler(pandas.DataFrame(rows)).to_pylist() == expected
    with pytest.raises(UsageError, match="not int"):
        sampler(3)


def test_several_samples_and_logprobs(made: list[Sampler]) -> None:
    sampler = scripted(made, num_return_sequences=2, logprobs=1)
    rows = sampler(table().slice(0, 1)).to_pylist()
    assert [row["generation"]["sample"] for row in rows] == [0, 1]
    assert rows[0]["generation"]["seed"] != rows[1]["generation"]["seed"]
    assert rows[0]["generation"]["logprobs"][0]["token_id"] == ord("f")


def test_a_column_of_the_users_own_may_number_the_rows(made: list[Sampler]) -> None:
    sampler = scripted(made, index_column="id", prompt_template="[[say:{{ id }}]]")
    [row] = sampler(pa.Table.from_pylist([{"id": 5}])).to_pylist()
    assert (row["generation"]["index"], row["generation"]["text"], row["id"]) == (5, "5", 5)


def test_what_cannot_be_is_said(made: list[Sampler]) -> None:
    with pytest.raises(UsageError, match="with_row_numbers"):
        scripted(made)(pa.Table.from_pylist([{"prompt": "x"}]))
    with pytest.raises(InvalidParameter, match="temperature"):
        scripted(made, temperature=-1)
    with pytest.raises(InvalidParameter, match="engine must be one of"):
        Sampler(engine="none", seed=1)
    rows = scripted(made)(pa.Table.from_pylist([{"row_number": -1, "prompt": "x"}])).to_pylist()
    assert "must be a number from 0" in rows[0]["generation"]["error"]
