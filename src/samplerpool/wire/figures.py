"""Figures of a worker's requests as its supervisor gets them: counts that only grow, and histograms of times. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST_TOKEN_S = "first_token_s"
TOKEN_S = "token_s"
BOUNDS: Mapping[str, tuple[float, ...]] = {
    FIRST_TOKEN_S: (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0),
    TOKEN_S: (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
}
"""Upper bounds of each histogram's buckets; one more bucket takes what lies beyond."""


class Histogram:
    """Counts values by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Count a value ``weight`` times. A value on a bound lies below it."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight


@dataclass(frozen=True)
class Buckets:
    """A histogram at one moment: how many values in each bucket, and the sum of all values."""

    counts: tuple[int, ...]
    total: float

    def __add__(self, other: Buckets) -> Buckets:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Buckets(counts, self.total + other.total)


@dataclass(frozen=True)
class FigureReport:
    """What one worker process counted since its start, and its present state.

    Args:
        outcomes: ended requests, by how they ended.
        counters: other counts, by name.
        histograms: by the names in ``BOUNDS``.
        gauges: figures that rise and fall, by name.
    """

    outcomes: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    histograms: Mapping[str, Buckets] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        histograms = {name: [*each.counts, round(each.total, 6)] for name, each in self.histograms.items()}
        return {
            "outcomes": dict(self.outcomes),
            "counters": dict(self.counters),
            "histograms": histograms,
            "gauges": dict(self.gauges),
        }

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> FigureReport:
        """The inverse of ``to_plain``.

        Raises:
            ValueError: it is not what ``to_plain`` makes.
        """
        try:
            histograms = {name: _buckets(name, values) for name, values in data["histograms"].items()}
            counts = [{str(k): int(v) for k, v in data[name].items()} for name in ("outcomes", "counters")]
            gauges = {str(k): float(v) for k, v in data["gauges"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a report of figures: {error!r}") from error
        return cls(counts[0], counts[1], histograms, gauges)

    def behind(self, earlier: FigureReport) -> FigureReport:
        """This report as it continues the counts of an earlier process; the gauges are this one's."""
        histograms = {
            name: self.histograms[name] + earlier.histograms[name]
            if name in self.histograms and name in earlier.histograms
            else self.histograms.get(name) or earlier.histograms[name]
            for name in {**earlier.histograms, **self.histograms}
        }
        outcomes, counters = _sum(earlier.outcomes, self.outcomes), _sum(earlier.counters, self.counters)
        return FigureReport(outcomes, counters, histograms, self.gauges)


def _buckets(name: str, values: Sequence[Any]) -> Buckets:
    *counts, total = values
    if len(counts) != len(BOUNDS[name]) + 1:
        raise ValueError(f"the histogram {name} has {len(counts)} buckets")
    return Buckets(tuple(int(count) for count in counts), float(total))


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
