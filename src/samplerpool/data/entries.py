"""What a sample is asked for: to be answered, or to be learned from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from samplerpool.data.messages import split_reference
from samplerpool.errors import BadRow
from samplerpool.types import Message, Sample

Form = Literal["whole", "inference", "training"]
FORMS: tuple[Form, ...] = ("whole", "inference", "training")

_PAIR = ("chosen_messages", "rejected_messages")


def to_answer(sample: Sample) -> tuple[list[Message], Message | None]:
    """The conversation to answer, and the reference or None: the assistant's turn that the sample ended with, which
    must not reach the model. Of a preference pair it is what the two have in common, and the chosen answer.

    Raises:
        BadRow, RenderError: nothing is left to answer; a pair whose conversations differ before their last turns.
    """
    if "messages" in sample:
        return split_reference(sample["messages"])
    chosen, rejected = sample["chosen_messages"], sample["rejected_messages"]
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("the two conversations of this preference pair differ before their last turns.")
    return split_reference(chosen)


def inference_entry(sample: Sample) -> Sample:
    """The sample as it goes to a model: ``messages`` to answer, and ``reference`` where there was one."""
    messages, reference = to_answer(sample)
    entry = {name: value for name, value in sample.items() if name not in _PAIR}
    entry["messages"] = messages
    if reference is not None:
        entry["reference"] = reference
    return cast(Sample, entry)


def is_failed_answer(columns: Mapping[str, Any]) -> bool:
    """Whether a row is one of a batch's output that carries an error: there is nothing to be learned from it."""
    generation = columns.get("generation")
    return isinstance(generation, Mapping) and generation.get("error") is not None


def training_entries(sample: Sample) -> list[Sample]:
    """One entry for each supervised turn of the assistant's, which it ends with; a preference pair is one entry.

    A turn whose ``loss_weight`` is 0 is not supervised.

    Raises:
        BadRow: there is no turn of the assistant's at all, or a pair does not end with one.
    """
    if "messages" not in sample:
        for name in _PAIR:
            if sample[name][-1]["role"] != "assistant":  # type: ignore[literal-required]
                raise BadRow(f"{name} must end with the assistant's answer to be trained on.")
        return [sample]
    messages = sample["messages"]
    answers = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers:
        raise BadRow("messages: there is no turn of the assistant's to train on.")
    supervised = [place for place in answers if messages[place].get("loss_weight", 1.0) > 0]
    return [{**sample, "messages": messages[: place + 1]} for place in supervised]
