"""What ``samplerpool batch --dry-run`` says: for people, and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samplerpool.batch.preflight import Estimate, Preflight, Prices, Probe
from samplerpool.batch.problems import Problems, Rows
from samplerpool.batch.tally import duration
from samplerpool.cli.batch_view import error_line, rows_text

PERCENTILES = (1, 25, 50, 75, 90, 95, 99)
BAR = 40
"""Characters of the longest bar of the histogram."""


@dataclass(frozen=True)
class OutputState:
    """Whether the output can be written, and why (not)."""

    path: Path
    free: bool
    sentence: str


@dataclass(frozen=True)
class Report:
    """All that a dry run has found.

    Args:
        total: rows of the batch, of which ``checked`` may have seen but a part; None: not known.
        way: which these are: ``all``, ``drawn``, ``first``, or those before it was ``interrupted``.
    """

    source: str
    checked: Preflight
    total: int | None
    way: str
    whole: Estimate
    probe: Probe | None
    prices: Prices
    output: OutputState | None


def report_lines(report: Report) -> Iterator[str]:
    """For people."""
    checked = report.checked
    yield _looked_at(report)
    if checked.problems.count:
        yield f"would become error rows: {checked.problems.count:,}"
        yield from map(error_line, checked.problems)
    else:
        yield "would become error rows: none"
    if checked.not_counted.count:
        yield f"could not be counted, for no fault of their own: {checked.not_counted.count:,}"
        yield from map(error_line, checked.not_counted)
    if checked.cut.count:
        yield f"cut short by the model's length before --max-new-tokens: answers of {rows_text(checked.cut)}"
    if checked.escaped.count:
        yield f"special tokens in texts, which are broken up: {rows_text(checked.escaped)}"
        for one in checked.examples:
            yield f"  row {one.row}: {one.token} in {one.place}"
    if checked.good:
        yield from _lengths(checked)
        yield from _whole(report)
    if report.output is not None:
        yield f"output {report.output.path}: {report.output.sentence}"


def _looked_at(report: Report) -> str:
    count, total = report.checked.rows, "" if report.total is None else f" of {report.total:,}"
    rows = f"{count:,}"
    match report.way:
        case "all":
            return f"{rows} row{'s' * (count != 1)} looked at, nothing answered or written"
        case "interrupted":
            return f"interrupted; {rows}{total} rows looked at, nothing written"
        case "drawn":
            return f"{rows}{total} rows looked at, drawn from all; nothing answered or written"
        case _:
            return f"the first {rows}{total} rows looked at, as none can be drawn here; nothing answered or written"


def _lengths(checked: Preflight) -> Iterator[str]:
    shown = "  ".join(f"{percent}%: {checked.percentile(percent):,}" for percent in PERCENTILES)
    low, high = checked.percentile(0), checked.percentile(100)
    mean = checked.prompt_tokens / checked.good
    yield f"prompt tokens: {low:,} to {high:,}, mean {mean:,.1f}; so many or fewer have {shown}"
    buckets = checked.histogram()
    most = max(bucket.rows for bucket in buckets)
    names = [f"{bucket.low:,}-{bucket.high:,}" for bucket in buckets]
    width = max(map(len, names))
    for name, bucket in zip(names, buckets, strict=True):
        bar = "#" * max(round(BAR * bucket.rows / most), bool(bucket.rows))
        yield f"  {name:>{width}} {bar} {bucket.rows:,}".rstrip()


def _whole(report: Report) -> Iterator[str]:
    whole, probe, prices = report.whole, report.probe, report.prices
    expected = "" if whole.expected_out is None else f", about {whole.expected_out:,} expected"
    what = "these rows" if report.total is None else "the whole batch"
    tokens = f"{whole.tokens_in:,} tokens in, at most {whole.most_out:,} tokens out{expected}"
    yield f"{what}: {whole.answers:,} answers, {tokens}"
    if probe is not None:
        yield (
            f"probe: {probe.answers:,} answers, {probe.completion_tokens:,} tokens out in {duration(probe.elapsed_s)}; "
            f"{probe.cut_off:,} of them ended at --max-new-tokens or the model's length"
        )
    if whole.seconds is not None and whole.device_hours is not None and probe is not None:
        workers = f"{probe.workers} worker" + "s" * (probe.workers != 1)
        yield f"time: about {duration(whole.seconds)} on {workers} ({whole.device_hours:,.2f} device-hours)"
    else:
        yield "time: not known, as nothing was measured; --probe N answers N rows and measures"
    parts = []
    if whole.cost_in is not None:
        parts.append(f"{whole.cost_in:,.4g} in, at {prices.tokens_in:g} a million tokens")
    if whole.most_cost_out is not None:
        about = "" if whole.expected_cost_out is None else f"about {whole.expected_cost_out:,.4g} and "
        parts.append(f"{about}at most {whole.most_cost_out:,.4g} out, at {prices.tokens_out:g} a million tokens")
    if parts:
        yield f"cost: {'; '.join(parts)}"
    yield from (f"  {sentence}" for sentence in whole.basis)


def report_json(report: Report) -> str:
    """For programs."""
    checked, probe, output = report.checked, report.probe, report.output
    lengths: dict[str, Any] = {
        "sum": checked.prompt_tokens,
        "min": checked.percentile(0),
        "max": checked.percentile(100),
        "percentiles": {str(percent): checked.percentile(percent) for percent in PERCENTILES},
        "histogram": [asdict(bucket) for bucket in checked.histogram()],
    }
    return json.dumps(
        {
            "input": report.source,
            "rows": checked.rows,
            "total": report.total,
            "way": report.way,
            "error_rows": checked.problems.count,
            "errors": _kinds(checked.problems),
            "not_counted": _kinds(checked.not_counted),
            "cut": _rows(checked.cut),
            "escaped": {**_rows(checked.escaped), "examples": [asdict(one) for one in checked.examples]},
            "prompt_tokens": lengths if checked.good else None,
            "estimate": asdict(report.whole),
            "probe": None if probe is None else asdict(probe),
            "output": None if output is None else {**asdict(output), "path": str(output.path)},
        },
        ensure_ascii=False,
    )


def _kinds(problems: Problems) -> list[dict[str, Any]]:
    return [{"code": kind.code, **_rows(kind.rows), "sentence": kind.sentence} for kind in problems]


def _rows(rows: Rows) -> dict[str, Any]:
    return {"rows": rows.count, "first": rows.first}
