"""Text for tiny models: each token is a letter of its own, so that what an engine says can be read, and stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samplerpool.types import Message

FIRST = 0x4E00
"""Where Chinese characters begin: enough of them for any tiny vocabulary."""


class LetterCodec:
    """Token ids as letters."""

    eos_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - FIRST for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(FIRST + token_id) for token_id in token_ids)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [chr(FIRST + token_id) for token_id in token_ids]


class LetterRenderer:
    """A prompt is its letters."""

    codec = LetterCodec()

    def prompt_ids(self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(self.codec.encode("".join(block["value"] for m in messages for block in m["content"])))

    needs_special_tokens = False
    media_kinds: frozenset[str] = frozenset()
    answer_tags: Mapping[str, Sequence[str]] = {}
    hidden_tags: Sequence[str] = ()

    def prefill_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.codec.encode(text))

    def reasoning_open(self, prompt_ids: Sequence[int], prefill: str) -> bool:
        return False

    def media_prompt(self, *_: Any) -> Any:
        raise AssertionError("there are no media")

    def parse_message(self, text: str, prompt_ids: Sequence[int]) -> Message:
        return {"role": "assistant", "content": [{"type": "text", "value": text}]}
