"""An answer's tokens in the colours of their probabilities."""

from __future__ import annotations

from samplerpool.chat.attached import Ending
from samplerpool.chat.context import Chat
from samplerpool.chat.views import alternative_lines, colour_lines
from samplerpool.errors import SamplerPoolError


def show_probabilities(chat: Chat, ending: Ending) -> None:
    """Show an answer whose log-probabilities are known: in colours, or with its alternatives one token a line.

    A worker is asked what the tokens stand for; if it cannot say, that is told, and costs the chat nothing.
    """
    entries = ending.logprobs or []
    others = sorted({token_id for entry in entries for token_id, _ in entry.top})
    own = list(ending.token_ids)
    try:
        known = chat.attached.sampler.pieces([*own, *others])
    except SamplerPoolError as error:
        chat.failed(error)
        return
    pieces, named = known[: len(own)], dict(zip(others, known[len(own) :], strict=True))
    chat.console.show(alternative_lines(pieces, entries, named) if others else colour_lines(pieces, entries))
