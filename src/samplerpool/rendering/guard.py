"""What users' strings go through on their way into a template, and what is remembered of them. Pure."""

from __future__ import annotations

from samplerpool.errors import RenderError
from samplerpool.rendering.escaping import Neutralizer


class Neutralize:
    """Breaks special tokens in every string that passes, and remembers the strings for the checks afterwards.

    Attributes:
        texts: what passed, by the place where it stood.
        broken: special tokens that were, each with its place, once.
        may_join: one of them could become part of a special token together with the text around it.
    """

    def __init__(self, neutralizer: Neutralizer) -> None:
        self._neutralizer = neutralizer
        self.texts: dict[str, set[str]] = {}
        self.broken: dict[tuple[str, str], None] = {}
        self.may_join = False

    def message_text(self, place: str, text: str) -> str:
        return self._safe(place, text, inside=True)

    def structure_text(self, place: str, text: str, *, key: bool) -> str:
        return self._safe(place, text, inside=False)

    def _safe(self, place: str, text: str, *, inside: bool) -> str:
        if not text:
            return text
        if not text.isascii():
            _check_unicode(place, text)
        safe = self._neutralizer.text(text)
        if safe is not text:
            self.broken.update(((token, place), None) for token in self._neutralizer.found(text))
        self.texts.setdefault(place, set()).add(safe)
        self.may_join = self.may_join or self._neutralizer.may_join(safe, inside=inside)
        return safe


class Isolate:
    """Cuts up the strings that might join with the template's text; leaves the others and the keys as they are."""

    def __init__(self, neutralizer: Neutralizer) -> None:
        self._neutralizer = neutralizer

    def message_text(self, place: str, text: str) -> str:
        return self._cut(text, inside=True)

    def structure_text(self, place: str, text: str, *, key: bool) -> str:
        # A template looks up keys by name, so a changed key would change what it renders.
        return self._neutralizer.text(text) if key else self._cut(text, inside=False)

    def _cut(self, text: str, *, inside: bool) -> str:
        safe = self._neutralizer.text(text)
        return self._neutralizer.isolate(safe) if self._neutralizer.may_join(safe, inside=inside) else safe


def _check_unicode(place: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RenderError(f"There is half a character (a lone surrogate) in {place}, at {error.start}.") from error
