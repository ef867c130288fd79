"""Rows as JSON text, and back: what Python's own ``json`` reads is read, and the same comes out of it."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.data.json_text import from_json, to_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    assert from_json(to_json(value)) == value
    assert json.loads(to_json(value)) == value
    assert from_json(json.dumps(value).encode() + b"\r\n") == value


@pytest.mark.parametrize(
    "text",
    [b'{"a": 123456789012345678901234567890}', b"[1e400, -Infinity]", b'"\\ud83d"', b'{"a": 1, "a": 2}', b" 1 \n"],
    ids=["a long integer", "beyond a float", "half a pair", "a name twice", "space around it"],
)
def test_what_json_reads_is_read(text: bytes) -> None:
    assert from_json(text) == json.loads(text)


def test_not_a_number_is_read_and_written_as_null() -> None:
    assert math.isnan(from_json(b"NaN"))
    assert to_json([math.nan, math.inf, 1.5]) == b"[null,null,1.5]"


@pytest.mark.parametrize("text", [b"{", b"[1,]", b"\x00", b'{"a": "\t"}', b"", b"1 2"])
def test_what_is_no_json_is_told_in_jsons_words(text: bytes) -> None:
    with pytest.raises(json.JSONDecodeError) as ours:
        from_json(text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text.rstrip())
    assert ours.value.msg == theirs.value.msg


def test_other_mistakes_have_their_own_errors() -> None:
    with pytest.raises(UnicodeDecodeError):
        from_json(b'{"a": "\xff"}')
    with pytest.raises(RecursionError):
        from_json(b"[" * 100_000)
    with pytest.raises(ValueError, match="digits"):
        from_json(b"9" * 5000)


def test_text_is_one_line_of_utf8_whatever_it_holds() -> None:
    assert to_json({"a": "K\u00f6ln \U0001f642\n"}) == '{"a":"K\u00f6ln \U0001f642\\n"}'.encode()
    assert json.loads(to_json({"a": "\ud83d"})) == {"a": "\ud83d"}


def test_what_tables_hold_becomes_text_or_numbers() -> None:
    row = {"path": Path("x"), "day": datetime.date(2024, 5, 6), "vector": np.arange(2), "number": np.float32(0.5)}
    assert json.loads(to_json(row)) == {"path": "x", "day": "2024-05-06", "vector": [0, 1], "number": 0.5}


def test_beside_half_a_surrogate_pair_numbers_that_json_does_not_have_are_null_too():
    assert to_json({"\udfff": [float("inf"), {"a": (float("nan"), 1.5)}]}) == b'{"\\udfff": [null, {"a": [null, 1.5]}]}'
