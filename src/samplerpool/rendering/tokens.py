"""Text to token ids and back, over a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

REPLACEMENT = "\ufffd"
SPACE_PIECE = "\u2581"
"""What SentencePiece writes for a space."""


class TokenizerCodec:
    """Encodes without adding anything, and decodes without tidying anything. Safe to use from several threads.

    Fast tokenizers are called at their Rust backend directly, which is three times quicker on short runs of ids.

    Args:
        tokenizer: a transformers tokenizer, fast or slow.
        eos_token_ids: that end an answer, besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        own = tokenizer.eos_token_id
        self.eos_token_ids = frozenset(eos_token_ids) | (frozenset() if own is None else frozenset({own}))
        added = {token_id: token for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_tokens = frozenset(token.content for token in added.values()) | frozenset(
            tokenizer.all_special_tokens
        )
        self.special_ids = (frozenset(added) | frozenset(tokenizer.all_special_ids)) - self._unknown_ids()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens in it are recognized, none are added."""
        return self._encode(text, add_special_tokens=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to go on with: special tokens in it are recognized, those that this
        tokenizer puts at the beginning are added, and none at the end."""
        own, whole = self.encode(text), self._encode(text, add_special_tokens=True)
        for before in range(len(whole) - len(own) + 1):
            if whole[before : before + len(own)] == own:
                return whole[: before + len(own)] if own else _without_end(whole, self.eos_token_ids)
        return own

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._backend is None:
            ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return ids
        if self._backend.truncation is not None:
            # Somebody called the tokenizer itself with a limit, which the backend keeps.
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of these tokens; incomplete UTF-8 at the end becomes U+FFFD."""
        ids = token_ids if isinstance(token_ids, list) else list(token_ids)
        if self._backend is None:
            return str(
                self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
            )
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token stands for, special ones included.

        A token that is part of a character is shown as its bytes, as in ``<0xE2><0x80>``; an id that the tokenizer does
        not know as an empty text.
        """
        known = {token_id: self._piece(token_id) for token_id in set(token_ids)}
        return [known[token_id] for token_id in token_ids]

    def _piece(self, token_id: int) -> str:
        text = self.decode([token_id], skip_special_tokens=False)
        own = self._vocabulary_piece(token_id)
        if own is None:
            return text
        if REPLACEMENT in text:
            return _readable_bytes(own)
        spaced = own.replace(SPACE_PIECE, " ")  # decoded alone, it may lack the spaces before it
        return spaced if spaced.lstrip(" ") == text.lstrip(" ") else text

    def _vocabulary_piece(self, token_id: int) -> str | None:
        """The token as the vocabulary has it."""
        if self._backend is not None:
            piece: str | None = self._backend.id_to_token(token_id)
            return piece
        if token_id >= len(self._tokenizer):
            return None
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def token_id(self, token: str) -> int | None:
        """The id of a special token, if this tokenizer has it as one."""
        return int(self._tokenizer.convert_tokens_to_ids(token)) if token in self.special_tokens else None

    def _unknown_ids(self) -> frozenset[int]:
        """Ids that stand for characters outside the vocabulary: normal text may contain those."""
        if self._backend is None:
            unknown = self._tokenizer.unk_token_id
            return frozenset() if unknown is None else frozenset({unknown})
        model = self._backend.model
        unknown = getattr(model, "unk_id", None)
        token = getattr(model, "unk_token", None)
        if unknown is None and token is not None:
            unknown = self._backend.token_to_id(token)
        return frozenset() if unknown is None else frozenset({int(unknown)})


def _without_end(added: list[int], eos_token_ids: frozenset[int]) -> list[int]:
    """What is put around no text at all, without what ends it."""
    return added[:-1] if len(added) > 1 and added[-1] in eos_token_ids else added


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of byte-level vocabularies stands for: printable ones stand for themselves, those from
    U+0100 on for the others in turn."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_LETTERS = _byte_letters()


def _readable_bytes(piece: str) -> str:
    """A vocabulary's piece with the characters that are whole in it, and the other bytes as ``<0xE2>``."""
    if not all(letter in _BYTE_LETTERS for letter in piece):
        return piece
    return readable(bytes(_BYTE_LETTERS[letter] for letter in piece))


def readable(data: bytes) -> str:
    """Bytes as text; those that are no whole character as ``<0xE2>``."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)
