"""From an answered row to the row that is written, and the seed of each answer. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.data.rows import Row
from samplerpool.errors import SamplerPoolError
from samplerpool.types import FinishReason, Generation, Message, PromptCount, TokenLogprobs

SEED_BYTES = 6


@dataclass(slots=True)
class Answer:
    """What a model answered; or, where the prompt was only to be counted, the ``count``, and nothing else."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int
    message: Message | None
    logprobs: Sequence[TokenLogprobs] | None = None
    count: PromptCount | None = None


@dataclass(slots=True)
class RowResult:
    """The end of one sample of a row: an answer or an error.

    Args:
        transient: the error says nothing of the row, which may be tried again another time.
    """

    row: Row
    sample: int
    seed: int | None
    answer: Answer | None = None
    error: SamplerPoolError | None = None
    transient: bool = False


def row_seed(run_seed: int, index: int, sample: int) -> int:
    """The seed of one answer. It depends on the run's seed and the row's place alone, so it is the same whichever
    worker answers, however often it was tried, and in a run that is resumed."""
    digest = hashlib.blake2b(f"{run_seed}/{index}/{sample}".encode(), digest_size=SEED_BYTES).digest()
    return int.from_bytes(digest, "big")


def output_row(result: RowResult, samples: int = 1) -> dict[str, Any]:
    """The output row: own columns, ``messages`` with the answer, ``reference`` where there was one, ``generation``.

    It depends on the input and the run's seed alone: not on the worker, on other rows, or on failed attempts.

    Args:
        samples: answers per row; above 1, ``generation`` tells which one this is.
    """
    row = result.row
    columns = dict(row.columns)
    if row.messages:
        columns["messages"] = [*row.messages, _answer_turn(result)] if result.answer else row.messages
    if row.reference is not None:
        columns["reference"] = row.reference
    columns["generation"] = _generation(result, samples)
    return columns


def _answer_turn(result: RowResult) -> Message:
    assert result.answer is not None
    message = result.answer.message
    if message is None:
        return {"role": "assistant", "content": [{"type": "text", "value": result.answer.text}]}
    return {"role": message["role"], "content": message["content"]}  # a parse_error is the row's


def _generation(result: RowResult, samples: int) -> Generation:
    answer, error = result.answer, result.error
    generation: Generation = {
        "index": result.row.index,
        "text": answer.text if answer else "",
        "finish_reason": answer.finish_reason if answer else "error",
        "prompt_tokens": answer.prompt_tokens if answer else 0,
        "completion_tokens": answer.completion_tokens if answer else 0,
        "seed": answer.seed if answer else result.seed,
        "error": error_text(error) if error else None,
    }
    if answer and answer.message and "parse_error" in answer.message:
        generation["parse_error"] = answer.message["parse_error"]
    if samples > 1:
        generation["sample"] = result.sample
    if answer and answer.logprobs is not None:
        generation["logprobs"] = [entry._asdict() for entry in answer.logprobs]
    return generation


def error_text(error: SamplerPoolError) -> str:
    """Class and sentence, as a row shows them."""
    return f"{type(error).__name__}: {error.message}"
