"""Token ids with what a trainer needs beside them: masks, labels, weights, positions. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samplerpool.errors import RenderError
from samplerpool.types import Message, ModelInput

IGNORED_LABEL = -100

CHOSEN, REJECTED = 1, 2
"""Token types of a preference pair's two answers."""


def generation_input(ids: Sequence[int]) -> ModelInput:
    """A prompt: nothing is masked, and nothing is to be learned from it."""
    return {
        "input_ids": list(ids),
        "attention_mask": [1] * len(ids),
        "labels": [IGNORED_LABEL] * len(ids),
        "loss_weights": [0.0] * len(ids),
    }


def training_input(prompt: Sequence[int], whole: Sequence[int], weight: float) -> ModelInput:
    """A conversation whose last turn, what follows the prompt, is to be learned with this weight.

    Raises:
        RenderError: the conversation does not begin with the prompt, so nobody can say where the answer begins.
    """
    begin = len(prompt)
    if list(whole[:begin]) != list(prompt):
        same = next((i for i, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), len(whole))
        raise RenderError(
            f"The prompt's {begin} tokens are not the first ones of the whole conversation (they differ from token "
            f"{same + 1} on), so what is to be learned cannot be told apart. Either the chat template writes the turns "
            "before the answer differently when the answer follows, or the tokenizer joins the end of the prompt with "
            "the beginning of the answer. Use another template."
        )
    answer = list(whole[begin:])
    return {
        "input_ids": list(whole),
        "attention_mask": [1] * len(whole),
        "labels": [IGNORED_LABEL] * begin + (answer if weight else [IGNORED_LABEL] * len(answer)),
        "loss_weights": [0.0] * begin + [weight] * len(answer),
    }


def last_turn(messages: Sequence[Any]) -> tuple[float, bool]:
    """How much the last turn, which must be an answer, counts in training, and whether it holds reasoning.

    Raises:
        RenderError: it is not the assistant's, it is alone, or its weight is no number from 0.
    """
    if not isinstance(messages, Sequence) or not messages or not isinstance(messages[-1], Mapping):
        return 1.0, False  # what is wrong with them is said where they are converted
    role, number = messages[-1].get("role"), len(messages)
    if role != "assistant":
        raise RenderError(
            f"For training, the last message must be the assistant's answer; message {number} is the {role}'s. "
            "Use is_generate=True for a prompt that is still to be answered."
        )
    if number == 1:
        raise RenderError("There is nothing before the assistant's answer; for training, give the conversation too.")
    weight = messages[-1].get("loss_weight")
    if weight is None:
        weight = 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise RenderError(f"The loss_weight of message {number} must be a number from 0, not {weight!r}.")
    content = messages[-1].get("content")
    blocks = content if isinstance(content, list | tuple) else ()
    reasoning = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "reasoning"]
    return float(weight), any(block.get("value") for block in reasoning)


def sample_input(sample: Any, number: int, render: Callable[[Sequence[Message], str | None], ModelInput]) -> ModelInput:
    """One sample, ready for training.

    Args:
        number: its place among the samples, counted from 1, for the sentence of an error.
        render: makes the training form of a conversation.

    Raises:
        RenderError: names the sample, and says what is wrong with it.
    """
    given = {name for name in _CONVERSATIONS if _has(sample, name)}
    if given == {"messages"}:
        made = _numbered(_rendered(sample, "messages", number, render))
    elif given == {"chosen_messages", "rejected_messages"}:
        made = _joined(*(_rendered(sample, name, number, render) for name in _CONVERSATIONS[1:]))
    else:
        what = " and ".join(sorted(given)) or "neither"
        raise RenderError(
            f"Sample {number} must have either messages, or chosen_messages and rejected_messages; it has {what}."
        )
    for name in ("extra_info", "_dataset_name"):
        if name in sample:
            made[name] = sample[name]
    return made


_CONVERSATIONS = ("messages", "chosen_messages", "rejected_messages")


def _has(sample: Any, name: str) -> bool:
    # Tables fill the columns that a row does not have with nothing.
    return isinstance(sample, Mapping) and sample.get(name) is not None


def _rendered(
    sample: Mapping[str, Any], name: str, number: int, render: Callable[[Sequence[Message], str | None], ModelInput]
) -> ModelInput:
    try:
        return render(sample[name], sample.get("tools"))
    except RenderError as error:
        raise RenderError(f"Sample {number}, {name}: {error.message}", **error.data) from error


def _numbered(made: ModelInput) -> ModelInput:
    made["position_ids"] = list(range(1, len(made["input_ids"]) + 1))
    return made


def _joined(chosen: ModelInput, rejected: ModelInput) -> ModelInput:
    """Two answers in one sequence. They are sequences of their own, so positions begin anew."""
    first, second = _numbered(chosen), _numbered(rejected)
    return {
        "input_ids": first["input_ids"] + second["input_ids"],
        "attention_mask": first["attention_mask"] + second["attention_mask"],
        "labels": first["labels"] + second["labels"],
        "loss_weights": first["loss_weights"] + second["loss_weights"],
        "position_ids": first["position_ids"] + second["position_ids"],
        "token_type_ids": [CHOSEN] * len(first["input_ids"]) + [REJECTED] * len(second["input_ids"]),
    }
