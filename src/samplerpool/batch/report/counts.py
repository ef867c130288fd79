"""The figures of a report: one pass over all rows, in memory that does not grow with them but for 16 bytes an answer
up to a bound. Pure."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samplerpool.batch.report.facts import Facts, facts

EXTREMES, GROUPS = 5, 10
EXAMPLES = 3
SENTENCE_CHARACTERS = 400
MOST_KINDS = 50
"""Of errors and finish reasons that are told apart, as another program's file may have one a row."""
MOST_PLACES = 200
"""Of rows that are remembered for each peculiarity, of which some are shown."""
MOST_HASHES = 1 << 21
OTHERS = "others"


@dataclass(slots=True)
class Lengths:
    """How many answers have which number of tokens."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many answers there are."""
        return self.counts.total()

    @property
    def total(self) -> int:
        """Tokens together."""
        return sum(length * count for length, count in self.counts.items())

    @property
    def longest(self) -> int:
        """0 if there are none."""
        return max(self.counts, default=0)

    @property
    def shortest(self) -> int:
        """0 if there are none."""
        return min(self.counts, default=0)

    def quantile(self, share: float) -> int:
        """The least length such that this share of the answers is not longer."""
        missing = share * self.rows
        for length in sorted(self.counts):
            missing -= self.counts[length]
            if missing <= 0:
                return length
        return self.longest


@dataclass(slots=True)
class ErrorKind:
    """Errors of one kind. ``examples``: places of rows, and what is said there."""

    count: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Answers that several rows have.

    Args:
        groups: different answers that come more than once; ``answers``: how many rows have one of these.
        largest: of the most frequent ones, how often they come, and places where.
        one_in: 1 if all were compared; else they were told by one in so many, and the numbers are estimates.
    """

    groups: int
    answers: int
    largest: Sequence[tuple[int, Sequence[int]]]
    one_in: int


class Repeats:
    """Finds answers that are the same, by 8 bytes of a hash.

    Args:
        most: hashes that are kept. When there are more, only those go on to be looked at, with all rows that have
            them, whose last bits are zero: one in two, then one in four.
    """

    def __init__(self, most: int = MOST_HASHES) -> None:
        self._most = most
        self._mask = 0
        self._hashes, self._places = array("Q"), array("Q")

    def add(self, place: int, text: str) -> None:
        """An answer."""
        data = text.strip().encode(errors="surrogatepass")
        value = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        if not value & self._mask:
            self._hashes.append(value)
            self._places.append(place)
            if len(self._hashes) > self._most:
                self._halve()

    def _halve(self) -> None:
        self._mask = self._mask << 1 | 1
        kept = [i for i, value in enumerate(self._hashes) if not value & self._mask]
        self._hashes = array("Q", (self._hashes[i] for i in kept))
        self._places = array("Q", (self._places[i] for i in kept))

    def found(self) -> Duplicates:
        """What comes more than once."""
        groups = answers = 0
        largest: list[tuple[int, int]] = []
        order = sorted(range(len(self._hashes)), key=self._hashes.__getitem__)
        for begin, end in self._runs(order):
            groups += 1
            answers += end - begin
            item = (end - begin, -begin)
            (heapq.heappush if len(largest) < GROUPS else heapq.heappushpop)(largest, item)
        shown = [
            (count, sorted(self._places[i] for i in order[-begin : count - begin])[:EXAMPLES])
            for count, begin in sorted(largest, reverse=True)
        ]
        one_in = self._mask + 1
        return Duplicates(groups * one_in, answers * one_in, shown, one_in)

    def _runs(self, order: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where equal ones begin and end."""
        begin = 0
        for end in range(1, len(order) + 1):
            if end == len(order) or self._hashes[order[end]] != self._hashes[order[begin]]:
                if end - begin > 1:
                    yield begin, end
                begin = end


@dataclass(slots=True)
class Counts:
    """Of all rows. ``places`` has rows by what is peculiar about them, a bounded number of each."""

    rows: int = 0
    unreadable: int = 0
    answered: int = 0
    empty: int = 0
    only_reasoning: int = 0
    with_reasoning: int = 0
    with_tool_calls: int = 0
    parse_errors: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    errors: dict[str, ErrorKind] = field(default_factory=dict)
    prompt: Lengths = field(default_factory=Lengths)
    completion: Lengths = field(default_factory=Lengths)
    repeats: Repeats = field(default_factory=Repeats)
    places: dict[str, list[int]] = field(default_factory=dict)
    _longest: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, columns: Mapping[str, Any] | None, unreadable: str = "") -> None:
        """A row; or what is said of one that cannot be read."""
        place, self.rows = self.rows, self.rows + 1
        if columns is None:
            self.unreadable += 1
            self._error(place, "Unreadable", unreadable)
            return
        seen = facts(columns)
        reason = seen.finish_reason
        self.finish_reasons[reason if reason in self.finish_reasons or self._new(self.finish_reasons) else OTHERS] += 1
        if seen.error is not None:
            self._error(place, *seen.error)
        elif seen.answered:
            self._answer(place, seen)

    def _new(self, kinds: Mapping[str, Any]) -> bool:
        return len(kinds) < MOST_KINDS

    def _error(self, place: int, kind: str, sentence: str) -> None:
        if kind not in self.errors and not self._new(self.errors):
            kind = OTHERS
        found = self.errors.setdefault(kind, ErrorKind())
        found.count += 1
        self._remember(f"error {kind}", place)
        sentence = sentence[:SENTENCE_CHARACTERS] + ("…" if len(sentence) > SENTENCE_CHARACTERS else "")
        if len(found.examples) < EXAMPLES and all(sentence != known for _, known in found.examples):
            found.examples.append((place, sentence))

    def _answer(self, place: int, seen: Facts) -> None:
        self.answered += 1
        self.with_reasoning += "reasoning" in seen.blocks
        self.with_tool_calls += "tool_call" in seen.blocks
        if seen.prompt_tokens is not None:
            self.prompt.counts[seen.prompt_tokens] += 1
            self._extreme("longest prompt", seen.prompt_tokens, place)
        if seen.completion_tokens is not None:
            self.completion.counts[seen.completion_tokens] += 1
        self.parse_errors += seen.parse_error
        for tag in seen.tags:
            self._remember(tag, place)
        if seen.empty:
            self.empty += 1
            self.only_reasoning += "reasoning" in seen.blocks
            return
        length = len(seen.text) if seen.completion_tokens is None else seen.completion_tokens
        self._extreme("longest", length, place)
        self._extreme("shortest", -length, place)
        self.repeats.add(place, seen.text)

    def _remember(self, what: str, place: int) -> None:
        places = self.places.setdefault(what, [])
        if len(places) < MOST_PLACES:
            places.append(place)

    def _extreme(self, what: str, value: int, place: int) -> None:
        """The largest ones, of equal ones the first."""
        found = self._longest.setdefault(what, [])
        if len(found) < EXTREMES:
            heapq.heappush(found, (value, -place))
        elif value > found[0][0]:
            heapq.heapreplace(found, (value, -place))

    def extremes(self, what: str) -> list[int]:
        """Places of the longest or shortest, the most extreme one first."""
        return [-place for _, place in sorted(self._longest.get(what, ()), reverse=True)]
