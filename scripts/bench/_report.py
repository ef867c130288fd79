"""What the runs of the batch benchmark come to: tables, a chart, a document, and several documents as one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _chart import Bar, bar_chart
from _measure import Run
from _systems import TITLES
from rich.console import Console
from rich.table import Table

REFERENCE = "pool"
NOT_DRAWN = ("bare", "bare2")
"""They are there for the share that a pool reaches of them."""
NOISE_SHARE = 0.05
"""Share of the cores in other programs' hands from which a measurement is called disturbed."""
EXPLANATION = (
    "Medians. prompts: how many a system was given, where not all. ratio: how many times as fast {reference} is (it is "
    "given all prompts), within a repeat. ceiling: share of what float32 matrix "
    "products of the model's shapes reach, here {ceiling} GFLOP/s. GiB: peak of resident memory, all processes. same: "
    "answers that equal those of {reference}, greedy."
)


@dataclass(frozen=True)
class Figures:
    """What a system showed on a workload: medians over its runs.

    Args:
        prompts: that it was given, of all.
        tokens_per_cpu_s: per second of CPU time, which tells something even where others disturb.
        ratio: how many times as fast the reference was; None if that was not measured beside it.
        share: of the ceiling.
        identical: share of the answers that equal the reference's.
        disturbed: the largest share of the cores that others used.
    """

    system: str
    runs: int
    prompts: int
    tokens_per_s: float
    lowest: float
    highest: float
    tokens_per_cpu_s: float
    ratio: float | None
    share: float
    peak_bytes: int
    identical: float | None
    disturbed: float
    idle: float


@dataclass
class Document:
    """Everything that a benchmark found.

    Args:
        about: machine, model and prompts; documents that are put together must agree in it.
        workloads: name to title, number of prompts and of new tokens.
        versions: of the packages, by system.
        unavailable: why a system was not measured.
    """

    about: dict[str, Any]
    workloads: dict[str, dict[str, Any]]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def of(self, workload: str, system: str) -> list[Run]:
        """A system's runs."""
        return [run for run in self.runs if (run.workload, run.system) == (workload, system)]

    def pairs(self, workload: str, one: str, other: str) -> Iterator[tuple[Run, Run]]:
        """Runs of two systems in the same repeat of the same session."""
        found = {(run.session, run.repeat): run for run in self.of(workload, one)}
        for run in self.of(workload, other):
            if (run.session, run.repeat) in found:
                yield found[run.session, run.repeat], run


# ---- figures ------------------------------------------------------------------------------------------------------


def figures(document: Document, workload: str) -> list[Figures]:
    """Of all systems that were measured on a workload."""
    return [_figures(document, workload, name, runs) for name in TITLES if (runs := document.of(workload, name))]


def _figures(document: Document, workload: str, system: str, runs: list[Run]) -> Figures:
    rates = [run.rate for run in runs]
    pairs = list(document.pairs(workload, REFERENCE, system))
    return Figures(
        system,
        len(runs),
        max(len(run.rows) for run in runs),
        statistics.median(rates),
        min(rates),
        max(rates),
        statistics.median(run.tokens / run.cpu_seconds for run in runs),
        statistics.median(ours.rate / run.rate for ours, run in pairs) if pairs else None,
        statistics.median(run.share for run in runs),
        max(run.peak_bytes for run in runs),
        statistics.mean(identical(ours, run) for ours, run in pairs) if pairs else None,
        max(run.disturbed for run in runs),
        max(run.idle for run in runs),
    )


def identical(reference: Run, run: Run) -> float:
    """Share of the answers that are the same."""
    answers = dict(zip(reference.rows, reference.answers, strict=True))
    return statistics.mean(answers.get(row) == answer for row, answer in zip(run.rows, run.answers, strict=True))


# ---- showing ------------------------------------------------------------------------------------------------------


def show(console: Console, document: Document) -> None:
    """All tables, and what else is to be said."""
    for name, load in document.workloads.items():
        if rows := figures(document, name):
            console.print(_table(load, rows))
            _say_how_pools_compare(console, document, name)
            if (worst := max(row.disturbed for row in rows)) > NOISE_SHARE:
                console.print(f"[yellow]Disturbed: other programs used up to {worst:.0%} of the cores meanwhile.[/]")
    for name, reason in document.unavailable.items():
        console.print(f"{TITLES[name]} was not measured, or not to the end: {reason}", style="yellow", markup=False)
    if document.runs:
        speeds = sorted(run.ceiling / 1e9 for run in document.runs)
        ceiling = f"{statistics.median(speeds):.0f} ({speeds[0]:.0f} to {speeds[-1]:.0f})"
        console.print(EXPLANATION.format(reference=TITLES[REFERENCE], ceiling=ceiling))


