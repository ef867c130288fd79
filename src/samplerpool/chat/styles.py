"""What the chat's text looks like: named styles, and what a terminal needs to be sent for them.

The rest of the chat says what a text is (``dim``, ``bad``, ``p3``) and never how that is drawn, so it reads the same
in colours, without colours, and where there are no styles at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Line = Sequence[tuple[str, str]]
"""A line of a display: pairs of a style's name and a text, as prompt_toolkit has them."""

SHADES = tuple(f"p{tenth}" for tenth in range(10))
"""Styles of tokens by probability, from ``p0`` (below a tenth) to ``p9``."""

_ATTRIBUTES = {"dim": "2", "bold": "1", "heading": "1", "emphasis": "3", "label": "1"}
_COLOURS = {"good": "32", "bad": "31", "warn": "33", "code": "36"}
# From red over yellow to green; of the 256 colours' cube, so that they look alike in all palettes.
_SHADES_256 = (160, 166, 172, 178, 184, 148, 112, 76, 40, 34)
_SHADES_8 = (31, 31, 31, 33, 33, 33, 36, 36, 32, 32)

STYLES = ("", *_ATTRIBUTES, *_COLOURS, *SHADES)
"""All styles that there are."""

# A model must not be able to move the cursor, retitle the window or paste into the shell: what a terminal would obey
# is shown as a picture of it.
_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def visible(text: str) -> str:
    """The text with pictures of its control characters, all but tabs and line ends, which a terminal may obey."""
    return text.translate(_VISIBLE)


def shade(probability: float) -> str:
    """The style of a token of this probability, from 0 to 1."""
    return SHADES[max(0, min(9, int(probability * 10)))]


@dataclass(frozen=True)
class Palette:
    """Which styles a terminal is sent.

    Args:
        attributes: bold and dim.
        colours: how many, 0, 8 or 256.
    """

    attributes: bool = False
    colours: int = 0

    @classmethod
    def of(cls, *, terminal: bool, environ: Mapping[str, str] = os.environ) -> Palette:
        """What suits an output: nothing where it is no terminal, or a dumb one; no colours with ``NO_COLOR``."""
        term = environ.get("TERM", "")
        if not terminal or term in ("", "dumb", "unknown"):
            return cls()
        if environ.get("NO_COLOR") or "mono" in term or term.startswith("vt"):
            return cls(attributes=True)
        many = "256" in term or environ.get("COLORTERM") in ("truecolor", "24bit")
        return cls(attributes=True, colours=256 if many else 8)

    def paint(self, style: str, text: str) -> str:
        """The text as it is sent; what is in it must be ``visible`` already.

        Raises:
            KeyError: there is no such style.
        """
        code = self._code(style)
        return f"\x1b[{code}m{text}\x1b[0m" if code and text else text

    def paint_lines(self, lines: Iterable[Line]) -> str:
        """Lines as they are sent, each with its end. Control characters in them are shown as pictures."""
        return "".join("".join(self.paint(style, visible(text)) for style, text in line) + "\n" for line in lines)

    def _code(self, style: str) -> str:
        if style == "":
            return ""
        if style in _ATTRIBUTES:
            return _ATTRIBUTES[style] if self.attributes else ""
        if style in SHADES:
            tenth = SHADES.index(style)
            return {0: "", 8: str(_SHADES_8[tenth]), 256: f"38;5;{_SHADES_256[tenth]}"}[self.colours]
        code = _COLOURS[style]
        return code if self.colours else ""
