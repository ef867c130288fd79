"""The next token of each row of a batch, every row by its own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.logits_processors import SamplingRow, process
from samplerpool.engine.sampling import SamplingRows, argmax, draw_grouped, log_total
from samplerpool.errors import UnsupportedParameter
from samplerpool.types import TokenLogprobs

__all__ = ["LOWEST_LOGPROB", "RowSampler", "Sampled", "SamplingRow"]

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot hold; OpenAI's interface writes it this way."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn.

    Args:
        token_ids: one a row.
        logprobs: one a row, None where the row does not ask for them; None altogether where no row asks.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None

    def of(self, row: int) -> list[TokenLogprobs] | None:
        """What a row's ``StepOutput.logprobs`` is."""
        entry = None if self.logprobs is None else self.logprobs[row]
        return None if entry is None else [entry]


class RowSampler:
    """Draws tokens reproducibly: see ``engine.sampling``. Keeps no state of its own; rows keep theirs.

    Args:
        vocab_size: number of token ids; the logits may be wider.
        eos_token_ids: end an answer, unless its request ignores them.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int], device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.device = torch.device(device)

    def check(self, params: SamplingParams) -> None:
        """Refuse token ids that the model does not have. May be called from any thread.

        Raises:
            UnsupportedParameter
        """
        check_token_ids(params, self.vocab_size)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """One token for each row. Appending it to the row's ``tokens`` is the caller's.

        Args:
            logits: float32, shape [rows, vocabulary]; the processors change it in place.
            rows: in the order of the logits.
        """
        if len(logits) != len(rows) or logits.shape[1] < self.vocab_size:
            raise ValueError(f"logits of shape {tuple(logits.shape)} for {len(rows)} rows of {self.vocab_size}")
        if all(row.plain for row in rows):
            return Sampled(argmax(logits).tolist())
        logits = logits.float().contiguous()
        asking = [at for at, row in enumerate(rows) if row.params.logprobs is not None]
        raw = logits[asking] if asking else logits
        if any(row.processed for row in rows):
            process(logits, rows, self.eos_token_ids)
        settings = SamplingRows.of([row.params for row in rows], [row.position for row in rows])
        token_ids: list[int] = draw_grouped(logits, settings.to(self.device)).tolist()
        return Sampled(token_ids, self._logprobs(raw, asking, rows, token_ids) if asking else None)

    def _logprobs(
        self, raw: Tensor, asking: Sequence[int], rows: Sequence[SamplingRow], token_ids: Sequence[int]
    ) -> list[TokenLogprobs | None]:
        """Of the model's own distribution: its logits as they came, before any parameter changes them.

        Args:
            raw: logits of the rows in ``asking``.
        """
        log_mass = log_total(raw).unsqueeze(-1)
        chosen_ids = torch.tensor([token_ids[at] for at in asking], device=raw.device).unsqueeze(-1)
        chosen = (raw.take_along_dim(chosen_ids, -1) - log_mass).clamp(min=LOWEST_LOGPROB).squeeze(-1).tolist()
        counts = [min(cast(int, rows[at].params.logprobs), self.vocab_size) for at in asking]
        best, best_ids = raw.topk(max(counts))
        best_logprobs = (best - log_mass).clamp(min=LOWEST_LOGPROB).tolist()
        results: list[TokenLogprobs | None] = [None] * len(rows)
        for at, count, logprob, ids, logprobs in zip(
            asking, counts, chosen, best_ids.tolist(), best_logprobs, strict=True
        ):
            top = list(zip(ids[:count], logprobs[:count], strict=True))
            results[at] = TokenLogprobs(token_ids[at], logprob, top)
        return results


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids in ``logit_bias`` and ``bad_words`` that a model does not have.

    Raises:
        UnsupportedParameter: with the first such id.
    """
    biased = [("logit_bias", token_id) for token_id, _ in params.logit_bias or ()]
    words = [("bad_words", token_id) for word in params.bad_words or () for token_id in word]
    for name, token_id in (*biased, *words):
        if not isinstance(token_id, int) or token_id >= vocab_size:
            raise UnsupportedParameter(
                f"{name} names the token {token_id!r}; this model's token ids go from 0 to {vocab_size - 1}.",
                parameter=name,
                vocab_size=vocab_size,
            )
