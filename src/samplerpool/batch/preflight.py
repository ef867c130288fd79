"""What can be told of a batch before anything is sampled: bad rows, long rows, tokens, time, cost. Pure.

Fed with results of ``run_batch(..., count_only=True)``, in any order.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from samplerpool.batch.problems import SHOWN_ROWS, Problems, Rows
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import Row

BUCKETS = 12
"""Of a histogram, at most; the last one takes what is above the 99th percentile."""


@dataclass(frozen=True, slots=True)
class Escaped:
    """A special token that stands in a row's text."""

    row: int
    token: str
    place: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """How many rows have ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(slots=True)
class Preflight:
    """Counts as results come.

    Args:
        samples: answers per row.
        probe: rows to be kept, for being answered afterwards.

    ``cut`` are rows whose answers end before ``max_new_tokens`` because the model's length ends there; ``expected_out``
    is of the rows that tell how long their answers will be, and of the others the most that they may have.
    """

    samples: int = 1
    probe: int = 0
    rows: int = 0
    problems: Problems = field(default_factory=Problems)
    not_counted: Problems = field(default_factory=Problems)
    cut: Rows = field(default_factory=Rows)
    escaped: Rows = field(default_factory=Rows)
    examples: list[Escaped] = field(default_factory=list)
    most_out: int = 0
    expected_out: int = 0
    foretold: int = 0
    _lengths: Counter[int] = field(default_factory=Counter)
    _kept: list[tuple[int, int, Row]] = field(default_factory=list)

    def add(self, result: RowResult) -> None:
        """Take what became of one row."""
        self.rows += 1
        row = result.row
        if result.error is not None:
            (self.not_counted if result.transient else self.problems).add(row.index, result.error)
            return
        count = result.answer.count if result.answer is not None else None
        assert count is not None, "a result of count_only"
        self._lengths[count.prompt_tokens] += 1
        if count.room < count.max_new_tokens:
            self.cut.add(row.index)
        if count.escaped:
            self.escaped.add(row.index)
            found = [Escaped(row.index, token, place) for token, place in count.escaped]
            self.examples = sorted([*self.examples, *found], key=lambda one: one.row)[:SHOWN_ROWS]
        self.most_out += count.room
        self.foretold += row.expected_tokens is not None
        self.expected_out += count.room if row.expected_tokens is None else min(row.expected_tokens, count.room)
        if self.probe:
            self._keep(row)

    def _keep(self, row: Row) -> None:
        """Keep some that are as good as drawn, and the same ones in whatever order rows come."""
        digest = hashlib.blake2b(str(row.index).encode(), digest_size=8).digest()
        one = (-int.from_bytes(digest, "big"), row.index, row)
        if len(self._kept) < self.probe:
            heapq.heappush(self._kept, one)
        elif one[0] > self._kept[0][0]:
            heapq.heapreplace(self._kept, one)

    @property
    def probe_rows(self) -> list[Row]:
        """Those that were kept, in order."""
        return [row for _, _, row in sorted(self._kept, key=lambda one: one[1])]

    @property
    def good(self) -> int:
        """Rows that would be answered."""
        return self._lengths.total()

    @property
    def prompt_tokens(self) -> int:
        """Of those together, each prompt once."""
        return sum(tokens * rows for tokens, rows in self._lengths.items())

    def percentile(self, percent: float) -> int:
        """So many percent of the prompts have so many tokens or fewer; 0 without any prompt."""
        wanted, seen = percent * self.good / 100, 0
        for tokens in sorted(self._lengths):
            seen += self._lengths[tokens]
            if seen >= wanted:
                return tokens
        return 0

    def histogram(self) -> list[Bucket]:
        """Prompts by their lengths, in buckets of a round width; the last one may be wider."""
        if not self._lengths:
            return []
        low, usual, high = self.percentile(0), self.percentile(99), max(self._lengths)
        width = round_width((usual - low + 1) / (BUCKETS - 1))
        start = low // width * width
        buckets = max(1, -(-(usual + 1 - start) // width))
        rows = [0] * (buckets + 1)
        for tokens, count in self._lengths.items():
            rows[min(buckets, (tokens - start) // width)] += count
        made = [Bucket(start + n * width, start + (n + 1) * width - 1, rows[n]) for n in range(buckets)]
        return made + ([Bucket(start + buckets * width, high, rows[buckets])] if rows[buckets] else [])


def round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is no smaller."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


@dataclass(frozen=True, slots=True)
class Probe:
    """Some answers that were given for real.

    Args:
        answers: of so many rows with so many samples each.
        cut_off: how many of them ended with ``length``.
        places: requests that all workers work on at a time.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    cut_off: int
    elapsed_s: float
    workers: int
    places: int


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens, in whatever currency; None: not given."""

    tokens_in: float | None = None
    tokens_out: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the whole batch takes, as far as it can be told.

    Args:
        answers: to be given.
        most_out: tokens that the answers can have at most; ``expected_out``: that they are held to have, if there is
            anything to tell by.
        seconds: on the workers that there are.
        device_hours: of all of them together.
        basis: what this rests on, in sentences.
    """

    answers: int
    tokens_in: int
    most_out: int
    expected_out: int | None
    seconds: float | None
    device_hours: float | None
    cost_in: float | None
    most_cost_out: float | None
    expected_cost_out: float | None
    basis: Sequence[str]


