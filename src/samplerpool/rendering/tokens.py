"""Text to token ids and back, over a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


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
        if self._backend is None:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids
        if self._backend.truncation is not None:
            # Somebody called the tokenizer itself with a limit, which the backend keeps.
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of these tokens; incomplete UTF-8 at the end becomes U+FFFD."""
        ids = token_ids if isinstance(token_ids, list) else list(token_ids)
        if self._backend is None:
            return str(
                self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
            )
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

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
