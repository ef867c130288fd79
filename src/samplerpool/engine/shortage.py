"""Steps that run out of memory: how they are told from other failures, and what is said of them."""

from __future__ import annotations

import gc

import torch

from samplerpool.engine.budget import StepBudget
from samplerpool.errors import EngineError


def shortage_of_memory(error: Exception) -> str | None:
    """The first line of what an error says, if that is that there is no memory; torch says it in several ways."""
    text = str(error).partition("\n")[0][:200]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return text or type(error).__name__
    if isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text):
        return text
    return None


def sentence(tokens: int, rows: int, shortage: str, budget: StepBudget) -> str:
    """For the log, after the budget was lowered.

    Args:
        tokens, rows: of the step that failed, and how many were running.
        shortage: what torch said.
    """
    return (
        f"a step of {tokens} tokens, with {rows} requests running, ran out of memory ({shortage}); from now on at most "
        f"{budget.tokens} tokens and {budget.rows} requests"
    )


def too_large(shortage: str, length: int) -> EngineError:
    """The end of a request that does not fit by itself.

    Args:
        shortage: what torch said.
        length: tokens of the request so far, which are the error's data.
    """
    return EngineError(
        f"The request does not fit into the device's memory by itself: computing some of its {length:,} tokens ran out "
        f"of memory ({shortage}). Shorten it, or give the cache less with --engine-option cache_gib=N.",
        tokens=length,
    )


def give_back(device: torch.device) -> None:
    """Return what a failed step has left to the device, for the next one to find room in one piece."""
    if device.type == "cuda":
        gc.collect()  # a failed step's frames may refer to each other
        torch.cuda.empty_cache()
