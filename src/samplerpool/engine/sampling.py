"""Drawing tokens so that the same seed gives the same tokens, in any batch, on any device.

The draw is Gumbel-max (Gumbel 1954; Maddison et al. 2014, "A* Sampling"): the token with the largest sum of score and
Gumbel noise is a sample of the softmax of the scores. The noise (``engine.gumbel``) depends on seed, position and
token id, and on nothing else.

- With a filter (top-k, top-p, min-p, typical-p) the kept tokens race, each with the noise of its id.
- Without one, blocks of 256 ids race first on the logarithm of their mass, then the tokens of the winning block: the
  same distribution for two small sets of noise instead of one as large as the vocabulary.

Inverse-CDF sampling is not used: there, rounding in one logit moves the boundary of every later token.

Given the same logits, a row's token is the same in any batch: nothing is computed over several rows, and how many
candidates are looked at depends on the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.gumbel import gumbel_noise, row_key

BLOCK = 256
CANDIDATES = (64, 1024, 8192)
"""How many of the best tokens are looked at, first and where they do not hold the whole filtered set; then all."""
CHUNK_ROWS = 8
"""Rows whose scores are worked on at a time on the CPU: they fit its cache."""

_BLOCK_COUNTERS = 1 << 40
"""Counters of blocks lie beyond any token id, so their noise is independent of the tokens'."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Sampling parameters of a batch, one element a row, all on the logits' device.

    Args:
        temperature: float32; 0 means greedy.
        top_k: int64; 0 keeps all.
        top_p: float32; 1 keeps all.
        min_p: float32; 0 keeps all.
        typical_p: float32; 1 keeps all.
        key: int64, of ``row_key``.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    typical_p: Tensor
    key: Tensor

    @classmethod
    def of(cls, params: Sequence[SamplingParams], positions: Sequence[int]) -> SamplingRows:
        """Rows on the CPU from resolved parameters and the positions of the tokens to be drawn."""
        return cls(
            temperature=torch.tensor([0.0 if p.greedy else p.temperature for p in params], dtype=torch.float32),
            top_k=torch.tensor([p.top_k for p in params], dtype=torch.int64),
            top_p=torch.tensor([p.top_p for p in params], dtype=torch.float32),
            min_p=torch.tensor([p.min_p for p in params], dtype=torch.float32),
            typical_p=torch.tensor([p.typical_p for p in params], dtype=torch.float32),
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
        """Rows with a filter by rank or probability."""
        return (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)

    @property
    def typical(self) -> Tensor:
        """Rows with the filter by typicality."""
        return self.typical_p < 1

    def select(self, index: Tensor) -> SamplingRows:
        """Some of the rows."""
        return SamplingRows(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device) -> SamplingRows:
        """The same on another device."""
        return SamplingRows(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def argmax(logits: Tensor) -> Tensor:
    """The first of the largest logits of each row.

    On the CPU the largest block is looked for first, since torch finds a maximum five times faster than its place.
    """
    rows, vocabulary = logits.shape
    if logits.device.type != "cpu" or vocabulary % BLOCK or not logits.is_contiguous():
        return logits.argmax(-1)
    blocks = logits.view(rows, -1, BLOCK)
    block = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(rows), block]
    return block * BLOCK + inside.argmax(-1)


def draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    """One token per row, without any branch on data: fit for a CUDA graph. Does not look at ``typical_p``.

    Args:
        logits: float, shape [rows, vocabulary].

    Returns:
        int64, shape [rows].
    """
    scores = _scaled(logits.float(), _largest(logits), rows.temperature)
    mass = _block_sums(scores.exp())
    whole = _race_blocks(logits, mass, rows)
    ordered, token_ids = torch.sort(scores, descending=True)
    kept = _race_kept(ordered, token_ids, _threshold(ordered, rows, mass.sum(-1).log()), rows.key)
    return torch.where(rows.greedy, logits.argmax(-1), torch.where(rows.filtered, kept, whole))


def draw_grouped(logits: Tensor, rows: SamplingRows) -> Tensor:
    """The same tokens as ``draw``, doing for each row only what it needs, and with ``typical_p``: fit for the CPU.

    Returns:
        int64, shape [rows].
    """
    greedy, typical = rows.greedy, rows.typical
    filtered = rows.filtered & ~typical
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    for group, take in (
        (greedy, _take_greedy),
        (~greedy & ~filtered & ~typical, _take_any),
        (~greedy & filtered, _take_filtered),
        (~greedy & typical, _take_typical),
    ):
        index = group.nonzero().flatten()
        if len(index) == len(tokens):
            return take(logits, rows)
        if len(index):
            tokens[index] = take(logits[index], rows.select(index))
    return tokens


def _take_greedy(logits: Tensor, rows: SamplingRows) -> Tensor:
    return argmax(logits)


def _take_any(logits: Tensor, rows: SamplingRows) -> Tensor:
    return _race_blocks(logits, _block_mass(logits, rows.temperature), rows)


def _take_filtered(logits: Tensor, rows: SamplingRows) -> Tensor:
    """From as few of the best candidates as hold the filtered set, mostly a few dozen."""
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    log_mass = _log_mass(logits, rows)
    left = torch.arange(len(tokens), device=logits.device)
    for count in (*(c for c in CANDIDATES if c < logits.shape[-1]), logits.shape[-1]):
        all_of_it = count == logits.shape[-1]
        fits = (rows.top_k[left] < count) | all_of_it
        index = left[fits]
        if not len(index):
            continue
        chosen = rows if len(index) == len(tokens) else rows.select(index)
        best, token_ids = torch.topk(logits if chosen is rows else logits[index], count)
        best = _scaled(best.float(), best[:, :1], chosen.temperature)
        threshold = _threshold(best, chosen, log_mass[index])
        complete = (best[:, -1] < threshold) | best[:, -1].isneginf() | all_of_it
        tokens[index[complete]] = _race_kept(best, token_ids, threshold, chosen.key)[complete]
        left = torch.cat((left[~fits], index[~complete])).sort().values
        if not len(left):
            break
    return tokens


def _take_typical(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Meister et al. 2023, "Locally Typical Sampling", on what the other filters keep, as transformers does it.

    Kept are the tokens whose information is nearest to the entropy, up to the probability asked for.
    """
    scores = _scaled(logits.float(), _largest(logits), rows.temperature)
    if bool(rows.filtered.any()):
        ordered = scores.sort(descending=True).values
        threshold = _threshold(ordered, rows, _log_mass(logits, rows))
        scores = scores.masked_fill(scores < threshold.unsqueeze(-1), float("-inf"))
    scores = scores.log_softmax(-1)
    entropy = -(scores.exp() * scores).nansum(-1, keepdim=True)
    distance = (scores + entropy).abs()
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    left = torch.arange(len(tokens), device=logits.device)
    for count in (*(c for c in CANDIDATES[1:] if c < logits.shape[-1]), logits.shape[-1]):
        nearest, token_ids = distance[left].topk(count, largest=False)
        inside = scores[left].take_along_dim(token_ids, -1)
        reached = (inside.exp().cumsum(-1) < rows.typical_p[left].unsqueeze(-1)).sum(-1, keepdim=True)
        limit = nearest.take_along_dim(reached.clamp(max=count - 1), -1)
        drawn = _race(inside.masked_fill(nearest > limit, float("-inf")), token_ids, rows.key[left].unsqueeze(-1))
        complete = (limit < nearest[:, -1:]).squeeze(-1) | (count == logits.shape[-1])
        tokens[left[complete]] = drawn[complete]
        left = left[~complete]
        if not len(left):
            break
    return tokens


def _largest(logits: Tensor) -> Tensor:
    return logits.float().amax(-1, keepdim=True)


def _scaled(logits: Tensor, largest: Tensor, temperature: Tensor) -> Tensor:
    """Logits over temperature, shifted so that the largest is 0: no temperature can make them overflow."""
    return (logits - _finite(largest)) / _divisor(temperature)


def _finite(largest: Tensor) -> Tensor:
    """A row whose tokens are all banned has no largest logit; with this it stays free of NaN."""
    return largest.masked_fill(largest.isneginf(), 0.0)


def _divisor(temperature: Tensor) -> Tensor:
    return torch.where(temperature > 0, temperature, 1.0).unsqueeze(-1)


def _block_sums(weights: Tensor) -> Tensor:
    if padding := -weights.shape[-1] % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, padding))
    return weights.view(weights.shape[0], -1, BLOCK).sum(-1)


def _block_mass(logits: Tensor, temperature: Tensor) -> Tensor:
    """Sum of exp(score) in each block of 256 ids, the largest score being 0; float32, shape [rows, blocks]."""
    rows, vocabulary = logits.shape
    chunk = CHUNK_ROWS if logits.device.type == "cpu" else rows
    blocks = -(-vocabulary // BLOCK)
    largest, divisor = _finite(_largest(logits)), _divisor(temperature)
    sums = torch.empty(rows, blocks, device=logits.device)
    buffer = torch.zeros(min(chunk, rows), blocks * BLOCK, device=logits.device)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        weights = buffer[: part.stop - start]
        inside = weights[:, :vocabulary]
        torch.sub(logits[part], largest[part], out=inside)
        inside.div_(divisor[part]).exp_()
        torch.sum(weights.view(-1, blocks, BLOCK), -1, out=sums[part])
    return sums


def log_total(logits: Tensor) -> Tensor:
    """Logarithm of the sum of exp(logit) of each row; float32, shape [rows]."""
    ones = torch.ones(logits.shape[0], device=logits.device)
    return _block_mass(logits, ones).sum(-1).log() + _finite(_largest(logits)).squeeze(-1)


def _log_mass(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Logarithm of the sum of exp(score) of each row; NaN for rows whose filters do not need it."""
    mass = torch.full_like(rows.temperature, float("nan"))
    index = ((rows.top_p < 1) & (rows.top_k == 0)).nonzero().flatten()
    if len(index) == len(mass):
        return _block_mass(logits, rows.temperature).sum(-1).log()
    if len(index):
        mass[index] = _block_mass(logits[index], rows.temperature[index]).sum(-1).log()
    return mass


def _race_blocks(logits: Tensor, mass: Tensor, rows: SamplingRows) -> Tensor:
    """A token of the whole vocabulary: blocks race, then the tokens of the winning one."""
    keys = rows.key.unsqueeze(-1)
    block_ids = torch.arange(mass.shape[-1], device=logits.device)
    winner = (mass.log() + gumbel_noise(keys, block_ids + _BLOCK_COUNTERS)).argmax(-1, keepdim=True)
    token_ids = winner * BLOCK + torch.arange(BLOCK, device=logits.device)
    outside = token_ids >= logits.shape[-1]
    inside = logits.take_along_dim(token_ids.clamp(max=logits.shape[-1] - 1), -1).float()
    inside = inside.masked_fill(outside, float("-inf"))
    # Shifted by the block's own largest: one that is far below the row's keeps its digits.
    return _race(_scaled(inside, _largest(inside), rows.temperature), token_ids, keys)


def _race(scores: Tensor, token_ids: Tensor, keys: Tensor) -> Tensor:
    winner = (scores + gumbel_noise(keys, token_ids)).argmax(-1, keepdim=True)
    return token_ids.take_along_dim(winner, dim=-1).squeeze(-1)


def _race_kept(ordered: Tensor, token_ids: Tensor, threshold: Tensor, keys: Tensor) -> Tensor:
    kept = ordered.masked_fill(ordered < threshold.unsqueeze(-1), float("-inf"))
    return _race(kept, token_ids, keys.unsqueeze(-1))


def _threshold(ordered: Tensor, rows: SamplingRows, log_mass: Tensor) -> Tensor:
    """The least score that passes all filters, in the usual order: top-k, top-p of what that keeps, min-p.

    Tokens that tie with the last one kept are kept too, so the set does not depend on how a sort breaks ties.

    Args:
        ordered: the best scores, falling, the largest 0; shape [rows, candidates].
        log_mass: logsumexp of all scores of a row, shape [rows]; looked at only for top-p without top-k.

    Returns:
        Shape [rows]. Not above the last candidate where the candidates do not hold the whole set.
    """
    count = ordered.shape[-1]
    open_end = torch.full_like(log_mass, float("-inf"))
    has_top_k = rows.top_k > 0
    top_k = torch.where(has_top_k, rows.top_k.clamp(max=count), count).unsqueeze(-1)
    inside = ordered.masked_fill(torch.arange(count, device=ordered.device) >= top_k, float("-inf"))
    by_top_k = torch.where(has_top_k, ordered.take_along_dim(top_k - 1, -1).squeeze(-1), open_end)

    mass = torch.where(has_top_k, inside.logsumexp(-1), log_mass.nan_to_num(0.0))
    probabilities = (inside - mass.unsqueeze(-1)).exp()
    before = probabilities.cumsum(-1) - probabilities
    needed = (before < rows.top_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(min=1)
    by_top_p = torch.where(rows.top_p < 1, ordered.take_along_dim(needed - 1, -1).squeeze(-1), open_end)
    return torch.maximum(torch.maximum(by_top_k, by_top_p), rows.min_p.log())
