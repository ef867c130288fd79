"""Our sampling inside transformers' continuous batching.

The library calls one object before each step, on the host, with all requests of the batch, and after each forward
pass, on the device (maybe inside a CUDA graph), with their logits. ``BatchSampler`` is that object: its first call
writes every request's parameters into the library's own input tensor, its second draws the tokens. It leaves the drawn
token of each row with the largest score, which the library's argmax then takes.

This is not a public interface of transformers; the engine contract tests tell when it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from samplerpool.config.sampling import SamplingParams
from samplerpool.engine.sampling import SamplingRows, draw, draw_grouped

SETTINGS_KEY = "settings"
"""Keyword of the manager's ``add_request`` under which a request's settings travel."""

_LINES = 6
"""int32 values per request: temperature, top_p, min_p (floats viewed as integers), top_k, and the key's two halves."""


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What the sampler needs to know of a request.

    Args:
        params: resolved parameters.
        prompt_tokens: length of the original prompt; what follows it in the sequence counts as generated.
    """

    params: SamplingParams
    prompt_tokens: int


_GREEDY = RequestSettings(SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0), 0)
"""For the library's own warm-up requests."""


class BatchSampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Draws the next token of every request in a batch, each by its own parameters.

    Args:
        on_host: the model runs on the CPU, step by step: then each row costs only what it needs, and repetition
            penalties can be had, since the host knows all earlier tokens before each step.
    """

    def __init__(self, *, on_host: bool) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = _LINES
        self.do_processing = True
        self._on_host = on_host
        self._penalties: list[tuple[int, Tensor, float]] = []

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Settings are checked before they get here."""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Values for rows that no request has written yet: greedy ones."""
        int32_tensor.copy_(_encode([_GREEDY], [0]))

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Tensor) -> Tensor:
        """Write the parameters of all requests that draw a token in the coming step, in the order of their logits."""
        states = [request.state for request in requests_in_batch if request.has_new_token]
        if not states:
            return arg_storage
        settings = [state.logit_processor_kwargs.get(SETTINGS_KEY, _GREEDY) for state in states]
        # The library has counted the tokens of this step already: the offset is the index of the token to be drawn,
        # also for a request that it took off the batch and started over with its tokens in the prompt.
        positions = [state.position_offset - s.prompt_tokens for state, s in zip(states, settings, strict=True)]
        arg_storage[:, : len(states)] = _encode(settings, positions).to(arg_storage.device)
        self._penalties = [
            (row, torch.tensor(state.initial_tokens + state.generated_tokens), s.params.repetition_penalty)
            for row, (state, s) in enumerate(zip(states, settings, strict=True))
            if s.params.repetition_penalty != 1.0
        ]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """Raise the drawn token of each row above all others.

        Args:
            scores: float32 logits, shape [rows, vocabulary]; rows beyond the written ones hold nothing of interest.
            logits_processor_args: int32, shape [6, rows].
        """
        rows = _decode(logits_processor_args)
        if self._on_host:
            for row, token_ids, penalty in self._penalties:
                _penalize(scores[row], token_ids, penalty)
            tokens = draw_grouped(scores, rows)
        else:
            tokens = draw(scores, rows)
        return scores.scatter_(1, tokens.unsqueeze(-1), float("inf"))


def _penalize(scores: Tensor, token_ids: Tensor, penalty: float) -> None:
    """Keskar et al. 2019 (CTRL), as transformers does it; in place. A token that occurs twice is penalized once."""
    seen = scores[token_ids]
    scores[token_ids] = torch.where(seen < 0, seen * penalty, seen / penalty)


def _encode(settings: Sequence[RequestSettings], positions: Sequence[int]) -> Tensor:
    """int32, shape [6, requests]: everything as bits, since the library's storage holds nothing else."""
    rows = SamplingRows.of([s.params for s in settings], positions)
    floats = torch.stack((rows.temperature, rows.top_p, rows.min_p)).view(torch.int32)
    key_halves = rows.key.view(torch.int32).view(-1, 2).T
    return torch.cat((floats, rows.top_k.to(torch.int32).unsqueeze(0), key_halves))


def _decode(lines: Tensor) -> SamplingRows:
    temperature, top_p, min_p = lines[:3].view(torch.float32)
    key = lines[4:6].T.contiguous().view(torch.int64).squeeze(-1)
    return SamplingRows(temperature, lines[3].to(torch.int64), top_p, min_p, key)
