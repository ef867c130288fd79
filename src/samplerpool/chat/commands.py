"""What a line typed into the chat means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clear:
    """Start the conversation anew."""


@dataclass(frozen=True)
class Exit:
    """Leave the chat."""


@dataclass(frozen=True)
class Nothing:
    """An empty line."""


@dataclass(frozen=True)
class Ask:
    """Put a question to the model."""

    text: str


Command = Clear | Exit | Nothing | Ask


def interpret(line: str) -> Command:
    """The command in a line: the bare words ``clear`` and ``exit``, else a question.

    Text that is not valid Unicode (lone surrogates from a terminal in another encoding) is repaired, since it could
    not be sent.
    """
    text = line.encode("utf-8", "replace").decode("utf-8").strip()
    match text:
        case "":
            return Nothing()
        case "clear":
            return Clear()
        case "exit":
            return Exit()
        case _:
            return Ask(text)
