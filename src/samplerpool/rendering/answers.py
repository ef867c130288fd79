"""Which way answers are parsed, and what happens when that way fails."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from samplerpool.rendering.parsing import inside_reasoning, parse_message
from samplerpool.rendering.plugin_calls import parsed_by_plugin
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.responses import ResponseReader
from samplerpool.rendering.templates import one_line
from samplerpool.rendering.tokens import TokenizerCodec
from samplerpool.types import Message

TAIL = 32
"""Tokens at a prompt's end among which an opening tag of reasoning can be."""
TURN_BEGINNING = 256
"""Tokens at a prompt's end among which the answer's turn begins, as a rule."""

log = logging.getLogger(__name__)


class AnswerParser:
    """Parses answers: the plugin's own way, else the tokenizer's response template, else by tags.

    Args:
        plugin: of the renderer.
        tokenizer: of transformers.
        codec: decodes its tokens.

    Attributes:
        needs_special_tokens: answers must come with their special tokens, because some of them are what is looked for.
        tags: around reasoning (``think``) and tool calls (``tool_call``), as far as there are some that show in an
            answer's text: none that are special tokens.
        hidden_tags: the kinds (``think``, ``tool_call``) that answers have without such tags: they are special tokens,
            or no single text.
    """

    def __init__(self, plugin: RenderingPlugin, tokenizer: Any, codec: TokenizerCodec) -> None:
        self._plugin = plugin
        self._codec = codec
        self._responses = _response_reader(tokenizer) if plugin.parse_message is None else None
        special_tags = codec.special_tokens.intersection((*plugin.tags.think, *plugin.tags.tool_call))
        self._written = _written_tags(plugin, self._responses)
        self.tags = {kind: pair for kind, pair in self._written.items() if codec.special_tokens.isdisjoint(pair)}
        kinds = self._responses.kinds() if self._responses else self._written
        self.hidden_tags = tuple(kind for kind in kinds if kind not in self.tags)
        self.needs_special_tokens = plugin.parse_message is None and bool(self._responses or special_tags)

    def message(self, text: str, prompt_ids: Sequence[int]) -> Message:
        """The answer in the v1 form. Never raises, and never loses text."""
        try:
            if self._plugin.parse_message is not None:
                return parsed_by_plugin(self._plugin.parse_message, text)
            if self._responses is not None:
                return self._responses.message(text, self._turn_beginning(self._responses, prompt_ids))
        except Exception as error:  # foreign code and foreign patterns: the answer is more than its parts
            message = self._by_tags(text, prompt_ids)
            message["parse_error"] = f"The answer could not be parsed ({one_line(error)}); it was read by its tags."
            return message
        return self._by_tags(text, prompt_ids)

    def reasoning_open(self, prompt_ids: Sequence[int], prefill: str) -> bool:
        """Whether an answer to this prompt, which begins with ``prefill``, goes on inside its reasoning."""
        if (think := self._written.get("think")) is None:
            return False
        return inside_reasoning(prefill, think, is_open=self._ends_with(prompt_ids, think[0]))

    def _ends_with(self, prompt_ids: Sequence[int], tag: str) -> bool:
        return self._text_of(prompt_ids[-TAIL:]).rstrip().endswith(tag)

    def _by_tags(self, text: str, prompt_ids: Sequence[int]) -> Message:
        tags = self._plugin.tags
        return parse_message(text, tags, reasoning_is_open=self._ends_with(prompt_ids, tags.think[0]))

    def _turn_beginning(self, responses: ResponseReader, prompt_ids: Sequence[int]) -> str:
        end = self._text_of(prompt_ids[-TURN_BEGINNING:])
        return end if responses.begins_in(end) else self._text_of(prompt_ids)

    def _text_of(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode(token_ids, skip_special_tokens=False)


def _written_tags(plugin: RenderingPlugin, responses: ResponseReader | None) -> dict[str, tuple[str, str]]:
    """The tags that the model writes, special tokens or not."""
    if responses is not None:
        return responses.tags()
    return {"think": plugin.tags.think, "tool_call": plugin.tags.tool_call}


def _response_reader(tokenizer: Any) -> ResponseReader | None:
    if not getattr(tokenizer, "response_template", None) or not hasattr(tokenizer, "get_response_parser"):
        return None
    try:
        return ResponseReader(tokenizer)
    except Exception as error:
        log.warning("the tokenizer's response template is not used: %s", one_line(error))
        return None
