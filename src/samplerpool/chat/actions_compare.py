"""``/compare``: one question, one seed, two workers or adapters, side by side."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from samplerpool.chat.actions_views import terminal_width
from samplerpool.chat.attached import Ending
from samplerpool.chat.context import Chat
from samplerpool.chat.side_by_side import SideBySide
from samplerpool.data.segments import message_of
from samplerpool.errors import UsageError
from samplerpool.types import Message


@dataclass
class _Side:
    """One of the two: who answers, and what came.

    Args:
        options: arguments of ``generate`` that say who.
    """

    name: str
    options: Mapping[str, Any]
    text: str = ""
    reasoning_open: bool = False
    ending: Ending | None = None
    error: Exception | None = None
    done: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def message(self, prefill: str, tags: Mapping[str, Sequence[str]] | None) -> Message:
        """The answer, as its worker has parsed it where it has come to its end."""
        parsed = self.ending.message if self.ending and not self.stop.is_set() else None
        return parsed or message_of(prefill + self.text, tags, begun=prefill, reasoning_open=self.reasoning_open)


def compare(chat: Chat, argument: str) -> None:
    """Answer the last question with both, and keep the answer that is chosen."""
    names = argument.split()
    if len(names) != 2:
        raise UsageError("/compare needs two workers or adapters, like /compare 0 1 or /compare base my-adapter.")
    messages, prefill = chat.transcript.last_prompt
    sides = [_Side(name, _options(chat, name)) for name in names]
    params = {"seed": secrets.randbelow(2**32), **chat.settings.params}
    _show(chat, sides, messages, prefill, params)
    if any(side.error for side in sides) or not all(side.text for side in sides):
        chat.console.notice("The conversation stays as it was.")
        return
    chat.console.notice(_difference(sides))
    _choose(chat, sides, prefill)


def _options(chat: Chat, name: str) -> dict[str, Any]:
    if name.isdecimal():
        chat.attached.check_worker(int(name))
        return {"worker": int(name)}
    return {**chat.attached.where, "adapter": name}


def _show(chat: Chat, sides: list[_Side], messages: list[Message], prefill: str, params: Mapping[str, Any]) -> None:
    """Both at once, until both have ended or Ctrl-C stops them."""
    news: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    columns = SideBySide(terminal_width())
    chat.console.show(columns.heads(*(side.name for side in sides)))
    try:
        for number, side in enumerate(sides):
            told = {"prefill": prefill, "template_options": dict(chat.settings.template)}
            arguments = {**params, **side.options, **told}
            work = (chat, side, messages, arguments, number, news)
            threading.Thread(target=_answer, args=work, daemon=True, name=f"compare {side.name}").start()
            chat.console.show(columns.feed(number, prefill))
        while not all(side.done for side in sides):
            number, text = news.get()
            side = sides[number]
            side.done = text is None
            side.text += text or ""
            chat.console.show(columns.end(number) if text is None else columns.feed(number, text))
    except KeyboardInterrupt:
        for number, side in enumerate(sides):
            side.stop.set()
            chat.console.show(columns.end(number))
        if not chat.console.interactive:
            raise
        chat.console.notice("(stopped)")
    for side in sides:
        if side.error is not None:
            chat.failed(side.error)


def _answer(
    chat: Chat,
    side: _Side,
    messages: list[Message],
    arguments: Mapping[str, Any],
    number: int,
    news: queue.SimpleQueue[tuple[int, str | None]],
) -> None:
    """In a thread of its own: what comes goes to ``news``, None at the end."""
    sampler = chat.attached.sampler
    try:
        with closing(sampler.generate(messages, chat.transcript.tools, **arguments)) as stream:
            for text in stream:
                side.reasoning_open = bool(sampler.last and sampler.last.reasoning_open)
                if side.stop.is_set():
                    return
                news.put((number, text))
        side.ending = sampler.last
    except Exception as error:
        side.error = error
    finally:
        news.put((number, None))


def _difference(sides: list[_Side]) -> str:
    left, right = sides
    if left.text == right.text:
        return "Both answers are the same."
    if left.ending is None or right.ending is None:
        return "The answers differ."
    ids = list(zip(left.ending.token_ids, right.ending.token_ids, strict=False))
    same = next((place for place, (a, b) in enumerate(ids) if a != b), len(ids))
    return f"The first {same} tokens are the same." if same else "They differ from the first token on."


def _choose(chat: Chat, sides: list[_Side], prefill: str) -> None:
    chosen = chat.console.choose("Which answer is to stay?", [f"that of {side.name}" for side in sides])
    if chosen is None:
        chat.console.notice("The conversation stays as it was.")
        return
    better, other = sides[chosen], sides[1 - chosen]
    cut = better.ending is None or better.ending.finish_reason == "length"
    tags = chat.attached.answer_tags
    chosen_message, other_message = (side.message(prefill, tags) for side in (better, other))
    chat.transcript.put_answers(chosen_message, better.text, other_message, cut=cut)
    if better.ending is not None:
        chat.ended = (chat.transcript.turns[-1], better.ending)
    chat.keep()
    chat.console.notice(f"The answer of {better.name} stays; /prefer FILE appends the pair.")