def _table(load: dict[str, Any], rows: Sequence[Figures]) -> Table:
    table = Table(title=_title(load))
    table.add_column("system")
    for name in ("runs", "prompts", "tokens/s", "range", "per CPU s", "ratio", "ceiling", "GiB", "same"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            TITLES[row.system],
            str(row.runs),
            "" if row.prompts == load["prompts"] else f"{row.prompts} of {load['prompts']}",
            f"{row.tokens_per_s:,.1f}",
            f"{row.lowest:,.0f}-{row.highest:,.0f}",
            f"{row.tokens_per_cpu_s:,.1f}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            f"{row.share:.0%}",
            f"{row.peak_bytes / 2**30:.1f}",
            "-" if row.identical is None else f"{row.identical:.0%}",
        )
    return table


def _title(load: dict[str, Any]) -> str:
    return f"{load['title']}, at most {load['max_new_tokens']} new tokens each"


def _say_how_pools_compare(console: Console, document: Document, workload: str) -> None:
    for pool, bare in (("pool", "bare"), ("pool2", "bare2")):
        shares = sorted(ours.rate / run.rate for ours, run in document.pairs(workload, pool, bare))
        if shares:
            console.print(
                f"{TITLES[pool]}, over sockets: {statistics.median(shares):.1%} of the rate of {TITLES[bare]} on the "
                f"same cores ({shares[0]:.1%} to {shares[-1]:.1%})."
            )


def chart(document: Document) -> str:
    """All workloads as an SVG drawing."""
    order = list(TITLES)
    groups = []
    for name, load in document.workloads.items():
        rows = [row for row in figures(document, name) if row.system not in NOT_DRAWN]
        bars = [Bar(TITLES[row.system], row.tokens_per_s, order.index(row.system), _ratio(row)) for row in rows]
        if bars:
            groups.append((_title(load), bars))
    return bar_chart(
        "Output tokens per second on a CPU",
        f"Longer is faster. Behind the rate: how many times as fast {TITLES[REFERENCE]} is.",
        "output tokens/s",
        groups,
    )


def _ratio(row: Figures) -> str:
    return "" if row.ratio is None or row.system == REFERENCE else f"{row.ratio:.2f}×"


# ---- documents ----------------------------------------------------------------------------------------------------


def write(document: Document, json_file: Path | None, svg_file: Path | None) -> None:
    """Write the files that were asked for."""
    if json_file:
        content = asdict(document)
        content["figures"] = {name: [asdict(row) for row in figures(document, name)] for name in document.workloads}
        json_file.write_text(json.dumps(content, indent=1) + "\n")
    if svg_file and document.runs:
        svg_file.write_text(chart(document))


def merged(files: Sequence[Path]) -> Document:
    """Several documents of ``write`` as one.

    Raises:
        SystemExit: one cannot be read, or they tell of different machines, models, prompts or workloads.
    """
    whole, *others = [_read(file) for file in files]
    for file, other in zip(files[1:], others, strict=True):
        _must_agree(files[0], whole.about, file, other.about, lambda key: True)
        _must_agree(files[0], whole.workloads, file, other.workloads, lambda key: key in whole.workloads)
        whole.workloads.update(other.workloads)
        whole.versions.update(other.versions)
        whole.unavailable.update(other.unavailable)
        known = {(run.session, run.workload, run.system, run.repeat) for run in whole.runs}
        whole.runs += [r for r in other.runs if (r.session, r.workload, r.system, r.repeat) not in known]
    measured = {run.system for run in whole.runs}
    whole.unavailable = {name: reason for name, reason in whole.unavailable.items() if name not in measured}
    return whole


def _must_agree(
    first: Path, one: dict[str, Any], second: Path, other: dict[str, Any], matters: Callable[[str], bool]
) -> None:
    for key in other:
        if matters(key) and one.get(key) != other[key]:
            raise SystemExit(
                f"{first} and {second} cannot be put together: {key} is {one.get(key)!r} there and {other[key]!r} here."
            )


def _read(file: Path) -> Document:
    try:
        content = json.loads(file.read_text())
        content.pop("figures")
        return Document(**{**content, "runs": [Run(**run) for run in content["runs"]]})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{file} is not a document of batch.py --json: {error!r}") from None
