"""Streaming with tokenizers of the kinds that models have: whatever the split, the deltas are the text of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

from samplerpool.engine.detokenizer import MAX_OPEN, REPLACEMENT, Detokenizer
from samplerpool.rendering.tokens import TokenizerCodec

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
START, END = "<s>", "</s>"
PIECES = [
    "👨‍👩‍👧‍👦",  # four people, joined by characters without a width of their own
    "🏳️‍🌈",
    "👋🏽",
    "🇫🇷",
    "日本語",
    "中文字",
    "한국어",
    "นี่",
    "é",  # a letter and a mark
    "q̣̇",
    "नमस्ते",
    "hello",
    "world",
    " ",
    "  ",
    "\n",
    "don't",
    ".",
    "ab",
    "�",
]
CORPUS = ["hello world hello ab, don't. 👋🏽 👨‍👩‍👧‍👦 日本語 中文字 é"] * 30 + ["hello 👋 日本 world\n  ab ab"] * 20


def with_specials(backend: Tokenizer) -> TokenizerCodec:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    return TokenizerCodec(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=START, eos_token=END))


def byte_level() -> TokenizerCodec:
    """As GPT-2, Llama 3, Qwen and SmolLM: tokens are runs of bytes, which end anywhere within a character."""
    backend = Tokenizer(BPE())
    # Without a split at characters, so that there are tokens with the end of one and the beginning of the next.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet))
    return with_specials(backend)


def byte_fallback(*, prefix: bool) -> TokenizerCodec:
    """As Llama 2 and Mistral (with a space in front, which decoding takes away) and Gemma: words, else bytes."""
    words = ["▁", "h", "e", "l", "o", "w", "r", "d", "a", "b", "ab", "▁a", "▁ab", "ll", "he", "▁he", "日", "."]
    vocabulary = {token: i for i, token in enumerate(("<unk>", *BYTES, *words))}
    merges = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("l", "l"), ("h", "e"), ("▁", "he")]
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return with_specials(backend)


def unigram() -> TokenizerCodec:
    """As T5 and XGLM: words with a space in front of them, which the first word of a text loses."""
    backend = Tokenizer(Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], initial_alphabet=[*"👋日本語\u200d"]
    )
    backend.train_from_iterator(CORPUS, trainer)
    return with_specials(backend)


def word_pieces() -> TokenizerCodec:
    """As BERT: pieces without a space between them are marked, and the decoder tidies the punctuation."""
    words = ["[UNK]", "hello", "world", "he", "##llo", "a", "##b", "ab", ".", "don", "'", "t", "##t", "日", "本", "語"]
    backend = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex("[日本語]"), "isolated")]
    )
    backend.decoder = decoders.WordPiece()
    return with_specials(backend)


CODECS = {
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(prefix=True),
    "byte-fallback-without-prefix": byte_fallback(prefix=False),
    "unigram": unigram(),
    "word-pieces": word_pieces(),
}
ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
TEXTS = st.lists(st.sampled_from([*PIECES, START, END]), max_size=8).map("".join)
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=20)
MANY = settings(max_examples=100, deadline=None)


def pieces_of(token_ids: Sequence[int], sizes: Iterable[int]) -> list[list[int]]:
    """The tokens in runs of these sizes, over and over."""
    rest, runs = list(token_ids), []
    for size in itertools.cycle(sizes):
        if not rest:
            return runs
        runs.append(rest[:size])
        rest = rest[size:]
    raise AssertionError("no sizes")


def deltas(detokenizer: Detokenizer, runs: Iterable[Sequence[int]]) -> list[str]:
    return [*map(detokenizer.add, runs), detokenizer.finish()]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the stop string that a reader from left to right would find first."""
    for end in range(len(text) + 1):
        if found := [string for string in stop if text[:end].endswith(string)]:
            return text[: end - max(map(len, found))]
    return text


