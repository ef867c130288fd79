"""Log-probabilities as OpenAI's interface has them, with each token's text and bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samplerpool.types import TokenLogprobs

Pieces = Mapping[int, str]
"""What tokens stand for, as ``AsyncSampler.pieces`` tells it."""

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)")


def token_ids_in(entries: Iterable[TokenLogprobs]) -> set[int]:
    """All tokens that are spoken of."""
    return {token_id for entry in entries for token_id in (entry.token_id, *(token for token, _ in entry.top))}


def bytes_of(piece: str) -> list[int]:
    """The bytes of a token; those that are only part of a character are written as ``<0xE2>`` in its text."""
    parts = _BYTES.split(piece)
    return [byte for at, part in enumerate(parts) for byte in ([int(part[1:-1], 16)] if at % 2 else part.encode())]


def chat_logprobs(entries: Iterable[TokenLogprobs], pieces: Pieces) -> dict[str, Any]:
    """Of a choice of ``/v1/chat/completions``."""

    def told(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": pieces[token_id], "logprob": logprob, "bytes": bytes_of(pieces[token_id])}

    content = [
        {**told(entry.token_id, entry.logprob), "top_logprobs": [told(*each) for each in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def text_logprobs(entries: Sequence[TokenLogprobs], pieces: Pieces, offset: int = 0) -> dict[str, Any]:
    """Of a choice of ``/v1/completions``.

    Args:
        offset: characters of the tokens before these.
    """
    tokens = [pieces[entry.token_id] for entry in entries]
    offsets = [offset + sum(map(len, tokens[:at])) for at in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_by_text(entry, pieces) for entry in entries],
        "text_offset": offsets,
    }


def _by_text(entry: TokenLogprobs, pieces: Pieces) -> dict[str, float]:
    """Of tokens with the same text the most probable one, which comes first, is told."""
    found: dict[str, float] = {}
    for token_id, logprob in entry.top:
        found.setdefault(pieces[token_id], logprob)
    return found
