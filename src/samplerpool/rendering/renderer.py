"""From messages to a prompt's token ids, with special tokens kept out of what users wrote, and from answers back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.rendering.answers import AnswerParser
from samplerpool.rendering.conversion import KIND_OF, TemplateInput, template_input
from samplerpool.rendering.escaping import Neutralizer
from samplerpool.rendering.guard import Isolate, Neutralize
from samplerpool.rendering.media import MediaBlock, MediaInputs, MediaProcessor, media_kinds
from samplerpool.rendering.model_inputs import generation_input, last_turn, sample_input, training_input
from samplerpool.rendering.plugin_calls import call_plugin
from samplerpool.rendering.plugins import RenderingPlugin, rendering_plugin
from samplerpool.rendering.templates import ChatTemplate, Overlooked, choose_template
from samplerpool.rendering.tokens import TokenizerCodec
from samplerpool.types import Message, ModelInput, Sample

RESERVED_OPTIONS: frozenset[str] = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "is_generate",
        "max_length",
        "messages",
        "padding",
        "processor",
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


class Renderer:
    """Renders messages with a model's chat template, and parses its answers. Safe to use from several threads.

    Of several chat templates the first of these is used: ``custom_chat_template``, the plugin's, the processor's own,
    the tokenizer's, ChatML.

    Args:
        processor: a transformers tokenizer, or a processor that has one. A processor for images, videos or sounds
            takes blocks of these too, if the chat template has a place for them.
        template: a rendering plugin, or the name of one (``chatml``, ``qwen3``, ``qwen3_nothink``, a registered or
            installed one, ``module:attribute``).
        custom_chat_template: Jinja text, or a path to it.
        eos_token_ids: that end an answer, besides the tokenizer's own.

    Raises:
        InvalidParameter: no tokenizer, an unknown plugin, or a template that does not work.
    """

    def __init__(
        self,
        processor: Any,
        *,
        template: str | RenderingPlugin | None = None,
        custom_chat_template: str | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.processor = processor
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "apply_chat_template"):
            raise InvalidParameter(
                "A Renderer needs a transformers tokenizer, such as AutoTokenizer.from_pretrained(...), or a processor "
                f"that has one, not {type(processor).__name__}."
            )
        plugin = rendering_plugin(template) if isinstance(template, str) else template
        choice = choose_template(processor, tokenizer, plugin, custom_chat_template)
        self._plugin = choice.plugin
        codec = TokenizerCodec(tokenizer, eos_token_ids)
        turn_end = codec.token_id(self._plugin.turn_end or "")
        codec.eos_token_ids |= frozenset() if turn_end is None else {turn_end}
        self.codec = codec
        # Markers are structure to the model even where the tokenizer does not know them as special tokens.
        self._template = None if choice.template is None else ChatTemplate(tokenizer, choice.template)
        self._overlooked = None if self._template is None else Overlooked(self._template)
        self._media = MediaProcessor(processor) if self._takes_media() else None
        placeholders = self._media.placeholders() if self._media else frozenset()
        self._neutralizer = Neutralizer(codec.special_tokens | set(self._plugin.markers) | placeholders)
        self._parser = AnswerParser(self._plugin, tokenizer, codec)

    def prompt_ids(
        self, messages: Sequence[Message], tools: str | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[int, ...]:
        """Token ids of the rendered prompt, with the beginning of the answer at its end.

        Args:
            messages: in the v1 form.
            tools: JSON text of a list of tools, or of a single one.
            options: further variables of the template (``enable_thinking``, ...).

        Returns:
            As many ids as the prompt has tokens.

        Raises:
            RenderError: says which message (counted from 1) is wrong, and how.
        """
        options = options or {}
        if not self._plugin.thinking and options.get("enable_thinking"):
            raise RenderError("This template has no thinking to enable; leave enable_thinking out.")
        made, safe = self._rendered(messages, tools, options, is_generate=True)
        _refuse_media(safe)
        return tuple(made["input_ids"])

    def escaped(
        self, messages: Sequence[Message], tools: str | None = None, options: Mapping[str, Any] | None = None
    ) -> list[tuple[str, str]]:
        """Special tokens that stand in texts of these messages, and are broken up on their way into the prompt.

        Args:
            messages: in the v1 form; ``tools`` and ``options`` as for ``prompt_ids``.

        Returns:
            Each token with the place where it stands, as in ``("<|im_end|>", "message 1 (user)")``.

        Raises:
            RenderError: the messages cannot be rendered.
        """
        guard = Neutralize(self._neutralizer)
        template_input(messages, tools, options or {}, guard, self._kinds())
        return list(guard.broken)

    def prefill_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer's beginning that a user gives, special tokens in it broken up as in messages.

        Args:
            text: the first words of the answer, which are put behind the prompt.

        Returns:
            As many ids as it has tokens, apart from those of the prompt before it.

        Raises:
            RenderError: it holds half a character, or a special token that cannot be broken up.
        """
        return tuple(self.codec.encode(self._safe_prefill(text)))

    def _safe_prefill(self, text: str) -> str:
        guard = Neutralize(self._neutralizer)
        safe = guard.message_text("the beginning of the answer (prefill)", text)
        self._verify_each(guard)
        return safe

    def reasoning_open(self, prompt_ids: Sequence[int], prefill: str = "") -> bool:
        """Whether an answer goes on inside its reasoning, because its prompt has opened that.

        Args:
            prompt_ids: of the prompt, with the beginning of the answer's turn at its end.
            prefill: with which the answer begins; may open reasoning, or close it.

        Returns:
            True if what the model writes next is reasoning.
        """
        return self._parser.reasoning_open(prompt_ids, prefill)

    @property
    def answer_tags(self) -> Mapping[str, tuple[str, str]]:
        """What stands around reasoning (``think``) and tool calls (``tool_call``) in the text of answers: an opening
        and a closing tag each, as far as they show there."""
        return self._parser.tags

    @property
    def hidden_tags(self) -> Sequence[str]:
        """The kinds (``think``, ``tool_call``) that answers have without such tags in their text."""
        return self._parser.hidden_tags

    @property
    def media_kinds(self) -> frozenset[str]:
        """The kinds of media that prompts may have: ``image``, ``video``, ``audio``; none for a text model."""
        return self._media.kinds if self._media else frozenset()

    def media_prompt(
        self,
        messages: Sequence[Message],
        tools: str | None = None,
        options: Mapping[str, Any] | None = None,
        prefill: str = "",
    ) -> tuple[tuple[int, ...], MediaInputs]:
        """As ``prompt_ids``, for messages with images, videos or sounds.

        Args:
            messages: in the v1 form, their media as ``data:`` URLs.
            tools: see ``prompt_ids``.
            options: see ``prompt_ids``; ``fps`` or ``num_frames`` is how many frames of a video are looked at, a second
                or in all. Without either the checkpoint's processor decides, and some take every frame.
            prefill: the answer's beginning, whose tokens are the last ones (see ``prefill_ids``).

        Returns:
            Token ids, with as many placeholders as the media take, and what else the model gets.

        Raises:
            RenderError: also for media that the model does not take or that cannot be decoded, for a template that
                writes more or fewer placeholders than there are media, and for a ``prefill`` whose tokens would mix
                with those of the template.
        """
        _, safe = self._rendered(messages, tools, options or {}, is_generate=True)
        if self._media is None or self._template is None:
            raise RenderError("This model, or its chat template, takes text only.")
        blocks = [
            MediaBlock(KIND_OF[block["type"]], f"message {number} ({message['role']})", block["value"])
            for number, message in enumerate(messages, 1)
            for block in message["content"]
            if block["type"] in KIND_OF
        ]
        text = self._template.text(safe, generate=True) + self._safe_prefill(prefill)
        ids, inputs = self._media.prompt(text, blocks, options)
        begun = self.prefill_ids(prefill)
        if ids[len(ids) - len(begun) :] != begun:
            raise RenderError(
                "Beside images, videos or sounds this model's processor does not keep the beginning of the answer "
                "(prefill) apart from the prompt; begin it with another character, or leave it out."
            )
        return ids, inputs

    def render_messages(
        self, messages: Sequence[Message], tools: str | None = None, is_generate: bool = False, **options: Any
    ) -> ModelInput:
        """A conversation as a model's input: plain lists of numbers, one a token.

        Args:
            messages: in the v1 form.
            tools: JSON text of a list of tools, or of a single one.
            is_generate: as a prompt, with the beginning of the answer at its end, of which nothing is to be learned;
                otherwise for training. Then the last message must be the assistant's, and it alone has labels. Its
                ``loss_weight`` (1.0 if it has none) is the weight of all its tokens; with 0 they have no labels.
            options: further variables of the template. In the training form, ``enable_thinking`` is not the caller's:
                it says whether the last message has reasoning.

        Returns:
            ``input_ids``, ``attention_mask``, ``labels``, ``loss_weights`` (see ``ModelInput``). Images, videos and
            sounds have no place in it; ``media_prompt`` renders them.

        Raises:
            RenderError: says which message (counted from 1) is wrong, and how; for training also if the tokens of the
                prompt are not the first tokens of the whole.
        """
        if is_generate:
            return generation_input(self.prompt_ids(messages, tools, options))
        weight, has_reasoning = last_turn(messages)
        if self._plugin.thinking:
            options["enable_thinking"] = has_reasoning
        made, safe = self._rendered(messages, tools, options, is_generate=False)
        _refuse_media(safe)
        if self._template is None:
            return made
        before = replace(safe, messages=safe.messages[:-1])
        prompt = self._token_ids(self._template.text(before, generate=True))
        return training_input(prompt, made["input_ids"], weight)

    def process_samples(self, samples: Iterable[Sample]) -> list[ModelInput]:
        """Samples as a model's inputs for training, one each.

        Args:
            samples: each has ``messages`` that end with the answer to be learned, or ``chosen_messages`` and
                ``rejected_messages``, which become one sequence; and ``tools`` (JSON text) where there are some.

        Returns:
            One input a sample, in order: plain lists, one number a token. ``position_ids`` count from 1, in a pair for
            each answer anew; ``token_type_ids`` of a pair are 1 for the chosen answer and 2 for the rejected one.
            ``extra_info`` and ``_dataset_name`` are passed on.

        Raises:
            RenderError: names the sample (counted from 1) and what is wrong with it.
        """
        return [sample_input(sample, number, self.render_messages) for number, sample in enumerate(samples, 1)]

    def parse_message(self, text: str, prompt_ids: Sequence[int] = ()) -> Message:
        """An answer as the assistant's turn in the v1 form.

        A plugin's own ``parse_message`` goes first, then the tokenizer's response template, then the tags around
        reasoning and tool calls. Text is never lost: what cannot be understood, a malformed tool call say, is kept as
        text, and the message has a ``parse_error`` that says what is wrong with it.

        Args:
            text: what the model wrote; with its special tokens if ``needs_special_tokens``.
            prompt_ids: what it answers; the prompt may have begun the answer with an opening ``<think>``.

        Returns:
            A message whose blocks are reasoning, text and tool calls, in the answer's order.
        """
        return self._parser.message(text, prompt_ids)

    @property
    def needs_special_tokens(self) -> bool:
        """Whether ``parse_message`` should get answers with their special tokens: some of them may be what it reads."""
        return self._parser.needs_special_tokens

    def _rendered(
        self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any], *, is_generate: bool
    ) -> tuple[ModelInput, TemplateInput]:
        """All tokens, checked for special ones that users wrote, and what the template was given."""
        if taken := RESERVED_OPTIONS.intersection(options):
            raise RenderError(f"The template option {sorted(taken)[0]!r} cannot be set; the renderer decides it.")
        guard = Neutralize(self._neutralizer)
        kinds = self._kinds()
        safe = template_input(messages, tools, options, guard, kinds)
        made = self._made(safe, is_generate)
        ids = made["input_ids"]
        if not ids:
            raise RenderError("The chat template made an empty prompt of these messages.")
        self._verify_each(guard)
        if self._overlooked is not None:
            self._overlooked.look(safe, generate=is_generate)
        if guard.may_join:
            isolated = template_input(messages, tools, options, Isolate(self._neutralizer), kinds)
            self._verify_boundaries(ids, self._made(isolated, is_generate)["input_ids"])
        return made, safe

    def _kinds(self) -> frozenset[str] | None:
        """Kinds of media that messages may have; None where the template takes text alone."""
        return frozenset(self._media.kinds | set(self._media.lacking)) if self._media else None

    def _made(self, safe: TemplateInput, is_generate: bool) -> ModelInput:
        if self._template is None:
            return call_plugin(self._plugin, self.processor, safe, is_generate=is_generate)
        return generation_input(self._token_ids(self._template.text(safe, generate=is_generate)))

    def _token_ids(self, text: str) -> list[int]:
        return self._media.token_ids(text) if self._media else self.codec.encode(text)

    def _takes_media(self) -> bool:
        has_some = bool(media_kinds(self.processor)) and hasattr(self.processor, "tokenizer")
        return has_some and self._template is not None and self._template.takes_parts()

    def _verify_each(self, guard: Neutralize) -> None:
        """No text of the user's, taken alone, holds a special token (a tokenizer's normalizer may restore one)."""
        for place, texts in guard.texts.items():
            for text in texts:
                if not self.codec.special_ids.isdisjoint(self.codec.encode(text)):
                    raise RenderError(f"A special token of this model was written in {place}; take it out.")

    def _verify_boundaries(self, ids: Sequence[int], isolated: Sequence[int]) -> None:
        """No special token arises where a text of the user's meets the template's own text.

        The same messages, cut up so that no special token can have a part in them, must give the same special tokens.
        """
        if self._special_sequence(ids) != self._special_sequence(isolated):
            raise RenderError("A text in the messages forms a special token together with the template around it.")

    def _special_sequence(self, ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self.codec.special_ids]


def _refuse_media(safe: TemplateInput) -> None:
    """For the forms that are token ids alone."""
    for number, message in enumerate(safe.messages, 1):
        content = message["content"]
        if isinstance(content, list) and any(part["type"] != "text" for part in content):
            raise RenderError(
                f"Message {number} has media, which token ids alone cannot hold; sample from it with generate or "
                "batch_infer, or use media_prompt."
            )
