"""Drawing tokens so that the same seed gives the same tokens, in any batch, on any device.

The draw is Gumbel-max (Gumbel 1954; Maddison et al. 2014, "A* Sampling"): the token with the largest sum of score and
Gumbel noise is a sample of the softmax of the scores. The noise is counter-based: SplitMix64 (Steele et al. 2014) in
integer arithmetic of a key, made of seed and position, and a counter, the token id. So it depends on nothing else.

- With a filter (top-k, top-p, min-p) the kept tokens race, each with the noise of its id.
- Without one, blocks of 256 ids race first on the logsumexp of their scores, then the tokens of the winning block:
  the same distribution for two small sets of noise instead of one as large as the vocabulary.

Inverse-CDF sampling is not used: there, rounding in one logit moves the boundary of every later token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from samplerpool.config.sampling import SamplingParams

BLOCK = 256
CANDIDATES = 1024
"""How many of the best tokens are looked at before the whole vocabulary is sorted."""

_MASK_64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_POSITION_STEP = 0xD1342543DE82EF95
_BLOCK_COUNTERS = 1 << 40
"""Counters of blocks lie beyond any token id, so their noise is independent of the tokens'."""


def _signed(value: int) -> int:
    value &= _MASK_64
    return value - 2**64 if value >= 2**63 else value


def row_key(seed: int, position: int) -> int:
    """The noise's key for the token at ``position`` (number of tokens generated before it), a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(seed + _GAMMA) + position * _POSITION_STEP))


def _mix_int(z: int) -> int:
    z &= _MASK_64
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK_64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK_64
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    """The same as ``_mix_int`` on int64 tensors: products wrap around, shifts are made logical by a mask."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(_MIX_1)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(_MIX_2)
    return z ^ ((z >> 31) & (2**33 - 1))


def gumbel_noise(keys: Tensor, counters: Tensor) -> Tensor:
    """Standard Gumbel noise.

    Args:
        keys: int64, of ``row_key``; broadcast against ``counters``.
        counters: int64, token ids or block counters.

    Returns:
        float32 in about -2.8 to 37. A uniform number near 0 becomes large noise: there float32 is dense, so the tail
        that decides races is smooth.
    """
    bits = _mix(keys + (counters + 1) * _signed(_GAMMA))
    uniform = (((bits >> 11) & (2**53 - 1)).to(torch.float32) + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform.clamp(max=1.0 - 2.0**-24)))


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Sampling parameters of a batch, one element a row, all on the logits' device.

    Args:
        temperature: float32; 0 means greedy.
        top_k: int64; 0 keeps all.
        top_p: float32; 1 keeps all.
        min_p: float32; 0 keeps all.
        key: int64, of ``row_key``.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    key: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], positions: Sequence[int]) -> SamplingRows:
        """Rows on the CPU from resolved parameters and the positions of the tokens to be drawn."""
        return cls(
            temperature=torch.tensor([0.0 if p.greedy else p.temperature for p in params], dtype=torch.float32),
            top_k=torch.tensor([p.top_k for p in params], dtype=torch.int64),
            top_p=torch.tensor([p.top_p for p in params], dtype=torch.float32),
            min_p=torch.tensor([p.min_p for p in params], dtype=torch.float32),
            key=torch.tensor(
                [row_key(p.seed or 0, at) for p, at in zip(params, positions, strict=True)], dtype=torch.int64
            ),
        )

    @property
    def greedy(self) -> Tensor:
        """Rows whose most probable token is taken."""
        return self.temperature <= 0

    @property
    def filtered(self) -> Tensor:
        """Rows with any filter."""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)

    def select(self, index: Tensor) -> SamplingRows:
        """Some of the rows."""
        return SamplingRows(*(getattr(self, f.name)[index] for f in fields(self)))


def draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    """One token per row, without any branch on data: fit for a CUDA graph.

    Args:
        logits: float, shape [rows, vocabulary].

    Returns:
        int64, shape [rows].
    """
    scores = _scaled(logits, rows.temperature)
    sampled = torch.where(rows.filtered, _race_sorted(scores, rows), _race_blocks(scores, rows.key))
    return torch.where(rows.greedy, logits.argmax(-1), sampled)


