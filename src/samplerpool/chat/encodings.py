"""Terminals and pipes whose encoding lacks characters: something plain in their place, never an error."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

_HANDLER = "samplerpool.plain"
_PLAIN = {
    **dict.fromkeys("‘’‚′", "'"),
    **dict.fromkeys("“”„″", '"'),
    **dict.fromkeys("‐‑‒–—―─", "-"),
    "…": "...",
    "•": "*",
    "·": "-",
    "│": "|",
    "→": "->",
    "×": "x",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return "\ufffd", error.end
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _plain)


def tolerate_any_text(stream: TextIO) -> None:
    """Let characters that a stream's encoding lacks become plain ones, or ``?`` (emoji in an ASCII locale).

    Of an input, bytes that are no text are replaced.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_HANDLER)


def encodable(text: str, encoding: str | None) -> str:
    """The text as such a stream shows it."""
    name = encoding or "utf-8"
    return text.encode(name, _HANDLER).decode(name)


def what_is_missing(encoding: str | None) -> str | None:
    """What to tell someone whose terminal has such an encoding; ``None`` if nothing is missing."""
    try:
        "ü漢😀".encode(encoding or "ascii")
    except UnicodeEncodeError:
        return (
            f"This terminal's encoding is {encoding}; characters that it lacks are shown as '?'. "
            "To see all of them: export LC_ALL=C.UTF-8, and start again."
        )
    return None
