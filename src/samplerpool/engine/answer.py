"""The whole answer to a request, kept where it will be parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samplerpool.engine.base import EngineRequest, PromptRenderer
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.types import Message


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a prompt holds of the answer.

    Args:
        text: with which the answer begins, given by the user.
        token_ids: its tokens, the prompt's last ones.
        reasoning_open: what comes is reasoning, until that is closed.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    reasoning_open: bool = False


NOTHING = Beginning()


class Answer:
    """Collects a request's answer.

    Args:
        request: what is answered.
        renderer: parses the answer; tells whether it needs the special tokens, which the text is mostly without.
        delivered: of a continuation, the text that was delivered before.
        beginning: what the prompt holds of the answer.
    """

    def __init__(
        self, request: EngineRequest, renderer: PromptRenderer, delivered: str, beginning: Beginning = NOTHING
    ) -> None:
        self._request = request
        self._beginning = beginning
        self._renderer = renderer
        self._texts = [delivered]
        self._token_ids = list(request.generated_ids)

    def add(self, token_ids: Sequence[int], text: str) -> None:
        """Tokens that belong to the answer, and the text that they made readable."""
        self._token_ids += token_ids
        self._texts.append(text)

    def message(self) -> Message:
        """All of it in the v1 form, at its end."""
        text = self._text_with_specials() if self._renderer.needs_special_tokens else "".join(self._texts)
        prompt_ids, begun = self._request.prompt_ids, self._beginning
        return self._renderer.parse_message(begun.text + text, prompt_ids[: len(prompt_ids) - len(begun.token_ids)])

    def _text_with_specials(self) -> str:
        codec, token_ids = self._renderer.codec, self._token_ids
        while token_ids and token_ids[-1] in codec.eos_token_ids:
            token_ids.pop()
        whole = Detokenizer(
            codec,
            self._request.params.stop or (),
            skip_special_tokens=False,
            context_ids=self._beginning.token_ids,
        )
        return whole.add(token_ids) + whole.finish()
