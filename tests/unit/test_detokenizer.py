"""Deltas add up to the text of the whole, in whole characters, and stop strings never show."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.engine.scripted import END_OF_SEQUENCE, ByteCodec


class SpacedCodec:
    """Words that carry a leading space, which the first word of a text loses."""

    eos_token_ids = frozenset({0})
    words = ("<eos>", "one", "two", "three")

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        kept = [t for t in token_ids if t or not skip_special_tokens]
        return " ".join(self.words[t] for t in kept)

    def encode(self, text: str) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [f" {self.words[t]}" for t in token_ids]


def deltas(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.add([t]) for t in token_ids), detokenizer.finish()]


def test_characters_come_whole() -> None:
    assert deltas(Detokenizer(ByteCodec()), list("a👋é".encode())) == ["a", "", "", "", "👋", "", "é", ""]


def test_spaces_between_words_stay() -> None:
    assert deltas(Detokenizer(SpacedCodec()), [1, 2, 2, 3]) == ["one", " two", " two", " three", ""]


def test_behind_the_beginning_of_an_answer_a_word_keeps_its_space() -> None:
    assert deltas(Detokenizer(SpacedCodec(), context_ids=[3]), [1, 2]) == [" one", " two", ""]
    assert deltas(Detokenizer(ByteCodec(), context_ids=list("é".encode())), list(b"ab")) == ["a", "b", ""]


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 80))
@settings(deadline=None)
def test_what_stands_before_is_never_told_again(before: str, text: str, cut: int) -> None:
    data = list(text.encode("utf-8", "replace"))
    whole = Detokenizer(ByteCodec(), context_ids=list(before.encode("utf-8", "replace")))
    assert "".join(deltas(whole, data)) == bytes(data).decode()
    first, rest = data[:cut], data[cut:]
    given_out = Detokenizer(ByteCodec()).add(first)
    again = Detokenizer(
        ByteCodec(),
        generated_ids=first,
        delivered_chars=len(given_out),
        context_ids=list(before.encode("utf-8", "replace")),
    )
    assert given_out + "".join(deltas(again, rest)) == bytes(data).decode()


def test_special_tokens_as_asked() -> None:
    ids = [*b"ab", END_OF_SEQUENCE]
    assert "".join(deltas(Detokenizer(ByteCodec()), ids)) == "ab"
    assert "".join(deltas(Detokenizer(ByteCodec(), skip_special_tokens=False), ids)) == "ab<eos>"


def test_an_unfinished_character_shows_at_the_end_only() -> None:
    assert deltas(Detokenizer(ByteCodec()), list("é".encode())[:1]) == ["", "\ufffd"]


def test_a_stop_string_is_never_shown_in_part() -> None:
    detokenizer = Detokenizer(ByteCodec(), stop=["END", "\n\n"])
    assert deltas(detokenizer, list(b"xEN yEND z")) == ["x", "", "", "EN ", "y", "", "", "", "", "", ""]
    assert detokenizer.stopped


def test_what_looked_like_a_stop_string_is_given_out_at_the_end() -> None:
    detokenizer = Detokenizer(ByteCodec(), stop=["END"])
    assert "".join(deltas(detokenizer, list(b"the EN"))) == "the EN"
    assert not detokenizer.stopped


def test_the_earliest_stop_string_counts() -> None:
    detokenizer = Detokenizer(ByteCodec(), stop=["cd", "bcd"])
    assert detokenizer.add(list(b"abcd")) == "a"


@given(st.text(max_size=300), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_deltas_add_up(text: str, size: int) -> None:
    data = text.encode("utf-8", "replace")
    detokenizer = Detokenizer(ByteCodec())
    parts = [detokenizer.add(data[i : i + size]) for i in range(0, len(data), size)]
    assert "".join(parts) + detokenizer.finish() == data.decode()
    assert not any("\ufffd" in part for part in parts if "\ufffd" not in text)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_garbage_gives_the_same_text_as_the_whole(data: bytes) -> None:
    detokenizer = Detokenizer(ByteCodec())
    text = "".join(deltas(detokenizer, list(data)))
    assert text.replace("\ufffd", "") == data.decode("utf-8", "replace").replace("\ufffd", "")


@given(st.text(min_size=1, max_size=60), st.integers(0, 200), st.lists(st.text(min_size=1, max_size=4), max_size=2))
@settings(max_examples=300, deadline=None)
def test_a_continuation_says_what_the_uninterrupted_one_would_have(text: str, cut: int, stop: list[str]) -> None:
    data = list(text.encode("utf-8", "replace"))
    cut %= len(data) + 1
    whole = Detokenizer(ByteCodec(), stop)
    before = "".join(whole.add([t]) for t in data[:cut])
    if whole.stopped:
        return
    expected = "".join(deltas(whole, data[cut:]))
    again = Detokenizer(ByteCodec(), stop, generated_ids=data[:cut], delivered_chars=len(before))
    assert "".join(deltas(again, data[cut:])) == expected


def test_a_continuation_that_holds_a_stop_string_still_says_what_comes_before_it() -> None:
    detokenizer = Detokenizer(ByteCodec(), ["END"], generated_ids=list(b"one END two"), delivered_chars=2)
    assert detokenizer.stopped
    assert detokenizer.delivered == "on"
    assert detokenizer.add(b"x") + detokenizer.finish() == "e "


@pytest.mark.parametrize("length", [1, 63, 64, 65, 500])
def test_a_window_of_nothing_but_broken_bytes_stays_small(length: int) -> None:
    detokenizer = Detokenizer(ByteCodec())
    text = "".join(deltas(detokenizer, [0xFF] * length))
    assert text == "\ufffd" * length
