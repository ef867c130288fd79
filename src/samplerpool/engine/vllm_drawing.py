"""Our sampling inside vLLM.

vLLM lets processors of ours at the logits of each step, on the device, before it takes a token: a public way in
(``vllm.v1.sample.logits_processor``). This one leaves the token that the row sampler drew with the largest logit, and
as every request is handed to vLLM as a greedy one, that is the one it takes. So all parameters are honoured, the noise
is that of our other engines, and a request that is put back, or comes from another worker, goes on with the same
tokens, none of which vLLM's own seeded draw could promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from samplerpool.engine.hosted import RequestSettings, draw_in_place
from samplerpool.engine.row_sampler import RowSampler

SETTINGS_KEY = "samplerpool"
"""Key of ``extra_args`` under which a request's settings travel."""


@dataclass(slots=True)
class Passes:
    """How many forward passes vLLM has begun."""

    count: int = 0


class _Row:
    """A request in vLLM's batch.

    A draw is not always used: vLLM asks for one behind each part of a long prompt, and forgets all but the last. What
    counts is the list of generated tokens that vLLM itself keeps, also of a request that it takes off its batch for
    want of room and begins anew.

    Args:
        settings: its row knows the tokens that vLLM got as a prompt.
        handed_over: how many these were.
        generated: vLLM's own list, which grows.
    """

    __slots__ = ("_generated", "_handed_over", "_settings")

    def __init__(self, settings: RequestSettings, handed_over: int, generated: list[int]) -> None:
        self._settings = settings
        self._handed_over = handed_over
        self._generated = generated

    def up_to_date(self) -> RequestSettings:
        """With all tokens so far."""
        known = self._settings.row.tokens
        known += self._generated[len(known) - self._handed_over :]
        return self._settings


def _row(params: SamplingParams, prompt_ids: list[int] | None, generated: list[int]) -> _Row:
    return _Row(params.extra_args[SETTINGS_KEY], len(prompt_ids or ()), generated)


def drawing(sampler: RowSampler, passes: Passes) -> type[LogitsProcessor]:
    """The class of processors to give to an engine of vLLM's in this process, which makes an object of it.

    Args:
        sampler: on the device of the logits.
        passes: counts them.
    """

    class Drawing(LogitsProcessor):  # type: ignore[misc]
        """Draws the next token of every request in a batch, each by its own parameters."""

        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._rows: dict[int, _Row] = {}

        def is_argmax_invariant(self) -> bool:
            """No: it says what the largest logit is."""
            return False

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            """Follow vLLM's batch; called before each pass."""
            passes.count += 1
            process_dict_updates(self._rows, batch_update, _row)

        def apply(self, logits: Tensor) -> Tensor:
            """Raise the drawn token of each row above all others.

            Args:
                logits: float32, shape [requests, vocabulary].
            """
            draw_in_place(sampler, logits, [self._rows[at].up_to_date() for at in range(len(logits))])
            return logits

    return Drawing
