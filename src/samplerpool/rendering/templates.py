"""Which chat template is used, and how it is run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.rendering.chatml import CHATML
from samplerpool.rendering.conversion import TemplateInput
from samplerpool.rendering.plugins import RenderingPlugin
from samplerpool.rendering.stopped_clock import PARTS, asks_for_date, parts, with_macro

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How a model is talked to.

    Args:
        template: Jinja text, or several by name (``default``, ``tool_use``); ``None``: the plugin renders itself.
        plugin: what goes with it; one that says nothing, where the template is the model's own.
    """

    template: str | Mapping[str, str] | None
    plugin: RenderingPlugin


def choose_template(processor: Any, tokenizer: Any, plugin: RenderingPlugin | None, custom: str | None) -> Choice:
    """The custom template, the plugin's way, the processor's own template, the tokenizer's, or ChatML.

    Raises:
        InvalidParameter: a custom template that is neither Jinja text nor a readable file.
    """
    used = plugin or RenderingPlugin()
    if custom is not None:
        return Choice(_custom_template(custom), used)
    if used.render_messages is not None or used.chat_template is not None:
        return Choice(used.chat_template, used)
    for source in (processor, tokenizer):
        if own := getattr(source, "chat_template", None):
            return Choice(dict(own) if isinstance(own, Mapping) else str(own), used)
    if plugin is None:
        return Choice(CHATML.chat_template, CHATML)
    return Choice(CHATML.chat_template, replace(CHATML, tags=plugin.tags, parse_message=plugin.parse_message))


class ChatTemplate:
    """Runs a model's chat template.

    Args:
        tokenizer: a transformers tokenizer, whose special tokens the template may use.
        template: Jinja text, or several by name.

    Raises:
        InvalidParameter: it is not valid Jinja.
    """

    def __init__(self, tokenizer: Any, template: str | Mapping[str, str]) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._compile()

    def text(self, given: TemplateInput, *, generate: bool) -> str:
        """The text of a conversation.

        Args:
            generate: with the beginning of the answer at its end.

        Raises:
            RenderError: the template refuses these messages.
        """
        try:
            template, options = self._text_for(tools=given.tools is not None), given.options
            if given.now is not None and asks_for_date(template):
                template, options = with_macro(template), {**options, PARTS: parts(template, given.now)}
            # transformers keeps the compiled template by its text.
            return str(
                self._tokenizer.apply_chat_template(
                    given.messages,
                    tools=given.tools,
                    chat_template=template,
                    add_generation_prompt=generate,
                    tokenize=False,
                    **options,
                )
            )
        except InvalidParameter as error:
            raise RenderError(error.message) from error
        except Exception as error:  # a template is foreign code and may raise anything
            raise RenderError(f"The chat template refused these messages: {one_line(error)}") from error

    def takes_parts(self) -> bool:
        """Whether it looks into a ``content`` that is a list of parts, as those with media are, or writes that list
        down as it stands, or refuses it."""
        word = "samplerpool"
        probe = TemplateInput([{"role": "user", "content": [{"type": "text", "text": word}]}], None, {})
        try:
            text = self.text(probe, generate=True)
        except RenderError:
            return False
        return word in text and "'text'" not in text and '"text"' not in text

    def _text_for(self, *, tools: bool) -> str:
        """The one text to render with; among several, the one made for tools if there are any."""
        if isinstance(self._template, str):
            return self._template
        if tools and "tool_use" in self._template:
            return self._template["tool_use"]
        if "default" not in self._template:
            names = ", ".join(sorted(self._template))
            raise InvalidParameter(
                f"The model has several chat templates ({names}) and no default; give custom_chat_template."
            )
        return self._template["default"]

    def _compile(self) -> None:
        """Compile the template now, so that a broken one is found at the start and the first request is quick."""
        probe = TemplateInput([{"role": "user", "content": "Hello"}], None, {})
        try:
            self.text(probe, generate=True)
        except RenderError as error:
            if type(error.__cause__).__name__ == "TemplateSyntaxError":
                raise InvalidParameter(f"The chat template is not valid Jinja: {one_line(error.__cause__)}") from error


class Overlooked:
    """Says, once of each, what a chat template was given and does not write: tools, and the reasoning of an answer that
    is to be learned. (That of earlier turns is left out by good templates.)

    Args:
        template: which is meant.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._looked_for: set[str] = set()

    def look(self, given: TemplateInput, *, generate: bool) -> None:
        """Render once more without them, the first time that there are some."""
        if given.tools:
            self._compare("tools", given, replace(given, tools=None), generate)
        if not generate and given.messages[-1].get("reasoning_content"):
            answer = {name: value for name, value in given.messages[-1].items() if name != "reasoning_content"}
            self._compare("reasoning", given, replace(given, messages=[*given.messages[:-1], answer]), generate)

    def _compare(self, what: str, given: TemplateInput, without: TemplateInput, generate: bool) -> None:
        if what in self._looked_for:
            return
        self._looked_for.add(what)
        try:
            same = self._template.text(given, generate=generate) == self._template.text(without, generate=generate)
        except RenderError:  # it insists on them
            return
        if same:
            log.warning(
                "the chat template does not write %s, so the model sees none; give another one (custom_chat_template, "
                "template) if it should",
                what,
            )


def one_line(error: BaseException | None, limit: int = 300) -> str:
    """What an error says, on one line."""
    return " ".join(f"{error}".split())[:limit] or type(error).__name__


def _custom_template(custom: str) -> str:
    if "{%" in custom or "{{" in custom:
        return custom
    try:
        return Path(custom).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameter(
            f"custom_chat_template is neither Jinja text nor a file that can be read: {custom!r} ({reason})."
        ) from error
