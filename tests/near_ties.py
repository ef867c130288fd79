"""Whether two answers to a seeded request are the same up to near-ties.

Logits round differently with the shape of a batch, so two candidates that are as good as level may change places. What
follows the first difference is another text, and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.gumbel import gumbel_noise, row_key
from samplerpool.engine.logits_processors import SamplingRow, process
from samplerpool.engine.sampling import _BLOCK_COUNTERS, BLOCK

NEAR_TIE = 1e-3


def assert_same_tokens(
    found: Sequence[int], wanted: Sequence[int], request: EngineRequest, logits_after: Callable[[list[int]], Tensor]
) -> None:
    """Equal, or different from where the perturbed scores of the two candidates lie within ``NEAR_TIE``.

    Args:
        request: what both answer, from its first token on.
        logits_after: the model's own logits behind these tokens of the answer, shape [vocabulary].
    """
    for at, (token, other) in enumerate(zip(found, wanted, strict=False)):
        if token != other:
            tokens = [*request.prompt_ids, *wanted[:at]]
            logits = logits_after(list(wanted[:at])).float()[None].clone()
            process(logits, [SamplingRow(request.params, tokens, len(request.prompt_ids))], frozenset())
            gap = abs(gap_between(logits[0], request.params, at, other, token))
            assert gap < NEAR_TIE, f"token {at} is {token} instead of {other}, whose score is {gap:.2g} apart"
            return
    assert len(found) == len(wanted)


def gap_between(logits: Tensor, params: SamplingParams, position: int, first: int, second: int) -> float:
    """By how much the first token is ahead of the second in the race at this position.

    Args:
        logits: after the processors, before temperature; shape [vocabulary].
    """
    if params.greedy:
        return float(logits[first] - logits[second])
    scores, key = logits.double() / params.temperature, torch.tensor(row_key(params.seed or 0, position))
    filtered = params.top_k or (params.top_p or 1) < 1 or params.min_p or (params.typical_p or 1) < 1
    if filtered or first // BLOCK == second // BLOCK:
        both = torch.tensor([first, second])
        perturbed = scores[both] + gumbel_noise(key, both)
    else:  # without a filter blocks race first, each with the logarithm of its mass
        blocks = torch.tensor([first // BLOCK, second // BLOCK])
        mass = torch.stack([scores[block * BLOCK : (block + 1) * BLOCK].logsumexp(-1) for block in blocks.tolist()])
        perturbed = mass + gumbel_noise(key, blocks + _BLOCK_COUNTERS)
    return float(perturbed[0] - perturbed[1])