def draw_grouped(logits: Tensor, rows: SamplingRows) -> Tensor:
    """The same tokens as ``draw``, doing for each row only what it needs: fit for the CPU."""
    tokens = logits.argmax(-1)
    sampled, filtered = ~rows.greedy, rows.filtered
    index = (sampled & ~filtered).nonzero().flatten()
    if index.numel():
        tokens[index] = _race_blocks(_scaled(logits[index], rows.temperature[index]), rows.key[index])
    index = (sampled & filtered).nonzero().flatten()
    if index.numel():
        chosen = rows.select(index)
        tokens[index] = _race_best(_scaled(logits[index], chosen.temperature), chosen)
    return tokens


def _scaled(logits: Tensor, temperature: Tensor) -> Tensor:
    """Logits over temperature, shifted so that the largest is 0: no temperature can make them overflow."""
    logits = logits.float()
    divisor = torch.where(temperature > 0, temperature, 1.0)
    return (logits - logits.amax(-1, keepdim=True)) / divisor.unsqueeze(-1)


def _race_blocks(scores: Tensor, keys: Tensor) -> Tensor:
    """A token of the whole vocabulary: blocks race, then the tokens of the winning one."""
    if padding := -scores.shape[-1] % BLOCK:
        scores = torch.nn.functional.pad(scores, (0, padding), value=float("-inf"))
    blocks = scores.view(scores.shape[0], -1, BLOCK)
    block_ids = torch.arange(blocks.shape[1], device=scores.device)
    keys = keys.unsqueeze(-1)
    winner = (blocks.logsumexp(-1) + gumbel_noise(keys, block_ids + _BLOCK_COUNTERS)).argmax(-1, keepdim=True)
    inside = blocks.take_along_dim(winner.unsqueeze(-1), dim=1).squeeze(1)
    token_ids = winner * BLOCK + torch.arange(BLOCK, device=scores.device)
    return _race(inside, token_ids, keys)


def _race(scores: Tensor, token_ids: Tensor, keys: Tensor) -> Tensor:
    winner = (scores + gumbel_noise(keys, token_ids)).argmax(-1, keepdim=True)
    return token_ids.take_along_dim(winner, dim=-1).squeeze(-1)


def _race_best(scores: Tensor, rows: SamplingRows) -> Tensor:
    """A token of the filtered set, from the best few candidates where they hold the whole set, as they mostly do."""
    if int(rows.top_k.max()) <= CANDIDATES < scores.shape[-1]:
        best, token_ids = torch.topk(scores, CANDIDATES)
        threshold = _threshold(best, rows, scores.logsumexp(-1))
        if bool((best[:, -1] < threshold).all()):
            return _race_kept(best, token_ids, threshold, rows.key)
    return _race_sorted(scores, rows)


def _race_sorted(scores: Tensor, rows: SamplingRows) -> Tensor:
    ordered, token_ids = torch.sort(scores, descending=True)
    return _race_kept(ordered, token_ids, _threshold(ordered, rows, scores.logsumexp(-1)), rows.key)


def _race_kept(ordered: Tensor, token_ids: Tensor, threshold: Tensor, keys: Tensor) -> Tensor:
    kept = ordered.masked_fill(ordered < threshold.unsqueeze(-1), float("-inf"))
    return _race(kept, token_ids, keys.unsqueeze(-1))


def _threshold(ordered: Tensor, rows: SamplingRows, log_mass: Tensor) -> Tensor:
    """The least score that passes all filters, in the usual order: top-k, top-p of what that keeps, min-p.

    Tokens that tie with the last one kept are kept too, so the set does not depend on how a sort breaks ties.

    Args:
        ordered: the best scores, falling, the largest 0; shape [rows, candidates].
        log_mass: logsumexp of all scores of a row; shape [rows].

    Returns:
        Shape [rows]. Not above the last candidate where the candidates do not hold the whole set.
    """
    count = ordered.shape[-1]
    open_end = torch.full_like(log_mass, float("-inf"))
    has_top_k = rows.top_k > 0
    top_k = torch.where(has_top_k, rows.top_k.clamp(max=count), count).unsqueeze(-1)
    inside = ordered.masked_fill(torch.arange(count, device=ordered.device) >= top_k, float("-inf"))
    by_top_k = torch.where(has_top_k, ordered.take_along_dim(top_k - 1, -1).squeeze(-1), open_end)

    mass = torch.where(has_top_k, inside.logsumexp(-1), log_mass)
    probabilities = (inside - mass.unsqueeze(-1)).exp()
    before = probabilities.cumsum(-1) - probabilities
    needed = (before < rows.top_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(min=1)
    by_top_p = torch.where(rows.top_p < 1, ordered.take_along_dim(needed - 1, -1).squeeze(-1), open_end)
    return torch.maximum(torch.maximum(by_top_k, by_top_p), rows.min_p.log())
