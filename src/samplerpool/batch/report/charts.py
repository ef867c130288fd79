"""The report's charts as SVG that stands in the page: matplotlib draws (extra ``report``), the page's style gives
colours and fonts."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from samplerpool.batch.report.counts import Lengths
from samplerpool.batch.report.timeline import Pause, Span
from samplerpool.errors import UsageError

WIDTH, HEIGHT = 4.6, 2.3
"""In inches, of which the page makes whatever there is room for."""
BINS = 40
LONG_TAIL = 20
"""So many times the median, and the lengths' axis is logarithmic."""
_COLOURS = {"#010101": "var(--muted)", "#020202": "var(--line)", "#030303": "var(--series)"}
_MUTED, _LINE, _SERIES = _COLOURS
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "samplerpool",
    "font.size": 9,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "text.color": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "hatch.color": _LINE,
}


def check_charts() -> None:
    """See that there is something to draw with.

    Raises:
        UsageError: there is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "The report's charts need matplotlib; install it with: pip install 'samplerpool[report]'"
        ) from error


def rate_chart(
    name: str, title: str, spans: Sequence[Span], pauses: Sequence[Pause], rate: Callable[[Span], float]
) -> str:
    """A rate over the time of the run.

    Args:
        name: of the chart in the page.
        title: what it shows, for those who do not see it.
    """

    def draw(axes: Any) -> None:
        unit_s = _time_axis(axes, spans, pauses)
        ends = [span.end_s for span in spans]
        for part in _without_pauses(spans, pauses):
            edges = [part[0].begin_s / unit_s, *(span.end_s / unit_s for span in part)]
            values = [rate(span) for span in part]
            axes.stairs(values, edges, fill=True, color=_SERIES, alpha=0.18, linewidth=0)
            axes.stairs(values, edges, baseline=None, color=_SERIES, linewidth=1.5)
        axes.set_xlim(0, ends[-1] / unit_s)
        axes.set_ylim(0, max(map(rate, spans)) * 1.08 or 1)
        _plain_numbers(axes.yaxis)

    return _svg(name, title, HEIGHT, draw)


def worker_chart(name: str, title: str, spans: Sequence[Span], pauses: Sequence[Pause]) -> str:
    """How full each worker was over the time of the run: a line of cells each, the fuller the darker."""
    workers = sorted({index for span in spans for index in span.filled})

    def draw(axes: Any) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import to_rgba

        unit_s = _time_axis(axes, spans, pauses)
        cells, colours = [], []
        for line, worker in enumerate(workers):
            for span in spans:
                if filled := span.filled.get(worker, 0.0):
                    left, right, low, high = span.begin_s / unit_s, span.end_s / unit_s, line - 0.42, line + 0.42
                    cells.append([(left, low), (left, high), (right, high), (right, low)])
                    colours.append(to_rgba(_SERIES, round(filled, 2)))
        axes.add_collection(PolyCollection(cells, facecolors=colours, linewidths=0, antialiaseds=False))
        axes.set_xlim(0, spans[-1].end_s / unit_s)
        axes.set_ylim(len(workers) - 0.5, -0.5)
        axes.grid(False)
        step = math.ceil(len(workers) / 16)
        axes.set_yticks(range(0, len(workers), step), [f"worker {worker}" for worker in workers[::step]])

    return _svg(name, title, max(1.2, min(4.0, 0.6 + 0.24 * len(workers))), draw)


def length_chart(name: str, title: str, lengths: Lengths, unit: str) -> str:
    """How many answers have which length."""
    logarithmic = lengths.longest > LONG_TAIL * max(1, lengths.quantile(0.5))
    edges = bin_edges(lengths.shortest, lengths.longest, logarithmic=logarithmic)
    heights = [0] * (len(edges) - 1)
    bin_of = 0
    for length, count in sorted(lengths.counts.items()):
        while length >= edges[bin_of + 1]:
            bin_of += 1
        heights[bin_of] += count

    def draw(axes: Any) -> None:
        if logarithmic:
            axes.set_xscale("symlog" if edges[0] == 0 else "log")
        axes.stairs(heights, edges, fill=True, color=_SERIES, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(unit + (", logarithmic" if logarithmic else ""))
        _plain_numbers(axes.yaxis, whole=True)
        if logarithmic:
            from matplotlib.ticker import FuncFormatter

            axes.xaxis.set_major_formatter(FuncFormatter(_number))
        else:
            _plain_numbers(axes.xaxis, whole=True)

    return _svg(name, title, HEIGHT, draw)


def bin_edges(shortest: int, longest: int, *, logarithmic: bool) -> list[int]:
    """Whole numbers, rising, the last one above the longest: a bin is from one to below the next."""
    if logarithmic:
        low = max(1, shortest)
        steps = (low * ((longest + 1) / low) ** (k / BINS) for k in range(BINS + 1))
        edges = {*(round(step) for step in steps), longest + 1, shortest}
        return sorted(edge for edge in edges if shortest <= edge <= longest + 1)
    width = math.ceil((longest + 1 - shortest) / BINS)
    return list(range(shortest, longest + 1 + width, width))


def _without_pauses(spans: Sequence[Span], pauses: Sequence[Pause]) -> list[list[Span]]:
    """Spans that one process of the run went through, together."""
    parts: list[list[Span]] = []
    for span in spans:
        if not parts or any(parts[-1][-1].begin_s < pause.at_s <= span.begin_s for pause in pauses):
            parts.append([])
        parts[-1].append(span)
    return parts


def _time_axis(axes: Any, spans: Sequence[Span], pauses: Sequence[Pause]) -> int:
    """The axis of running time, with the pauses in it; seconds of its unit."""
    total_s = spans[-1].end_s
    unit_s, unit = next((u for u in ((3600, "hours"), (60, "minutes")) if total_s >= 3 * u[0]), (1, "seconds"))
    axes.set_xlabel(f"{unit} of running time")
    _plain_numbers(axes.xaxis)
    for pause in pauses:
        axes.axvline(pause.at_s / unit_s, color=_MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    return unit_s


def _plain_numbers(axis: Any, *, whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=whole))
    axis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _place: int | None = None) -> str:
    return f"{value:,.10g}" if abs(value) < 1e6 else f"{value / 1e6:,.10g} M"


def _svg(name: str, title: str, height: float, draw: Callable[[Any], None]) -> str:
    """What ``draw`` puts on axes, as an element of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)  # several stand in one page
    text = re.sub("|".join(_COLOURS), lambda found: _COLOURS[found[0]], text)
    text = re.sub(r"font-family: [^;]*;", "", text)
    head = f'<svg role="img" aria-label="{html.escape(title)}" class="chart"'
    return re.sub(r"^<svg\b[^>]*(?= viewBox)", head, text, count=1)
