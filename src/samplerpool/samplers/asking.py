"""What samplers that ask over a socket send, however their callers wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.config.sampling import sampling_params
from samplerpool.data.media import with_media_read
from samplerpool.data.messages import prefill_text, template_options_of, to_v1, tools_text
from samplerpool.errors import InvalidParameter, RenderError
from samplerpool.types import Message
from samplerpool.wire.messages import ChatPrompt, TextPrompt, TokenPrompt

WORKER_TIMEOUT_S = 300.0
"""Long enough to load most models once more."""
FACTS_TIMEOUT_S = 0.5
PIECES_AT_ONCE = 512
"""Tokens that a worker is asked about in one request; it tells no more of them than its context holds."""

Messages = Sequence[Message] | Sequence[Mapping[str, Any]] | str
Tools = str | Sequence[Mapping[str, Any]] | None


def chat_prompt(
    messages: Messages, tools: Tools, template_options: Mapping[str, Any] | None, prefill: str
) -> ChatPrompt:
    """The prompt of a conversation, its files not read yet.

    Raises:
        RenderError: it is none.
    """
    return ChatPrompt(to_v1(messages), tools_text(tools), template_options_of(template_options), prefill_text(prefill))


def with_files_read(prompt: ChatPrompt, fetch: bool) -> ChatPrompt:
    """The prompt with the contents of images, videos and sounds in their places' stead.

    Args:
        fetch: get those of ``http(s):`` URLs, too.

    Raises:
        RenderError: one cannot be read.
    """
    return replace(prompt, messages=with_media_read(prompt.messages, fetch=fetch))


def text_prompt(prompt: str | Sequence[int]) -> TextPrompt | TokenPrompt:
    """The prompt of a text that is to be gone on with.

    Args:
        prompt: the text, or its token ids.

    Raises:
        RenderError: it is neither.
    """
    if isinstance(prompt, str):
        return TextPrompt(prefill_text(prompt))
    if not isinstance(prompt, Sequence) or not all(type(token_id) is int and token_id >= 0 for token_id in prompt):
        raise RenderError(f"A prompt must be a text or a list of token ids (integers, 0 or more), not {prompt!r:.60}.")
    return TokenPrompt(list(cast(Sequence[int], prompt)), goes_on=True)


def params_of_one_answer(params: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters of a stream, by name.

    Raises:
        InvalidParameter
    """
    given = sampling_params(params).given()
    if given.get("num_return_sequences", 1) > 1:
        raise InvalidParameter("A stream is one answer; for num_return_sequences above 1 use batch_infer.")
    return given


def longer(answer: ContinuedAnswer, more_tokens: int, changes: Mapping[str, Any]) -> ContinuedAnswer:
    """An answer that goes on where another one ended.

    Args:
        more_tokens: so many more it may have.
        changes: sampling parameters that are others from here on.

    Raises:
        InvalidParameter
    """
    if isinstance(more_tokens, bool) or not isinstance(more_tokens, int) or more_tokens < 1:
        raise InvalidParameter(f"more_tokens must be an integer, 1 or more, not {more_tokens!r}.")
    if "max_new_tokens" in changes:
        raise InvalidParameter("How long the answer may become is told by more_tokens; leave max_new_tokens out.")
    limit = len(answer.token_ids) + more_tokens
    return ContinuedAnswer.going_on(answer, params_of_one_answer({**answer.params, **changes, "max_new_tokens": limit}))


def in_parts(token_ids: Sequence[int]) -> list[list[int]]:
    """The different ones among them, so many at a time as a worker tells of."""
    asked = sorted(set(token_ids))
    return [asked[start : start + PIECES_AT_ONCE] for start in range(0, len(asked), PIECES_AT_ONCE)]
