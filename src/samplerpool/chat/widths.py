"""How many columns a text takes on a screen. Pure."""

from __future__ import annotations

import unicodedata

_WIDE = ("W", "F")


def width(text: str) -> int:
    """Columns of a text: two for wide characters and emoji, none for marks that join the character before them."""
    if text.isascii():
        return len(text)
    columns, joins = 0, False
    for char in text:
        if char == "\u200d":  # joins the next character to the one before
            joins = True
            continue
        if not joins and not unicodedata.combining(char) and unicodedata.category(char) not in ("Mn", "Me", "Cf"):
            columns += 2 if unicodedata.east_asian_width(char) in _WIDE else 1
        joins = False
    return columns


def clipped(text: str, columns: int) -> str:
    """The text if it fits in so many columns, else its beginning and a mark that something is missing."""
    if width(text) <= columns:
        return text
    kept = text
    while kept and width(kept) > columns - 1:
        kept = kept[:-1]
    return f"{kept}…" if columns > 0 else ""
