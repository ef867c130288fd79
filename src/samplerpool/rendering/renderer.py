"""From messages to a prompt's token ids, with special tokens kept out of what users wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.rendering.conversion import TemplateInput, template_input
from samplerpool.rendering.escaping import Neutralizer
from samplerpool.rendering.parsing import parse_message
from samplerpool.rendering.templates import CHATML_MARKERS, CHATML_TEMPLATE, choose_template, template_for
from samplerpool.rendering.tokens import TokenizerCodec
from samplerpool.types import Message, ModelInput

RESERVED_OPTIONS: frozenset[str] = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""What the renderer itself decides, so that no caller may pass it on to the template."""

IGNORED_LABEL = -100


class Renderer:
    """Renders messages with a model's chat template. Safe to use from several threads.

    Args:
        processor: a transformers tokenizer, or a processor that has one.
        template: name of a built-in template (``chatml``) to use instead of the model's own.
        custom_chat_template: Jinja text, or a path to it; goes before every other template.
        eos_token_ids: that end an answer, besides the tokenizer's own.

    Raises:
        InvalidParameter: an unknown or broken template.
    """

    def __init__(
        self,
        processor: Any,
        *,
        template: str | None = None,
        custom_chat_template: str | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._template = choose_template(processor, self._tokenizer, template, custom_chat_template)
        codec = TokenizerCodec(self._tokenizer, eos_token_ids)
        markers: tuple[str, ...] = ()
        if self._template == CHATML_TEMPLATE:
            # Structure to the model even where the tokenizer does not know them as special tokens.
            markers = CHATML_MARKERS
            turn_end = codec.token_id(CHATML_MARKERS[1])
            codec.eos_token_ids |= frozenset() if turn_end is None else {turn_end}
        self.codec = codec
        self._neutralizer = Neutralizer(codec.special_tokens | set(markers))
        self._compile()

    def prompt_ids(
        self, messages: Sequence[Message], tools: str | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[int, ...]:
        """Token ids of the rendered prompt, with the generation prompt at its end.

        Args:
            messages: in the v1 form.
            tools: JSON text of a list of tools, or of a single one.
            options: further variables of the template (``enable_thinking``, ...).

        Raises:
            RenderError: says which message (counted from 1) is wrong, and how.
        """
        options = options or {}
        if taken := RESERVED_OPTIONS.intersection(options):
            raise RenderError(f"The template option {sorted(taken)[0]!r} cannot be set; the renderer decides it.")
        guard = _Neutralize(self._neutralizer)
        safe = template_input(messages, tools, options, guard)
        ids = self.codec.encode(self._render(safe))
        if not ids:
            raise RenderError("The chat template made an empty prompt of these messages.")
        self._verify_each(guard)
        if guard.may_join:
            self._verify_boundaries(ids, template_input(messages, tools, options, _Isolate(self._neutralizer)))
        return tuple(ids)

    def render_messages(
        self, messages: Sequence[Message], tools: str | None = None, is_generate: bool = True, **options: Any
    ) -> ModelInput:
        """A prompt as a model's input: nothing is masked, and nothing is to be learned from it.

        Raises:
            RenderError: as for ``prompt_ids``; also for the training form, ``is_generate=False``.
        """
        if not is_generate:
            raise RenderError("This renderer makes prompts for generation only; call it with is_generate=True.")
        ids = list(self.prompt_ids(messages, tools, options))
        return {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [IGNORED_LABEL] * len(ids),
            "loss_weights": [0.0] * len(ids),
        }

    def parse_message(self, text: str) -> Message:
        """The assistant's turn in the v1 form. Never loses text."""
        return parse_message(text)

    def _render(self, safe: TemplateInput) -> str:
        try:
            # transformers keeps the compiled template by its text.
            return str(
                self._tokenizer.apply_chat_template(
                    safe.messages,
                    tools=safe.tools,
                    chat_template=template_for(self._template, tools=safe.tools is not None),
                    add_generation_prompt=True,
                    tokenize=False,
                    **safe.options,
                )
            )
        except InvalidParameter as error:
            raise RenderError(error.message) from error
        except Exception as error:  # a template is foreign code and may raise anything
            raise RenderError(f"The chat template refused these messages: {_one_line(error)}") from error

    def _verify_each(self, guard: _Neutralize) -> None:
        """No text of the user's, taken alone, holds a special token (a tokenizer's normalizer may restore one)."""
        for place, texts in guard.texts.items():
            for text in texts:
                if not self.codec.special_ids.isdisjoint(self.codec.encode(text)):
                    raise RenderError(f"A special token of this model was written in {place}; take it out.")

    def _verify_boundaries(self, ids: Sequence[int], isolated: TemplateInput) -> None:
        """No special token arises where a text of the user's meets the template's own text.

        The same messages, cut up so that no special token can have a part in them, must give the same special tokens.
        """
        if self._special_sequence(ids) != self._special_sequence(self.codec.encode(self._render(isolated))):
            raise RenderError("A text in the messages forms a special token together with the template around it.")

    def _special_sequence(self, ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self.codec.special_ids]

    def _compile(self) -> None:
        """Compile the template now, so that a broken one is found at the start and the first request is quick."""
        probe = TemplateInput([{"role": "user", "content": "Hello"}], None, {})
        try:
            self._render(probe)
        except RenderError as error:
            if type(error.__cause__).__name__ == "TemplateSyntaxError":
                raise InvalidParameter(f"The chat template is not valid Jinja: {_one_line(error.__cause__)}") from error


class _Neutralize:
    """Breaks special tokens in every string that passes, and remembers the strings for the checks afterwards."""

    def __init__(self, neutralizer: Neutralizer) -> None:
        self._neutralizer = neutralizer
        self.texts: dict[str, set[str]] = {}
        self.may_join = False

    def message_text(self, place: str, text: str) -> str:
        return self._safe(place, text, inside=True)

    def structure_text(self, place: str, text: str, *, key: bool) -> str:
        return self._safe(place, text, inside=False)

    def _safe(self, place: str, text: str, *, inside: bool) -> str:
        if not text:
            return text
        if not text.isascii():
            _check_unicode(place, text)
        safe = self._neutralizer.text(text)
        self.texts.setdefault(place, set()).add(safe)
        self.may_join = self.may_join or self._neutralizer.may_join(safe, inside=inside)
        return safe


class _Isolate:
    """Cuts up the strings that might join with the template's text; leaves the others and the keys as they are."""

    def __init__(self, neutralizer: Neutralizer) -> None:
        self._neutralizer = neutralizer

    def message_text(self, place: str, text: str) -> str:
        return self._cut(text, inside=True)

    def structure_text(self, place: str, text: str, *, key: bool) -> str:
        # A template looks up keys by name, so a changed key would change what it renders.
        return self._neutralizer.text(text) if key else self._cut(text, inside=False)

    def _cut(self, text: str, *, inside: bool) -> str:
        safe = self._neutralizer.text(text)
        return self._neutralizer.isolate(safe) if self._neutralizer.may_join(safe, inside=inside) else safe


def _check_unicode(place: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RenderError(f"There is half a character (a lone surrogate) in {place}, at {error.start}.") from error


def _one_line(error: BaseException | None, limit: int = 300) -> str:
    return " ".join(f"{error}".split())[:limit] or type(error).__name__
