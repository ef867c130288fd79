"""Keeping special tokens out of what users write. Pure, and free of torch and transformers.

A special token written in a user's text would be read by the model as structure: the end of the turn, the start of a
system turn. So each occurrence gets a zero-width space behind its first character, which no special token contains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

ZERO_WIDTH_SPACE = "\u200b"

_Trie = dict[str, Any]


class Neutralizer:
    """Breaks special tokens inside user text, and tells which texts deserve a second look.

    Args:
        special_tokens: as they are written; those of a single character are left alone.
    """

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = sorted({token for token in special_tokens if len(token) >= 2})
        self.special_tokens = tuple(tokens)
        folded = [token.casefold() for token in tokens]
        self._occurrence = _occurrence_pattern(tokens)
        self._folded_occurrence = _occurrence_pattern(folded)
        self._first_characters = _character_class({c for t in tokens for c in (t[0], t[0].lower(), t[0].upper())})
        self._heads = frozenset(token[:n] for token in folded for n in range(1, len(token)))
        self._tails = frozenset(token[-n:] for token in folded for n in range(1, len(token)))
        self._longest = max(map(len, folded), default=0)
        self._all_folded = "\0".join(folded)

    def text(self, text: str) -> str:
        """``text`` with a zero-width space behind the first character of every special token in it.

        Works by position, so overlapping tokens are all broken, whatever their order. Text without special tokens
        comes back as the very same object.
        """
        if self._occurrence is None or self._occurrence.search(text) is None:
            return text
        return self._occurrence.sub(rf"\g<0>{ZERO_WIDTH_SPACE}", text)

    def found(self, text: str) -> list[str]:
        """The special tokens in ``text``, each once, in order; of several that begin at one place the longest."""
        if self._occurrence is None:
            return []
        starts = (match.start() for match in self._occurrence.finditer(text))
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return list(dict.fromkeys(next(t for t in longest_first if text.startswith(t, at)) for at in starts))

    def may_join(self, text: str, *, inside: bool = True) -> bool:
        """Whether ``text`` could become part of a special token together with the template's text around it.

        True if it ends as a special token starts, starts as one ends, or spells one in another letter case (a template
        may change the case).

        Args:
            inside: also true if the text is the middle of a special token.
        """
        folded = text.casefold()
        if not folded or not self._longest:
            return False
        reach = range(1, min(len(folded), self._longest - 1) + 1)
        if any(folded[-n:] in self._heads or folded[:n] in self._tails for n in reach):
            return True
        if inside and len(folded) < self._longest and folded in self._all_folded:
            return True
        return self._folded_occurrence is not None and self._folded_occurrence.search(folded) is not None

    def isolate(self, text: str) -> str:
        """``text`` so cut up that it cannot be part of any special token; for comparison only, never for a model."""
        if self._first_characters is None:
            return text
        cut = self._first_characters.sub(rf"\g<0>{ZERO_WIDTH_SPACE}", text)
        return f"{ZERO_WIDTH_SPACE}{cut}{ZERO_WIDTH_SPACE}"


def map_strings(value: Any, change: Callable[[str], str], change_key: Callable[[str], str] | None = None) -> Any:
    """A JSON-like value with ``change`` applied to every string in it, however deep.

    Args:
        change_key: for the keys of objects; ``None`` means ``change``.

    Raises:
        ValueError: two keys of one object would become the same.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [map_strings(item, change, change_key) for item in value]
    if isinstance(value, dict):
        key_change = change_key or change
        changed = {
            key_change(key) if isinstance(key, str) else key: map_strings(item, change, change_key)
            for key, item in value.items()
        }
        if len(changed) != len(value):
            raise ValueError("two keys of one object differ only in how a special token is written")
        return changed
    return value


def _occurrence_pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the first character of each occurrence of a token, and only that, so that overlaps are seen."""
    root = _trie(token for token in tokens if len(token) >= 2)
    if not root:
        return None
    # A plain leading character lets the regular expression engine skip quickly over ordinary text.
    branches = [f"{re.escape(first)}(?={_trie_pattern(rest)})" for first, rest in sorted(root.items())]
    return re.compile("|".join(branches), re.DOTALL)


def _trie(tokens: Iterable[str]) -> _Trie:
    root: _Trie = {}
    for token in tokens:
        node = root
        for character in token:
            node = node.setdefault(character, {})
        node[""] = {}
    return root


def _trie_pattern(node: _Trie) -> str:
    """A pattern for the ends of the tokens below ``node``. Where one token ends, longer ones need not be told apart."""
    if "" in node:
        return ""
    branches = [re.escape(character) + _trie_pattern(rest) for character, rest in sorted(node.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _character_class(characters: Iterable[str]) -> re.Pattern[str] | None:
    escaped = "|".join(re.escape(character) for character in sorted(characters))
    return re.compile(escaped) if escaped else None
