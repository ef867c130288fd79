"""Whole data sets, rendered in both forms and compared, token for token, with what the tokenizer's own
``apply_chat_template`` makes of the same conversations.

``python -m tests.rendered_files MODEL FILE...`` does so with any model's tokenizer and any files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samplerpool import DataEngine, Renderer


@dataclass
class Compared:
    """What was compared: samples, conversations (two in a pair), and tokens of the training form."""

    samples: int = 0
    conversations: int = 0
    tokens: int = 0


def converted(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the v1 form in the form of chat templates."""
    parts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for block in message["content"]:
        parts[block["type"]].append(block["value"])
    made: dict[str, Any] = {"role": message["role"], "content": "".join(parts["text"])}
    if parts["reasoning"]:
        made["reasoning_content"] = "".join(parts["reasoning"])
    if parts["tool_call"]:
        made["tool_calls"] = [{"type": "function", "function": json.loads(value)} for value in parts["tool_call"]]
    return made


def compare(path: Path, renderer: Renderer, chat_template: str | None = None) -> Compared:
    """Render every sample of a file in both forms.

    Args:
        chat_template: what the renderer uses, if it is not the tokenizer's own.

    Raises:
        AssertionError: some tokens, labels or positions differ.
    """
    done = Compared()
    for sample in DataEngine(path, form="training"):
        names = ("chosen_messages", "rejected_messages") if "chosen_messages" in sample else ("messages",)
        wanted = [_compare_one(sample[name], sample.get("tools"), renderer, chat_template) for name in names]
        (made,) = renderer.process_samples([sample])
        assert made["input_ids"] == [token for ids in wanted for token in ids]
        assert made["position_ids"] == [place for ids in wanted for place in range(1, len(ids) + 1)]
        if len(wanted) == 2:
            assert made["token_type_ids"] == [1] * len(wanted[0]) + [2] * len(wanted[1])
        done.samples += 1
        done.conversations += len(wanted)
        done.tokens += len(made["input_ids"])
    return done


def _compare_one(
    messages: Sequence[Any], tools: str | None, renderer: Renderer, chat_template: str | None
) -> list[int]:
    """One conversation that ends with an answer; returns the tokens of its training form."""
    conversation = [converted(message) for message in messages]
    thinks = "reasoning_content" in conversation[-1]

    def theirs(turns: Sequence[Any], **options: Any) -> list[int]:
        ids: list[int] = renderer.processor.apply_chat_template(
            turns,
            tools=json.loads(tools) if tools else None,
            chat_template=chat_template,
            return_dict=False,
            **options,
        )
        return ids

    prompt = theirs(conversation[:-1], add_generation_prompt=True)
    generating = renderer.render_messages(messages[:-1], tools, is_generate=True)
    assert generating["input_ids"] == prompt
    assert set(generating["labels"]) == {-100}
    assert set(generating["attention_mask"]) == {1}

    whole = theirs(conversation, enable_thinking=thinks)
    opening = theirs(conversation[:-1], add_generation_prompt=True, enable_thinking=thinks)
    training = renderer.render_messages(messages, tools)
    assert training["input_ids"] == whole
    assert training["labels"] == [-100] * len(opening) + whole[len(opening) :]
    weight = messages[-1].get("loss_weight", 1.0)
    assert training["loss_weights"] == [0.0] * len(opening) + [weight] * (len(whole) - len(opening))
    return whole


def main(model: str, *files: str) -> None:
    """Compare files with the tokenizer's own template, and with ChatML."""
    from transformers import AutoTokenizer

    from samplerpool.rendering.plugins import rendering_plugin

    tokenizer = AutoTokenizer.from_pretrained(model)
    for template in (None, "chatml"):
        text = rendering_plugin(template).chat_template if template else None
        for file in files:
            print(
                template or "its own",
                Path(file).name,
                compare(Path(file), Renderer(tokenizer, template=template), text),
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
