"""The whole answer to a request, kept where it will be parsed."""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.engine.base import EngineRequest, PromptRenderer
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.types import Message


class Answer:
    """Collects a request's answer.

    Args:
        request: what is answered.
        renderer: parses the answer; tells whether it needs the special tokens, which the text is mostly without.
        delivered: of a continuation, the text that was delivered before.
    """

    def __init__(self, request: EngineRequest, renderer: PromptRenderer, delivered: str) -> None:
        self._request = request
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
        return self._renderer.parse_message(text, self._request.prompt_ids)

    def _text_with_specials(self) -> str:
        codec, token_ids = self._renderer.codec, self._token_ids
        while token_ids and token_ids[-1] in codec.eos_token_ids:
            token_ids.pop()
        whole = Detokenizer(codec, self._request.params.stop or (), skip_special_tokens=False)
        return whole.add(token_ids) + whole.finish()
