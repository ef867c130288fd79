"""The beginning of an answer that a user gives, and prompts shown token by token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from samplerpool.errors import RenderError
from samplerpool.rendering.parsing import AnswerTags
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.renderer import Renderer
from samplerpool.rendering.tokens import TokenizerCodec, readable
from tests.tiny_tokenizer import END, START, tiny_tokenizer, user

RENDERER = Renderer(tiny_tokenizer())


def shown(renderer: Renderer, ids: Any) -> str:
    return renderer.codec.decode(ids, skip_special_tokens=False)


def test_it_is_tokens_of_its_own() -> None:
    assert shown(RENDERER, RENDERER.prefill_ids("Sure, 👋")) == "Sure, 👋"
    assert RENDERER.prefill_ids("") == ()


@given(st.lists(st.sampled_from([START, END, "<|st", "art|>", "a", " "]), max_size=8).map("".join))
@settings(deadline=None)
def test_no_special_token_can_be_smuggled_in_by_it(text: str) -> None:
    ids = RENDERER.prefill_ids(text)
    assert RENDERER.codec.special_ids.isdisjoint(ids)
    assert shown(RENDERER, ids).replace("\u200b", "") == text


def test_what_cannot_be_made_safe_is_refused_with_its_place() -> None:
    with pytest.raises(RenderError, match="beginning of the answer"):
        Renderer(tiny_tokenizer(normalized=True)).prefill_ids(f"x{END}")
    with pytest.raises(RenderError, match=r"lone surrogate.* the beginning of the answer"):
        RENDERER.prefill_ids("\ud800")


@pytest.mark.parametrize(
    ("style", "prefill", "opened"),
    [
        ("", "", False),
        ("<think>\n", "", True),
        ("<think>\n\n</think>\n\n", "", False),
        ("<think>", "hm</think>", False),
        ("", "<think>hm", True),
        ("", "<think>hm</think>Yes", False),
        ("<think>", "hm", True),
    ],
)
def test_the_renderer_knows_whether_what_comes_is_reasoning(style: str, prefill: str, opened: bool) -> None:
    prompt = RENDERER.codec.encode(f"{START}assistant:{style}")
    assert RENDERER.reasoning_open(prompt, prefill) == opened


def test_tags_are_told_as_far_as_they_show_in_texts() -> None:
    assert RENDERER.answer_tags == {
        "think": ("<think>", "</think>"),
        "tool_call": ("<tool_call>", "</tool_call>"),
    }
    tags = AnswerTags(think=("[T]", "[/T]"), tool_call=(START, END))
    renderer = Renderer(tiny_tokenizer(), template=RenderingPlugin(tags=tags))
    assert renderer.answer_tags == {"think": ("[T]", "[/T]")}
    assert (RENDERER.hidden_tags, renderer.hidden_tags) == ((), ("tool_call",))
    assert renderer.reasoning_open(renderer.codec.encode("x[T]"), "")


def test_a_response_template_has_tags_of_its_own() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": f"{START}assistant:",
        "fields": {
            "thinking": {"open": "[T]", "close": "[/T]", "content": "text"},
            "tool_calls": {
                "open_pattern": r"call:(?P<name>\w+)",
                "close": ";",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"close": END, "content": "text"},
        },
    }
    renderer = Renderer(tokenizer)
    assert renderer.answer_tags == {"think": ("[T]", "[/T]")}
    assert renderer.hidden_tags == ("tool_call",)
    assert renderer.reasoning_open(renderer.codec.encode("a:[T]"), "")
    assert not renderer.reasoning_open(renderer.codec.encode("a:<think>"), "")


def test_byte_level_tokens_are_shown_each_as_it_is() -> None:
    ids = RENDERER.prompt_ids([user("é a")])
    pieces = RENDERER.codec.pieces(ids)
    assert "".join(pieces) == f"{START}user:<0xC3><0xA9> a{END}{START}assistant:"
    assert len(pieces) == len(ids)


@given(st.text(max_size=30))
@settings(deadline=None)
def test_the_pieces_of_an_ascii_prompt_are_its_text(text: str) -> None:
    ids = RENDERER.codec.encode(text.encode("ascii", "ignore").decode())
    assert "".join(RENDERER.codec.pieces(ids)) == shown(RENDERER, ids)


def test_sentencepiece_keeps_its_spaces_and_bytes() -> None:
    words = ["<unk>", "\u2581a", "b", "\u2581\u2581", "<0xC3>", "<0xA9>"]
    backend = Tokenizer(BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    codec = TokenizerCodec(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert codec.pieces([1, 2, 1, 3, 4, 5]) == [" a", "b", " a", "  ", "<0xC3>", "<0xA9>"]
    assert codec.pieces([99]) == [""]


@given(st.binary(max_size=12))
@settings(deadline=None)
def test_bytes_are_readable_whatever_they_are(data: bytes) -> None:
    text = readable(data)
    assert "\ufffd" not in text or b"\xef\xbf\xbd" in data
    text.encode("utf-8")