def test_the_tokenizers_are_as_bad_as_those_of_models() -> None:
    """Characters over several tokens, tokens over several characters, and a space that comes and goes."""
    for name, emoji in (("byte-level", "🏳️"), ("byte-fallback", "👋"), ("byte-fallback-without-prefix", "👋")):
        codec = CODECS[name]
        ids = codec.encode(emoji)
        assert REPLACEMENT in codec.decode(ids[:-1], skip_special_tokens=True)
    ends_within = [CODECS["byte-level"].decode([i], skip_special_tokens=True) for i in range(300)]
    assert any(text.endswith(REPLACEMENT) and text.strip(REPLACEMENT) for text in ends_within)
    for name in ("byte-fallback", "unigram"):
        ids = CODECS[name].encode("he ab")
        alone = "".join(CODECS[name].decode([i], skip_special_tokens=True) for i in ids)
        assert alone == CODECS[name].decode(ids, skip_special_tokens=True).replace(" ", "") == "heab"


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback", "unigram"])
def test_a_text_to_go_on_with_begins_as_the_tokenizer_has_it_and_does_not_end(name: str) -> None:
    tokenizer = CODECS[name]._tokenizer
    plain = CODECS[name].encode("he ab")
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    assert CODECS[name].encode_prompt("he ab") == plain
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    codec = with_specials(backend)
    assert codec.encode_prompt("he ab") == [start, *plain]
    assert codec.encode_prompt("") == [start]
    assert codec.encode_prompt(f"{START}he ab{END}") == [start, *codec.encode(f"{START}he ab{END}")]


@pytest.mark.parametrize("name", ["byte-fallback", "unigram"])
def test_a_word_behind_a_text_keeps_its_space(name: str) -> None:
    codec = CODECS[name]
    ids = codec.encode("he ab")
    behind = Detokenizer(codec, context_ids=ids[:-1])
    first = codec.decode(ids[:-1], skip_special_tokens=True)
    assert first + behind.add(ids[-1:]) + behind.finish() == "he ab"


@ALL
@pytest.mark.parametrize("skip", [True, False], ids=["without-specials", "with-specials"])
@given(text=TEXTS, sizes=SIZES)
@MANY
def test_deltas_add_up_to_the_text_of_the_whole(codec: TokenizerCodec, skip: bool, text: str, sizes: list[int]) -> None:
    ids = codec.encode(text)
    parts = deltas(Detokenizer(codec, skip_special_tokens=skip), pieces_of(ids, sizes))
    whole = codec.decode(ids, skip_special_tokens=skip)
    assert "".join(parts) == whole
    if REPLACEMENT not in whole:
        assert all(REPLACEMENT not in part for part in parts)
    assert skip is False or (START not in whole and END not in whole)


@ALL
@given(text=TEXTS, sizes=SIZES, at=st.integers(0, 60), length=st.integers(1, 6), other=st.sampled_from(PIECES))
@MANY
def test_a_stop_string_is_never_shown_in_part(
    codec: TokenizerCodec, text: str, sizes: list[int], at: int, length: int, other: str
) -> None:
    ids = codec.encode(text)
    whole = codec.decode(ids, skip_special_tokens=True)
    stop = [whole[at : at + length] or "never", other]
    detokenizer = Detokenizer(codec, stop)
    parts = deltas(detokenizer, pieces_of(ids, sizes))
    assert "".join(parts) == before_stop(whole, stop)
    assert detokenizer.stopped == any(string in whole for string in stop)
    if detokenizer.stopped and REPLACEMENT not in whole:
        *before, last = ids[: detokenizer.count]
        assert any(string in codec.decode([*before, last], skip_special_tokens=True) for string in stop)
        shorter = codec.decode(before, skip_special_tokens=True).rstrip(REPLACEMENT)
        assert not any(string in shorter for string in stop)


@ALL
@given(text=TEXTS, cut=st.integers(0, 60), stop=st.lists(st.sampled_from(PIECES), max_size=2))
@MANY
def test_a_continuation_says_what_the_uninterrupted_one_would_have(
    codec: TokenizerCodec, text: str, cut: int, stop: list[str]
) -> None:
    ids = codec.encode(text)
    cut %= len(ids) + 1
    whole = Detokenizer(codec, stop)
    before = "".join(whole.add([i]) for i in ids[:cut])
    if whole.stopped:
        return
    again = Detokenizer(codec, stop, generated_ids=ids[:cut], delivered_chars=len(before))
    runs = [[i] for i in ids[cut:]]
    assert deltas(again, runs) == deltas(whole, runs)


