"""What changes the logits before a token is drawn: biases, penalties, bans. Many rows at a time.

Each row keeps what it needs of its history and brings it up to date as it grows, so a step costs no pass over the whole
text. The changes of all rows are gathered into a few flat index operations on the logits. The order is that of
transformers' processors: logit bias, repetition penalty, (presence and frequency penalties, which it does not have),
then all bans.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from samplerpool.config.sampling import SamplingParams

BANNED = float("-inf")


class SamplingRow:
    """One request as the sampler sees it, made once and used at each of its steps.

    ``seen`` are the tokens of prompt and answer, where a repetition penalty asks for them; ``repeated`` those of the
    answer, where a presence or frequency penalty does; both as of the last ``update``.

    Args:
        params: resolved parameters; ``bad_words`` as token ids.
        tokens: prompt and all that was generated; the caller's own list, which the caller appends to.
        prompt_tokens: how many of them are the prompt.
    """

    __slots__ = (
        "_bad_words",
        "_ngrams",
        "_read",
        "params",
        "plain",
        "processed",
        "prompt_tokens",
        "repeated",
        "seen",
        "tokens",
    )

    def __init__(self, params: SamplingParams, tokens: list[int], prompt_tokens: int) -> None:
        self.params = params
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self._read = 0  # how many tokens the history below has taken in
        self.seen = _Distinct() if params.repetition_penalty != 1.0 else None
        self.repeated = _Distinct() if params.presence_penalty or params.frequency_penalty else None
        self._ngrams = _NGrams(params.no_repeat_ngram_size) if params.no_repeat_ngram_size else None
        self._bad_words = tuple(_token_ids(word) for word in params.bad_words or ())
        has_history = self.seen or self.repeated or self._ngrams
        self.processed = bool(has_history or self._bad_words or params.logit_bias or params.min_new_tokens)
        self.plain = params.greedy and not self.processed and params.logprobs is None

    @property
    def position(self) -> int:
        """Index of the token to be drawn, among the generated ones."""
        return len(self.tokens) - self.prompt_tokens

    def update(self) -> None:
        """Take in the tokens that came since the last step."""
        new = self.tokens[self._read :]
        if self.seen is not None:
            self.seen.take(new)
        if self.repeated is not None:
            self.repeated.take(self.tokens[max(self._read, self.prompt_tokens) :])
        if self._ngrams is not None:
            self._ngrams.take(new)
        self._read += len(new)

    def banned(self, eos_token_ids: frozenset[int]) -> list[int]:
        """Tokens that must not come next; some may be named twice.

        Args:
            eos_token_ids: end the answer.
        """
        params = self.params
        banned: list[int] = []
        if self._ngrams is not None:
            banned += self._ngrams.banned()
        for word in self._bad_words:
            if self._ends_with(word[:-1]) and not (len(word) == 1 and word[0] in eos_token_ids):
                banned.append(word[-1])
        if self.position < (params.min_new_tokens or 0):
            banned += params.stop_token_ids or ()
            if not params.ignore_eos:
                banned += eos_token_ids
        return banned

    def _ends_with(self, beginning: tuple[int, ...]) -> bool:
        return not beginning or tuple(self.tokens[-len(beginning) :]) == beginning


def _token_ids(word: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(word, str):
        raise TypeError(f"the bad word {word!r} was not turned into token ids")
    return word


class _Distinct:
    """The distinct tokens of a growing text, and how often each came, as arrays."""

    __slots__ = ("_place", "counts", "ids")

    def __init__(self) -> None:
        self.ids = array("q")
        self.counts = array("f")
        self._place: dict[int, int] = {}

    def take(self, token_ids: Iterable[int]) -> None:
        place, ids, counts = self._place, self.ids, self.counts
        for token_id in token_ids:
            at = place.get(token_id)
            if at is None:
                place[token_id] = len(ids)
                ids.append(token_id)
                counts.append(1.0)
            else:
                counts[at] += 1.0


class _NGrams:
    """What followed each sequence of ``size - 1`` tokens in a growing text."""

    __slots__ = ("_followers", "_size", "_tail")

    def __init__(self, size: int) -> None:
        self._followers: dict[tuple[int, ...], list[int]] = {}
        self._size = size - 1
        self._tail: tuple[int, ...] = ()

    def take(self, token_ids: Sequence[int]) -> None:
        size, text = self._size, (*self._tail, *token_ids)
        for end in range(size, len(text)):
            self._followers.setdefault(text[end - size : end], []).append(text[end])
        self._tail = text[len(text) - size :] if len(text) > size else text

    def banned(self) -> list[int]:
        return self._followers.get(self._tail, [])


# ---- many rows ----------------------------------------------------------------------------------------------------


def process(logits: Tensor, rows: Sequence[SamplingRow], eos_token_ids: frozenset[int]) -> None:
    """Change logits in place as the rows' parameters ask.

    Args:
        logits: float32, contiguous, shape [rows, vocabulary].
        eos_token_ids: end an answer.
    """
    cells = _Cells(logits)
    processed = [(at, row) for at, row in enumerate(rows) if row.processed]
    for _, row in processed:
        row.update()
    cells.add([(at, row.params.logit_bias) for at, row in processed if row.params.logit_bias])
    cells.rescale([(at, row.seen.ids, row.params.repetition_penalty or 1.0) for at, row in processed if row.seen])
    cells.subtract([(at, row.repeated, row.params) for at, row in processed if row.repeated])
    cells.ban([(at, row.banned(eos_token_ids)) for at, row in processed])


class _Cells:
    """Single logits of several rows, changed together."""

    def __init__(self, logits: Tensor) -> None:
        self._flat = logits.view(-1)
        self._vocabulary = logits.shape[-1]

    def add(self, parts: Sequence[tuple[int, tuple[tuple[int, float], ...]]]) -> None:
        """Biases by token id."""
        if not parts:
            return
        ids = array("q", (token_id for _, biases in parts for token_id, _ in biases))
        values = array("f", (bias for _, biases in parts for _, bias in biases))
        index = self._index(ids, [(at, len(biases)) for at, biases in parts])
        self._flat.index_add_(0, index, self._floats(values))

    def rescale(self, parts: Sequence[tuple[int, array[int], float]]) -> None:
        """Keskar et al. 2019 (CTRL): a positive logit is divided by the penalty, a negative one multiplied by it."""
        parts = [part for part in parts if part[1]]
        if not parts:
            return
        index = self._index(_joined(ids for _, ids, _ in parts), [(at, len(ids)) for at, ids, _ in parts])
        penalty = self._each([penalty for _, _, penalty in parts], [len(ids) for _, ids, _ in parts])
        before = self._flat[index]
        self._flat[index] = torch.where(before < 0, before * penalty, before / penalty)

    def subtract(self, parts: Sequence[tuple[int, _Distinct, SamplingParams]]) -> None:
        """Presence and frequency penalties, as OpenAI defines them."""
        parts = [part for part in parts if part[1].ids]
        if not parts:
            return
        lengths = [len(distinct.ids) for _, distinct, _ in parts]
        index = self._index(
            _joined(distinct.ids for _, distinct, _ in parts),
            [(part[0], n) for part, n in zip(parts, lengths, strict=True)],
        )
        counts = array("f")
        for _, distinct, _ in parts:
            counts.extend(distinct.counts)
        presence = self._each([params.presence_penalty or 0.0 for _, _, params in parts], lengths)
        frequency = self._each([params.frequency_penalty or 0.0 for _, _, params in parts], lengths)
        self._flat[index] -= frequency * self._floats(counts) + presence

    def ban(self, parts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Leave no chance to these tokens; ids outside of the vocabulary, which cannot come anyway, are passed over."""
        size = self._vocabulary
        ids = array("q", (at * size + token_id for at, banned in parts for token_id in banned if token_id < size))
        if ids:
            self._flat.index_fill_(0, torch.frombuffer(ids, dtype=torch.int64).to(self._flat.device), BANNED)

    def _index(self, ids: array[int], rows: Sequence[tuple[int, int]]) -> Tensor:
        """Flat places of token ids, given row and number of tokens of each part."""
        offsets = torch.tensor([at * self._vocabulary for at, _ in rows])
        lengths = torch.tensor([length for _, length in rows])
        index = torch.frombuffer(ids, dtype=torch.int64) + offsets.repeat_interleave(lengths)
        return index.to(self._flat.device)

    def _each(self, values: Sequence[float], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(torch.tensor(lengths)).to(self._flat.device)

    def _floats(self, values: array[float]) -> Tensor:
        return torch.frombuffer(values, dtype=torch.float32).to(self._flat.device)


def _joined(parts: Iterable[array[int]]) -> array[int]:
    joined = array("q")
    for part in parts:
        joined.extend(part)
    return joined
