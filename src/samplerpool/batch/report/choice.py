"""Which rows a report gives to read. Pure, and the same ones each time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from samplerpool.batch.report.counts import Counts, Duplicates

TAGS = (
    "error",
    "empty",
    "not understood",
    "duplicate",
    "longest",
    "shortest",
    "longest prompt",
    "cut off",
    "tool call",
    "reasoning",
)
"""What rows are shown for, the most important first."""


def chosen_rows(counts: Counts, duplicates: Duplicates, most: int) -> dict[int, list[str]]:
    """Places of rows, rising, each with what it is shown for; nothing of those that stand for all others.

    Each peculiarity has a part of the room until there are no more such rows, and at least a third is for others.
    """
    found: dict[int, list[str]] = {}
    peculiar = {tag: list(_peculiar(counts, duplicates, tag)) for tag in TAGS}
    room = most - min(most // 3, max(0, counts.rows - sum(map(len, peculiar.values()))))
    for depth in range(max(map(len, peculiar.values()))):
        for tag, places in peculiar.items():
            if depth < len(places) and (places[depth] in found or len(found) < room):
                tags = found.setdefault(places[depth], [])
                if tag not in tags:
                    tags.append(tag)
    for place in _others(counts.rows, most, frozenset(found)):
        found[place] = []
    return dict(sorted(found.items()))


def _peculiar(counts: Counts, duplicates: Duplicates, tag: str) -> Iterator[int]:
    if tag == "error":
        kinds = [counts.places.get(f"error {kind}", []) for kind in counts.errors]
        examples = [place for kind in counts.errors.values() for place, _ in kind.examples]
        yield from dict.fromkeys((*examples, *_in_turns(kinds)))
    elif tag == "duplicate":
        yield from _in_turns([places for _, places in duplicates.largest])
    elif tag in ("longest", "shortest", "longest prompt"):
        yield from counts.extremes(tag)
    else:
        yield from counts.places.get(tag, ())


def _in_turns(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    for depth in range(max(map(len, lists), default=0)):
        yield from (places[depth] for places in lists if depth < len(places))


def _others(rows: int, most: int, found: frozenset[int]) -> Iterator[int]:
    """As many as there is room for, from all over the output."""
    missing = most - len(found)
    drawn = random.Random(0).sample(range(rows), min(rows, most))
    return iter([place for place in drawn if place not in found][: max(0, missing)])