def estimate(checked: Preflight, *, total: int | None, probe: Probe | None, prices: Prices) -> Estimate:
    """Put together what was counted and measured.

    Args:
        total: rows of the batch, of which those checked may be but a part; None: not known, so only those count.
        probe: answers that were measured, if any were.
    """
    scale = total / checked.rows if total and checked.rows else 1.0
    each = scale * checked.samples
    answers, tokens_in, most_out = (round(each * n) for n in (checked.good, checked.prompt_tokens, checked.most_out))
    basis = list(_of_the_scale(checked, total))
    expected_out: int | None = None
    if checked.foretold:
        expected_out = round(each * checked.expected_out)
        basis.append(
            f"Lengths of answers: what the column says, of {checked.foretold:,} of {checked.good:,} rows; of the "
            "others the most that they may have."
        )
    elif probe is not None and probe.answers:
        expected_out = min(most_out, round(answers * probe.completion_tokens / probe.answers))
        basis.append(f"Lengths of answers: those of the {probe.answers:,} answers of the probe.")
    seconds = None
    if probe is not None and expected_out is not None and probe.completion_tokens:
        seconds = expected_out * probe.elapsed_s / probe.completion_tokens
        basis.append(_of_the_speed(probe))
    return Estimate(
        answers,
        tokens_in,
        most_out,
        expected_out,
        seconds,
        None if seconds is None or probe is None else seconds * probe.workers / 3600,
        _cost(tokens_in, prices.tokens_in),
        _cost(most_out, prices.tokens_out),
        None if expected_out is None else _cost(expected_out, prices.tokens_out),
        basis,
    )


def _of_the_scale(checked: Preflight, total: int | None) -> Iterator[str]:
    if total is None:
        yield f"Nothing but the {checked.rows:,} rows that were looked at: how many there are in all is not known."
    elif checked.rows and total != checked.rows:
        yield f"Of {total:,} rows {checked.rows:,} were looked at; the others are held to be like them."


def _of_the_speed(probe: Probe) -> str:
    said = f"Speed: {probe.answers:,} answers took {probe.elapsed_s:.3g} s"
    if probe.answers < 4 * probe.places:
        said += (
            f"; the workers have {probe.places:,} places, which so few answers hardly fill, so the batch may well be "
            f"faster than that (--probe {4 * probe.places} would tell more)"
        )
    return said + "."


def _cost(tokens: int, price: float | None) -> float | None:
    return None if price is None else tokens * price / 1e6
