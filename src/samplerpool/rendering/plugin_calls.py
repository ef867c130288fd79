"""Calling what a rendering plugin brings. That is foreign code, which may raise and return anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samplerpool.errors import RenderError, SamplerPoolError
from samplerpool.rendering.conversion import TemplateInput, v1_form
from samplerpool.rendering.model_inputs import generation_input
from samplerpool.rendering.parsing import assistant_message
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.templates import one_line
from samplerpool.types import CONTENT_TYPES, Content, Message, ModelInput

_LISTS = ("attention_mask", "labels", "loss_weights")


def call_plugin(plugin: RenderingPlugin, processor: Any, safe: TemplateInput, *, is_generate: bool) -> ModelInput:
    """What the plugin's ``render_messages`` makes of these messages.

    Raises:
        RenderError: it raised, or returned something else than a ``ModelInput``.
    """
    messages, tools = v1_form(safe)
    assert plugin.render_messages is not None
    try:
        made: Any = plugin.render_messages(processor, messages, tools, is_generate, **safe.options)
    except SamplerPoolError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise RenderError(f"The rendering plugin refused these messages: {what}") from error
    ids = made.get("input_ids") if isinstance(made, Mapping) else None
    if not isinstance(ids, list | tuple) or not all(isinstance(token_id, int) for token_id in ids):
        raise RenderError(
            f"The rendering plugin must return a mapping with input_ids, a list of ints, not {made!r:.80}."
        )
    if is_generate:
        return generation_input(ids)
    for name in _LISTS:
        values = made.get(name)
        if not isinstance(values, list | tuple) or len(values) != len(ids):
            raise RenderError(f"The rendering plugin must return {name} for training, a list of {len(ids)} numbers.")
    return {
        "input_ids": list(ids),
        "attention_mask": list(made["attention_mask"]),
        "labels": list(made["labels"]),
        "loss_weights": list(made["loss_weights"]),
    }


def parsed_by_plugin(parse: Callable[[str], Message], text: str) -> Message:
    """What a plugin's ``parse_message`` makes of an answer.

    Raises:
        Exception: it raised, or returned something else than an assistant's message.
    """
    message: Any = parse(text)
    if not isinstance(message, Mapping) or message.get("role") != "assistant":
        raise ValueError(f"the plugin returned no assistant's message, but {message!r:.80}")
    problem = message.get("parse_error")
    if problem is not None and not isinstance(problem, str):
        raise ValueError(f"the plugin returned a parse_error that is no text, but {problem!r:.80}")
    return assistant_message([_block(block) for block in message["content"]], problem)


def _block(block: Any) -> Content:
    if block["type"] not in CONTENT_TYPES or not isinstance(block["value"], str):
        raise ValueError(f"the plugin returned a block that is none, {block!r:.80}")
    return {"type": block["type"], "value": block["value"]}
