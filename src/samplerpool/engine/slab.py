"""The scheduler of an engine whose rows lie side by side in a slab of places of one size. Pure.

Running rows have the first places, without a gap, so that those computed together are one view of memory: a row that
leaves is followed by the last one. Ended rows that are kept for their prefixes have places behind them. A place holds
all that its row may become, so nobody is moved or put back for having grown. Where there is memory for ``max_batch``
rows of the full length, places have that size for good; else they become larger for a row that would not fit, and
smaller again, once the long rows are gone, when more rows want in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from samplerpool.engine.arena import MIN_CAPACITY, Region, capacity_for
from samplerpool.engine.prefix import KEY_TOKENS, Prefix
from samplerpool.engine.schedule import MAX_KEPT, STEP_TOKENS, Copy, Plan, Row, Scheduler


@dataclass(slots=True)
class Swap(Copy):
    """Exchange the first ``length`` tokens of two regions."""


class SlabScheduler(Scheduler):
    """See the module's docstring. All else is as its base class does it.

    Args:
        tokens: what the slab holds.
        max_batch: most rows at a time.
        longest: most tokens of a row.
        prefill_chunk, keys_per_token, step_tokens, reuse: as for ``Scheduler``.
    """

    def __init__(
        self,
        tokens: int,
        max_batch: int,
        longest: int,
        *,
        prefill_chunk: int | None = None,
        keys_per_token: float = math.inf,
        step_tokens: int = STEP_TOKENS,
        reuse: bool = True,
    ) -> None:
        super().__init__(
            tokens,
            max_batch,
            prefill_chunk=prefill_chunk,
            keys_per_token=keys_per_token,
            step_tokens=step_tokens,
            reuse=reuse,
        )
        self.total_tokens = tokens - tokens % MIN_CAPACITY
        self.longest_row = min(whole_place(longest), self.total_tokens)
        self._smallest = self.longest_row
        while self._smallest > MIN_CAPACITY and self.total_tokens // self._smallest < max_batch:
            self._smallest = capacity_for(self._smallest) // 2
        self.capacity = self._smallest
        self.rows: list[Row] = []
        self._kept_at: dict[int, Prefix] = {}
        self._copies: list[Copy] = []

    @property
    def places(self) -> int:
        """How many there are."""
        return self.total_tokens // self.capacity

    @property
    def used_tokens(self) -> int:
        """Tokens of the places that rows and kept prefixes have."""
        return (len(self.rows) + len(self._kept_at)) * self.capacity

    def plan(self) -> Plan:
        """Decide the next step. Its copies begin with those for rows that have left since the last one."""
        while self.kept > MAX_KEPT:
            self._drop_oldest()
        plan = Plan(self._copies)
        self._admit(plan)
        self._share_out(plan)
        if self.running:  # else nothing is computed, and the copies are left for the next step
            self._copies = []
        return plan

    def place_of(self, row: Row) -> int:
        """Number of a running row's place."""
        assert row.region is not None
        return row.region.offset // self.capacity

    def region(self, place: int) -> Region:
        """Where a place is."""
        return Region(place * self.capacity, self.capacity)

    # ---- who comes and goes ---------------------------------------------------------------------------------------

    def _start_over(self) -> None:
        super()._start_over()
        self._copies.clear()

    def _room_for(self, row: Row) -> int:
        return max(row.limit, len(row.tokens))

    def _place(self, row: Row, prefix: Prefix | None, usable: int, plan: Plan) -> bool:
        placed = super()._place(row, prefix, usable, plan)
        if placed:
            self.rows.append(row)
        return placed

    def _take(self, tokens: int, spare: Prefix | None = None) -> Region | None:
        """The place behind the running rows; ``spare`` is about to be copied from."""
        if spare is not None:
            self._index.used(spare)  # so it is dropped last, whoever was put back meanwhile
        if not self._fit(tokens, spare):
            return None
        place = len(self.rows)
        if place in self._kept_at:
            self._clear(place, spare)
        return self.region(place)

    def _clear(self, place: int, spare: Prefix | None) -> None:
        """Let the kept prefix at a place go elsewhere, or be lost; ``spare`` is then still copied from where it is."""
        others = range(place + 1, self.places)
        if all(other in self._kept_at for other in others):
            self._drop_oldest(spare)
        prefix = self._kept_at.pop(place, None)
        if prefix is None:
            return
        free = next((other for other in others if other not in self._kept_at), None)
        if free is None:
            self._index.remove(prefix)
        else:
            self._move(prefix, self.region(free))
            self._kept_at[free] = prefix

    def _release(self, row: Row, *, keep: bool) -> None:
        """Take a row's place away, for the last of the running rows; its prefix may be kept behind them."""
        prefix, place, last = row.prefix, self.place_of(row), self.rows.pop()
        assert prefix is not None
        kept = keep and self._reuse and row.computed >= KEY_TOKENS
        if last is not row:
            assert last.region is not None
            if kept:
                self._copies.append(Swap(last.region, self.region(place), max(last.computed, row.computed)))
            else:
                self._copies.append(Copy(last.region, self.region(place), last.computed))
            _settle(last, self.region(place))
            self.rows[place] = last
        if kept:
            place = len(self.rows)
            prefix.tokens, prefix.region = row.tokens[: row.computed], self.region(place)
            self._kept_at[place] = prefix
            self._index.add(prefix)
            self._index.keep(prefix)
        else:
            self._index.remove(prefix)
        row.region, row.prefix, row.computed = None, None, 0

    def _drop_oldest(self, spare: Prefix | None = None) -> bool:
        oldest = self._index.oldest()
        if oldest is None or oldest is spare:
            return False
        self._index.remove(oldest)
        del self._kept_at[oldest.region.offset // self.capacity]
        return True

    # ---- the size of places ---------------------------------------------------------------------------------------

    def _fit(self, tokens: int, spare: Prefix | None) -> bool:
        """See that there is a place for one more row of so many tokens, by resizing all if need be."""
        count = len(self.rows) + 1
        if tokens <= self.capacity and count <= self.places:
            return True
        longest = max([tokens, *(self._room_for(row) for row in self.rows)])
        capacity = min(max(capacity_for(longest), self._smallest), self.longest_row)
        if self.total_tokens // capacity < count:
            return False
        self._resize(capacity, spare)
        return True

    def _resize(self, capacity: int, spare: Prefix | None) -> None:
        """Make places of another size, for the running rows; of the kept prefixes only ``spare`` comes along."""
        while self._drop_oldest(spare):
            pass
        occupants: list[Row | Prefix] = [*self.rows, *self._kept_at.values()]
        # In this order nobody is copied onto another one who has not been copied away yet.
        order = range(len(occupants)) if capacity < self.capacity else reversed(range(len(occupants)))
        self.capacity = capacity
        for place in order:
            self._move(occupants[place], self.region(place))
        self._kept_at = {place: o for place, o in enumerate(occupants) if isinstance(o, Prefix)}

    def _move(self, occupant: Row | Prefix, region: Region) -> None:
        assert occupant.region is not None
        if occupant.region != region:
            self._copies.append(Copy(occupant.region, region, occupant.computed))
        _settle(occupant, region)


def _settle(occupant: Row | Prefix, region: Region) -> None:
    occupant.region = region
    if isinstance(occupant, Row) and occupant.prefix is not None:
        occupant.prefix.region = region


def whole_place(tokens: int) -> int:
    """Tokens of a place that is just large enough for so many."""
    return -(-tokens // MIN_CAPACITY) * MIN_CAPACITY


def passes(lengths: Sequence[int], price: int) -> list[tuple[int, int]]:
    """Cut neighbouring rows into those that are decoded together, so that one long row makes not all of them long.

    Args:
        lengths: tokens that each row attends to; in a pass, all rows cost as much as the longest.
        price: what a pass costs beside that, in the same unit.

    Returns:
        First row and the one behind the last, of each pass; the cheapest way.
    """
    count = len(lengths)
    if count * max(lengths) - sum(lengths) <= price:
        return [(0, count)]
    best = [(0, 0)]  # of the first so many rows: the cost, and where their last pass starts
    for end in range(1, count + 1):
        options, longest = [], 0
        for start in reversed(range(end)):
            longest = max(longest, lengths[start])
            options.append((best[start][0] + price + (end - start) * longest, start))
        best.append(min(options))
    cuts = [count]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return list(pairwise(reversed(cuts)))
