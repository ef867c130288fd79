"""Which earlier row shares the longest prefix with a new prompt. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

from samplerpool.engine.arena import Region

KEY_TOKENS = 8
"""Prefixes shorter than this are not looked for: computing them again costs less than finding them."""
MAX_COMPARED = 32
"""Rows with the same first tokens that a prompt is compared with, the latest first."""

_Key = tuple[str | None, tuple[int, ...]]
"""An adapter, and a row's first tokens."""


class Prefix:
    """A row whose keys and values are in memory, running or kept.

    Args:
        owner: names the row.
        adapter: what it is computed with: keys and values of the same tokens differ with the adapter.
        tokens: prompt and generated tokens of the row; grows while it runs.
        region: where its keys and values are.
        computed: how many of the tokens are in memory.
    """

    __slots__ = ("adapter", "computed", "owner", "region", "tokens")

    def __init__(
        self, owner: Hashable, tokens: Sequence[int], region: Region, computed: int, adapter: str | None = None
    ) -> None:
        self.owner = owner
        self.adapter = adapter
        self.tokens = tokens
        self.region = region
        self.computed = computed


class PrefixIndex:
    """Running rows, and finished ones that are kept for those to come; the least recently used are dropped first."""

    def __init__(self) -> None:
        self._buckets: dict[_Key, OrderedDict[Hashable, Prefix]] = {}
        self._kept: OrderedDict[Hashable, Prefix] = OrderedDict()

    def add(self, prefix: Prefix) -> None:
        """Enter a running row."""
        if len(prefix.tokens) >= KEY_TOKENS:
            self._buckets.setdefault(_key(prefix.tokens, prefix.adapter), OrderedDict())[prefix.owner] = prefix

    def remove(self, prefix: Prefix) -> None:
        """Forget a row whose memory is given back."""
        self._kept.pop(prefix.owner, None)
        key = _key(prefix.tokens, prefix.adapter)
        bucket = self._buckets.get(key, OrderedDict())
        bucket.pop(prefix.owner, None)
        if not bucket:
            self._buckets.pop(key, None)

    def keep(self, prefix: Prefix) -> None:
        """A row has ended; its memory stays until somebody needs it."""
        self._kept[prefix.owner] = prefix
        self._kept.move_to_end(prefix.owner)

    def oldest(self) -> Prefix | None:
        """The kept row that was used least recently."""
        return next(iter(self._kept.values()), None)

    def kept(self) -> int:
        """How many ended rows are kept."""
        return len(self._kept)

    def find(self, tokens: Sequence[int], limit: int, adapter: str | None = None) -> tuple[Prefix | None, int, int]:
        """The best row to copy from, among those with the same adapter.

        Args:
            limit: most tokens that may be copied.

        Returns:
            The row, how many of its first tokens can be copied now (0 with None), and how many could be copied from
            any row once those that are being computed are done.
        """
        best: Prefix | None = None
        usable = promised = 0
        for prefix in self._candidates(tokens, adapter):
            common = min(common_length(prefix.tokens, tokens), limit)
            promised = max(promised, common)
            if min(common, prefix.computed) > usable:
                best, usable = prefix, min(common, prefix.computed)
        if usable < KEY_TOKENS:
            best, usable = None, 0
        return best, usable, promised

    def used(self, prefix: Prefix) -> None:
        """A row was copied from."""
        if prefix.owner in self._kept:
            self._kept.move_to_end(prefix.owner)

    def _candidates(self, tokens: Sequence[int], adapter: str | None) -> Iterator[Prefix]:
        if len(tokens) < KEY_TOKENS:
            return
        bucket = self._buckets.get(_key(tokens, adapter), OrderedDict())
        for _, prefix in zip(range(MAX_COMPARED), reversed(bucket.values()), strict=False):
            yield prefix


def _key(tokens: Sequence[int], adapter: str | None) -> _Key:
    return adapter, tuple(tokens[:KEY_TOKENS])


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences (of one type) have in common at their beginning, by halving."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
