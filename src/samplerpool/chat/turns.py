"""What a conversation is made of: turns, questions, the results of tools that an answer calls. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from samplerpool.errors import UsageError
from samplerpool.types import Content, Message, Role


def text_message(role: Role, text: str) -> Message:
    """A message of one text block."""
    return {"role": role, "content": [{"type": "text", "value": text}]}


def text_of(message: Message) -> str:
    """The text blocks of a message, joined."""
    return "".join(block["value"] for block in message["content"] if block["type"] == "text")


@dataclass(frozen=True)
class Turn:
    """What was said to the model, and its answer.

    Args:
        asked: the user's message, results of tools before it; or such results alone.
        answer: the answer, parsed where the worker did that.
        text: the answer as the model wrote it, the prefill in front; empty where that is not known.
        prefill: how the answer was made to begin.
        cut: it was stopped, or ended at its limit, and can go on.
        earlier: the answer that this one took the place of.
    """

    asked: tuple[Message, ...]
    answer: Message
    text: str = ""
    prefill: str = ""
    cut: bool = False
    earlier: Message | None = None


@dataclass(frozen=True)
class Question:
    """A turn without its answer.

    Args:
        instead_of: the turn whose place it takes.
        again: it asks that turn's question word for word, so that the turn stands if this fails.
        earlier: becomes that of the turn.
    """

    asked: tuple[Message, ...]
    prefill: str = ""
    instead_of: Turn | None = None
    again: bool = False
    earlier: Message | None = None


class ToolResults:
    """Results of the tools that the last answer calls, until they are told to the model. They are told in the order
    of the calls."""

    def __init__(self) -> None:
        self._given: dict[int, str] = {}

    def open_calls(self, answer: Message | None) -> list[str]:
        """Names of the functions that an answer calls and that have no result yet, in order."""
        return [name for place, name in enumerate(_calls(answer)) if place not in self._given]

    def give(self, answer: Message | None, result: str, name: str | None) -> None:
        """Give the result of one of an answer's calls: the first without one, or the first of that name.

        Raises:
            UsageError: there is no such call.
        """
        for place, called in enumerate(_calls(answer)):
            if place not in self._given and name in (None, called):
                self._given[place] = result
                return
        raise UsageError("The last answer waits for no tool's result.")

    def clear(self) -> None:
        """Forget them; they were of another answer."""
        self._given.clear()

    @property
    def messages(self) -> list[Message]:
        """All that were given, as messages."""
        return [text_message("tool", self._given[place]) for place in sorted(self._given)]


def _calls(answer: Message | None) -> list[str]:
    blocks = answer["content"] if answer else []
    return [_called(block["value"]) for block in blocks if block["type"] == "tool_call"]


def _called(value: str) -> str:
    try:
        call = json.loads(value)
    except ValueError:
        return ""
    return str(call.get("name", "")) if isinstance(call, dict) else ""


def joined(blocks: Sequence[Content], words: Content) -> list[Content]:
    """Files and words as one text, since templates differ in how they join several; media stay blocks of their own."""
    texts = [block["value"] for block in blocks if block["type"] == "text"]
    media = [block for block in blocks if block["type"] != "text"]
    return [*media, {"type": "text", "value": "\n\n".join([*texts, words["value"]])}]


def with_text(message: Message, text: str) -> Message:
    """The message with another text; its media stay."""
    media: list[Content] = [block for block in message["content"] if block["type"] != "text"]
    return {"role": message["role"], "content": [*media, {"type": "text", "value": text}]}


def loaded_turn(asked: tuple[Message, ...], answer: Message) -> Turn:
    """Whether it had come to its end is not known of it: where it is plain text, it can go on."""
    plain = all(block["type"] == "text" for block in answer["content"])
    text = text_of(answer) if plain else ""
    return Turn(asked, answer, text, cut=bool(text))
