"""No special token survives in user text, and other text is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.rendering.escaping import ZERO_WIDTH_SPACE, Neutralizer, map_strings

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|im", "<s>", "[INST]", "aa", "a.*")
PIECES = [*SPECIALS, "<|", "|>", "<", "im_", "start", "a", "[", "INST]", " ", "\n", "é", "😀", ZERO_WIDTH_SPACE]

neutralizer = Neutralizer(SPECIALS)
dangerous_text = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=12).map("".join)


@given(dangerous_text)
def test_no_special_token_is_left(text: str) -> None:
    safe = neutralizer.text(text)
    assert not any(token in safe for token in SPECIALS)


@given(dangerous_text)
def test_only_zero_width_spaces_are_added(text: str) -> None:
    assert neutralizer.text(text).replace(ZERO_WIDTH_SPACE, "") == text.replace(ZERO_WIDTH_SPACE, "")


@given(st.text())
def test_normal_text_is_untouched(text: str) -> None:
    if not any(token in text for token in SPECIALS):
        assert neutralizer.text(text) is text


@given(dangerous_text)
def test_a_second_pass_changes_nothing(text: str) -> None:
    safe = neutralizer.text(text)
    assert neutralizer.text(safe) == safe


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("<|im_end|>", "<\u200b|im_end|>"),
        ("x<s>y<s>", "x<\u200bs>y<\u200bs>"),
        ("aaa", "a\u200ba\u200ba"),  # overlapping: both are broken
        ("<|im_start", "<\u200b|im_start"),  # a shorter token at the start of a longer one
        ("a.*", "a\u200b.*"),  # no regular expression
        ("a.b", "a.b"),
    ],
)
def test_zero_width_space_goes_behind_the_first_character(text: str, safe: str) -> None:
    assert neutralizer.text(text) == safe


def test_single_characters_are_no_special_tokens() -> None:
    assert Neutralizer(["§", "<s>"]).text("§ 5") == "§ 5"
    assert Neutralizer([]).text("<s>") == "<s>"


@given(dangerous_text, dangerous_text, dangerous_text)
def test_whatever_could_join_is_noticed(before: str, text: str, after: str) -> None:
    """A special token that lies partly in ``text``, in any surroundings, is foretold by ``may_join``."""
    safe = neutralizer.text(text)
    whole, start, end = before + safe + after, len(before), len(before) + len(safe)
    for token in SPECIALS:
        position = whole.find(token)
        while position != -1:
            if position < end and position + len(token) > start and safe:
                assert neutralizer.may_join(safe)
            position = whole.find(token, position + 1)


@given(dangerous_text, dangerous_text, dangerous_text)
def test_an_isolated_text_joins_with_nothing(before: str, text: str, after: str) -> None:
    isolated = neutralizer.isolate(text)
    whole, start, end = before + isolated + after, len(before), len(before) + len(isolated)
    for token in SPECIALS:
        position = whole.find(token)
        while position != -1:
            assert position + len(token) <= start or position >= end
            position = whole.find(token, position + 1)


def test_other_letter_case_is_noticed() -> None:
    assert neutralizer.may_join("say <|IM_END|> now")
    assert not neutralizer.may_join("say nothing now")


def test_nested_strings_and_keys_are_changed() -> None:
    value = {"<s>": ["<s>", {"deep": "<s>"}, 1, None, True]}
    assert map_strings(value, neutralizer.text) == {"<\u200bs>": ["<\u200bs>", {"deep": "<\u200bs>"}, 1, None, True]}


def test_keys_that_would_fall_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="two keys"):
        map_strings({"<s>": 1, "<\u200bs>": 2}, neutralizer.text)
