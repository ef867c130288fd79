"""Our sampling inside transformers' continuous batching.

The library calls one object before each step, on the host, with all requests of the batch, and after each forward
pass, on the device (maybe inside a CUDA graph), with their logits. ``BatchSampler`` is that object. Its second call
leaves the drawn token of each row with the largest score, which the library's argmax then takes.

On the CPU the library goes step by step, so that the host knows all earlier tokens before each step: there the row
sampler draws, with every parameter. On a device the parameters have to travel in the library's own input tensor, six
numbers a request, and nothing may depend on earlier tokens.

This is not a public interface of transformers; the engine contract tests tell when it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from samplerpool.config.sampling import SamplingParams, resolve
from samplerpool.engine.hosted import RequestSettings, draw_in_place
from samplerpool.engine.row_sampler import RowSampler
from samplerpool.engine.sampling import SamplingRows, draw

SETTINGS_KEY = "settings"
"""Keyword of the manager's ``add_request`` under which a request's settings travel."""

_LINES = 6
"""int32 values per request: temperature, top_p, min_p (floats viewed as integers), top_k, and the key's two halves."""


_GREEDY = RequestSettings.of(resolve(SamplingParams(temperature=0.0, seed=0)), 0)
"""For the library's own warm-up requests."""


class BatchSampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Draws the next token of every request in a batch, each by its own parameters.

    Args:
        row_sampler: where the model runs on the CPU, step by step; None on a device.
    """

    def __init__(self, row_sampler: RowSampler | None) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = _LINES
        self.do_processing = True
        self._row_sampler = row_sampler
        self._settings: list[RequestSettings] = []
        self.steps = 0

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Settings are checked before they get here."""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Values for rows that no request has written yet: greedy ones."""
        int32_tensor.copy_(_encode([_GREEDY], [0]))

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Tensor) -> Tensor:
        """Write the parameters of all requests that draw a token in the coming step, in the order of their logits."""
        self.steps += 1  # here because the library comes by before every step, also one that draws none
        states = [request.state for request in requests_in_batch if request.has_new_token]
        if not states:
            return arg_storage
        settings = [state.logit_processor_kwargs.get(SETTINGS_KEY, _GREEDY) for state in states]
        if self._row_sampler is not None:
            for state, s in zip(states, settings, strict=True):
                known = s.row.tokens
                known += (state.initial_tokens + state.generated_tokens)[len(known) :]
            self._settings = settings
            return arg_storage
        # The library has counted the tokens of this step already: the offset is the index of the token to be drawn,
        # also for a request that it took off the batch and started over with its tokens in the prompt.
        positions = [state.position_offset - s.prompt_tokens for state, s in zip(states, settings, strict=True)]
        arg_storage[:, : len(states)] = _encode(settings, positions).to(arg_storage.device)
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """Raise the drawn token of each row above all others.

        Args:
            scores: float32 logits, shape [rows, vocabulary]; rows beyond the written ones hold nothing of interest.
            logits_processor_args: int32, shape [6, rows].
        """
        if self._row_sampler is None:
            tokens = draw(scores, _decode(logits_processor_args))
            return scores.scatter_(1, tokens.unsqueeze(-1), float("inf"))
        settings, self._settings = self._settings, []
        if settings:
            draw_in_place(self._row_sampler, scores[: len(settings)], settings)
        return scores


def _encode(settings: Sequence[RequestSettings], positions: Sequence[int]) -> Tensor:
    """int32, shape [6, requests]: everything as bits, since the library's storage holds nothing else."""
    rows = SamplingRows.of([s.params for s in settings], positions)
    floats = torch.stack((rows.temperature, rows.top_p, rows.min_p)).view(torch.int32)
    key_halves = rows.key.view(torch.int32).view(-1, 2).T
    return torch.cat((floats, rows.top_k.to(torch.int32).unsqueeze(0), key_halves))


def _decode(lines: Tensor) -> SamplingRows:
    temperature, top_p, min_p = lines[:3].view(torch.float32)
    key = lines[4:6].T.contiguous().view(torch.int64).squeeze(-1)
    return SamplingRows(temperature, lines[3].to(torch.int64), top_p, min_p, torch.ones_like(top_p), key)
