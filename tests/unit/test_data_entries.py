"""What samples become to be answered or learned from, and how many of them are taken."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.data.entries import inference_entry, to_answer, training_entries
from samplerpool.data.mixture import Share
from samplerpool.errors import BadRow, RenderError


def text(role, value, **more):
    return {"role": role, "content": [{"type": "text", "value": value}], **more}


SYSTEM, ASK, REPLY, MORE, LAST = (
    text("system", "s"),
    text("user", "a"),
    text("assistant", "b"),
    text("user", "c"),
    text("assistant", "d"),
)


def test_the_answer_at_the_end_becomes_the_reference():
    sample = {"messages": [SYSTEM, ASK, REPLY], "tools": "[]", "id": 3}
    assert inference_entry(sample) == {"messages": [SYSTEM, ASK], "tools": "[]", "id": 3, "reference": REPLY}
    assert inference_entry({"messages": [SYSTEM, ASK]}) == {"messages": [SYSTEM, ASK]}
    assert sample["messages"] == [SYSTEM, ASK, REPLY]


def test_a_pair_is_asked_what_both_answer():
    pair = {"chosen_messages": [ASK, REPLY], "rejected_messages": [ASK, LAST], "id": 3}
    assert to_answer(pair) == ([ASK], REPLY)
    assert inference_entry(pair) == {"messages": [ASK], "reference": REPLY, "id": 3}
    with pytest.raises(BadRow, match="differ before their last turns"):
        to_answer({"chosen_messages": [ASK, REPLY], "rejected_messages": [MORE, REPLY]})
    with pytest.raises(RenderError, match="nothing to answer"):
        to_answer({"chosen_messages": [REPLY], "rejected_messages": [LAST]})


def test_each_supervised_turn_is_an_entry_that_ends_with_it():
    sample = {"messages": [SYSTEM, ASK, REPLY, MORE, LAST, ASK], "tools": "[]"}
    assert training_entries(sample) == [
        {"messages": [SYSTEM, ASK, REPLY], "tools": "[]"},
        {"messages": [SYSTEM, ASK, REPLY, MORE, LAST], "tools": "[]"},
    ]
    masked = text("assistant", "b", loss_weight=0.0)
    assert training_entries({"messages": [ASK, masked, MORE, LAST]}) == [{"messages": [ASK, masked, MORE, LAST]}]
    assert training_entries({"messages": [ASK, masked]}) == []


def test_a_pair_is_one_entry_and_what_cannot_be_learned_from_is_refused():
    pair = {"chosen_messages": [ASK, REPLY], "rejected_messages": [ASK, LAST]}
    assert training_entries(pair) == [pair]
    with pytest.raises(BadRow, match="rejected_messages must end"):
        training_entries({**pair, "rejected_messages": [ASK]})
    with pytest.raises(BadRow, match="no turn of the assistant's"):
        training_entries({"messages": [ASK]})


def test_size_and_weight():
    def taken(count, **share):
        share = Share(**share)
        rows = share.rows(count)
        return [row for row in range(rows) for _ in range(share.repeats(row))]

    assert taken(3) == [0, 1, 2]
    assert taken(5, size=2) == [0, 1]
    assert taken(2, size=5) == [0, 1]
    assert taken(3, weight=Fraction(2)) == [0, 0, 1, 1, 2, 2]
    assert taken(6, weight=Fraction("0.5")) == [1, 3, 5]
    assert taken(4, weight=Fraction("1.5")) == [0, 1, 1, 2, 3, 3]
    assert taken(3, size=2, weight=Fraction("0.1")) == []


@given(
    st.integers(0, 60),
    st.none() | st.integers(1, 80),
    st.fractions(min_value=Fraction(1, 50), max_value=7, max_denominator=100),
)
def test_by_number_and_one_after_the_other_give_the_same_rows(count, size, weight):
    share = Share(size, weight)
    rows = share.rows(count)
    streamed = [row for row in range(rows) for _ in range(share.repeats(row))]
    assert [share.row(entry) for entry in range(share.total(rows))] == streamed
    assert abs(len(streamed) - rows * weight) < 1