@pytest.mark.parametrize("name", CODECS)
def test_every_split_of_a_text(name: str) -> None:
    codec = CODECS[name]
    ids = codec.encode("ab 👋日 ab.")[:12]
    whole = codec.decode(ids, skip_special_tokens=True)
    for borders in itertools.product((False, True), repeat=len(ids) - 1):
        runs: list[list[int]] = [[ids[0]]]
        for border, token_id in zip(borders, ids[1:], strict=True):
            if border:
                runs.append([])
            runs[-1].append(token_id)
        assert "".join(deltas(Detokenizer(codec), runs)) == whole
        for stop in (["日 a", "👋日 "], ["👋日 a", "日 "], ["b."], ["ab 👋日 ab.."]):
            assert "".join(deltas(Detokenizer(codec, stop), runs)) == before_stop(whole, stop)


@pytest.mark.parametrize("name", ["byte-level", "unigram", "word-pieces"])
@given(ids=st.lists(st.integers(0, 110), max_size=MAX_OPEN), sizes=SIZES)
@MANY
def test_tokens_in_an_order_that_no_text_has(name: str, ids: list[int], sizes: list[int]) -> None:
    codec = CODECS[name]
    known = [i for i in ids if codec._tokenizer.convert_ids_to_tokens(i) is not None]
    parts = deltas(Detokenizer(codec), pieces_of(known, sizes))
    assert "".join(parts) == codec.decode(known, skip_special_tokens=True)


WORDS = st.sampled_from(["▁he", "ll", "▁ab", "日"])
BROKEN = st.lists(st.one_of(WORDS, st.sampled_from(BYTES[0x80:])), max_size=40)


@pytest.mark.parametrize("name", ["byte-fallback", "byte-fallback-without-prefix"])
@given(tokens=BROKEN, sizes=SIZES)
@MANY
def test_bytes_that_are_no_characters_do_not_reach_beyond_themselves(
    name: str, tokens: list[str], sizes: list[int]
) -> None:
    """What was given out cannot be taken back when bytes behind it turn out to be broken; words are left alone."""
    codec = CODECS[name]
    ids = [codec._tokenizer.convert_tokens_to_ids(token) for token in tokens]
    text = "".join(deltas(Detokenizer(codec), pieces_of(ids, sizes)))
    words = [codec.decode([i], skip_special_tokens=True).strip() for i in ids]
    expected = "".join(word for word in words if word.isascii() or word == "日")
    assert "".join(c for c in text if c == "日" or (c.isascii() and c != " ")) == expected
    assert text.count(" ") == codec.decode(ids, skip_special_tokens=True).count(" ")


def test_broken_bytes_do_not_show_for_the_characters_before_them() -> None:
    """Which the decoder says of the whole run: five bytes, five replacement characters."""
    codec = CODECS["byte-fallback"]
    ids = [*codec.encode("👋")[1:], codec._tokenizer.convert_tokens_to_ids("<0xE2>"), *codec.encode("ab")]
    assert codec.decode(ids, skip_special_tokens=True) == 5 * REPLACEMENT + " ab"
    assert "".join(deltas(Detokenizer(codec), [[i] for i in ids])) == f"👋{REPLACEMENT} ab"


@ALL
def test_special_tokens_without_end_keep_the_window_small_and_the_space(codec: TokenizerCodec) -> None:
    detokenizer = Detokenizer(codec)
    first, rest, special = codec.encode("ab"), codec.encode("ab ab"), codec.encode(END)
    assert len(special) == 1
    parts = [detokenizer.add(first), *(detokenizer.add(special) for _ in range(3 * MAX_OPEN))]
    assert len(detokenizer._window) <= MAX_OPEN + len(first)
    parts += deltas(detokenizer, [[i] for i in rest[len(first) :]])
    assert "".join(parts) == codec.decode(rest, skip_special_tokens=True)


def test_characters_that_always_cross_a_border_come_all_the_same() -> None:
    """No token ends where a character does: the window never settles, and still the text comes and it stays short."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = level.pre_tokenize_str("👋👋")[0][0]
    backend = Tokenizer(BPE({letters[:2]: 0, letters[2:6]: 1, letters[6:]: 2}, []))
    backend.decoder = decoders.ByteLevel()
    codec = with_specials(backend)
    detokenizer = Detokenizer(codec)
    assert detokenizer.add([0]) == ""
    for _ in range(3 * MAX_OPEN):
        assert detokenizer.add([1]) == "👋"
        assert len(detokenizer._window) <= MAX_OPEN
    assert deltas(detokenizer, [[2]]) == ["👋", ""]
