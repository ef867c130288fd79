"""Messages from terminals that can do nothing but lines, and output in encodings that lack characters."""

from __future__ import annotations

import io

import pytest

from samplerpool.chat.encodings import encodable, tolerate_any_text, what_is_missing
from samplerpool.chat.plain_input import joined_lines


def messages(*reads: tuple[str, bool]) -> list[str]:
    """The messages of an input that gives these lines; with each, whether the next one came with it."""
    lines = iter([line for line, _ in reads])
    together = {number: more for number, (_, more) in enumerate(reads, 1)}
    read = 0

    def next_line() -> str:
        nonlocal read
        read += 1
        return next(lines, "")

    found = []
    try:
        while True:
            found.append(joined_lines(next_line, lambda: together.get(read, False)))
    except EOFError:
        return found


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        ([("a\n", False), ("b\n", False)], ["a", "b"]),
        ([("a\n", True), ("b\n", True), ("c\n", False), ("d\n", False)], ["a\nb\nc", "d"]),
        ([("a\\\n", False), ("b\n", False)], ["a\nb"]),
        ([("\n", False), ("a", False)], ["", "a"]),
        ([("a\\\n", False)], ["a"]),
        ([], []),
    ],
)
def test_lines_that_belong_together_are_one_message(reads: list[tuple[str, bool]], expected: list[str]) -> None:
    assert messages(*reads) == expected


def test_what_an_encoding_lacks_becomes_plain() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    tolerate_any_text(stream)
    stream.write("“a” – b … • ü 😀")
    stream.flush()
    assert raw.getvalue() == b'"a" - b ... * ? ?'
    assert encodable("a · ü", "latin-1") == "a · ü"
    assert encodable("a · ü", "ascii") == "a - ?"
    assert encodable("ü", None) == "ü"


def test_input_that_is_no_text_is_replaced() -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"a \xff"), encoding="utf-8")
    tolerate_any_text(stream)
    assert stream.read() == "a \ufffd"


def test_a_lacking_terminal_is_told_what_to_do() -> None:
    assert what_is_missing("utf-8") is None
    assert "export LC_ALL=C.UTF-8" in str(what_is_missing("ANSI_X3.4-1968"))
    assert "latin-1" in str(what_is_missing("latin-1"))
