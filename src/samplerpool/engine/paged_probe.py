"""Does continuous batching compute what the model computes? Some models crash in it; some are silently wrong.

At the start two short prompts of different lengths are answered together, greedily, and every token is held against
the logits of plain forward passes. It costs a fraction of a second and turns a wrong answer into an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.errors import SamplerPoolError, StartFailed

PROMPT_LENGTHS = (9, 21)
NEW_TOKENS = 4
TOLERANCE = 0.25
"""How far below the largest logit a token may lie, in standard deviations of the logits: rounding, not error."""


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """A prompt, and what plain forward passes say comes next: float logits, shape [new tokens, vocabulary]."""

    prompt_ids: tuple[int, ...]
    logits: Tensor


def plain_answers(model: Any) -> list[PlainAnswer]:
    """Greedy answers without continuous batching; to be taken before that is set up, which may change the attention.

    Raises:
        StartFailed: the model cannot be run at all, or not as a causal language model.
    """
    try:
        return _plain_answers(model)
    except Exception as error:
        raise StartFailed(f"A {type(model).__name__} does not run as a causal language model: {error}.") from error


@torch.no_grad()
def _plain_answers(model: Any) -> list[PlainAnswer]:
    vocabulary = model.config.get_text_config().vocab_size
    answers = []
    for length in PROMPT_LENGTHS:
        prompt_ids = [(length * 31 + i * 7919) % vocabulary for i in range(length)]
        sequence, rows = torch.tensor([prompt_ids], device=model.device), []
        for _ in range(NEW_TOKENS):
            logits = model(input_ids=sequence, use_cache=False).logits[0, -1].float()
            rows.append(logits)
            sequence = torch.cat((sequence, logits.argmax().view(1, 1)), dim=1)
        answers.append(PlainAnswer(tuple(prompt_ids), torch.stack(rows).cpu()))
    return answers


def probe(engine: Engine, expected: list[PlainAnswer]) -> None:
    """Let the engine answer the same prompts.

    Raises:
        StartFailed: it cannot, or its tokens are not the model's.
    """
    params = resolve(sampling_params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, seed=0))
    tokens: dict[int, list[int]] = {i: [] for i in range(len(expected))}
    for i, answer in enumerate(expected):
        engine.add(EngineRequest((-1, i), answer.prompt_ids, params))
    try:
        while engine.has_work():
            for output in engine.step():
                if output.error is not None:
                    raise output.error
                tokens[output.request_id[1]] += output.token_ids
    except SamplerPoolError as error:
        why = error.data.get("reason", error.message)
        raise StartFailed(f"The {engine.name} engine cannot run this model: {why}.") from error
    for i, answer in enumerate(expected):
        if not _agrees(answer.logits, tokens[i]):
            raise StartFailed(
                f"The {engine.name} engine computes other tokens than the model by itself, so it would answer wrongly: "
                "this architecture does not work with transformers' continuous batching."
            )


def _agrees(logits: Tensor, tokens: list[int]) -> bool:
    """Whether these are the greedy tokens up to rounding; beyond the first that differs there is nothing to compare."""
    for row, token in zip(logits, tokens, strict=True):
        if row[token] < row.max() - TOLERANCE * row.std():
            return False
        if token != int(row.argmax()):
            return True
    return True
