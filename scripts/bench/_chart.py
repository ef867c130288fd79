"""A bar chart as SVG text. Its colours show on light and on dark pages, whichever the viewer's settings are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#2f6fdb", "#5b93ec", "#93b9f5", "#3a9d5d", "#d97b0b", "#8b949e", "#a9793f")
INK = "#6e7781"
"""Contrasts with white and with near-black about equally."""
GRID_OPACITY = 0.3
WIDTH, LABELS, FIGURES, MARGIN = 760, 176, 110, 12
BAR, GAP = 15, 5
HEADING, AXIS, SPACE = 24, 22, 14
TICKS = 5


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        color: an index: the same system has the same one in every group.
        note: a few characters behind the figure.
    """

    label: str
    value: float
    color: int
    note: str = ""


def bar_chart(title: str, subtitle: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars in groups, each group with a scale of its own: compare within a group.

    Args:
        unit: of the values, said at each axis.
        groups: (heading, bars).

    Returns:
        An SVG document.
    """
    parts = [
        _text(MARGIN, MARGIN + 14, title, size=16, weight="bold"),
        _text(MARGIN, MARGIN + 33, subtitle),
    ]
    top = MARGIN + 46
    for heading, bars in groups:
        parts += _group(heading, bars, unit, top)
        top += HEADING + len(bars) * (BAR + GAP) + AXIS + SPACE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        f'aria-label="{escape(title)}">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _group(heading: str, bars: Sequence[Bar], unit: str, top: float) -> Iterator[str]:
    left, length = MARGIN + LABELS, WIDTH - LABELS - FIGURES - 2 * MARGIN
    ticks = axis_ticks(max((bar.value for bar in bars), default=1.0))
    scale = length / max(ticks[-1], *(bar.value for bar in bars))
    first, bottom = top + HEADING, top + HEADING + len(bars) * (BAR + GAP)
    yield _text(MARGIN, top + 14, heading, size=13, weight="bold")
    for tick in ticks:
        x = left + tick * scale
        yield (
            f'<line x1="{x:.1f}" y1="{first}" x2="{x:.1f}" y2="{bottom}" stroke="{INK}" '
            f'stroke-opacity="{1 if tick == 0 else GRID_OPACITY}"/>'
        )
        yield _text(x, bottom + 14, f"{tick:g}", size=11, anchor="middle")
    yield _text(WIDTH - MARGIN, bottom + 14, unit, size=11, anchor="end")
    for number, bar in enumerate(bars):
        y, end = first + number * (BAR + GAP), left + max(1.0, bar.value * scale)
        yield _text(left - 8, y + 12, bar.label, anchor="end")
        color = COLORS[bar.color % len(COLORS)]
        yield f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="{BAR}" rx="2" fill="{color}"/>'
        figure = f"{bar.value:,.0f}" if bar.value >= 10 else f"{bar.value:.1f}"
        yield _text(end + 6, y + 12, f"{figure}   {bar.note}".rstrip(), weight="bold" if not bar.note else "normal")


def axis_ticks(largest: float) -> list[float]:
    """Round numbers from 0 up to at most the largest value, about five of them."""
    if largest <= 0:
        return [0.0]
    magnitude = 10.0 ** math.floor(math.log10(largest / TICKS))
    step = next(step * magnitude for step in (1, 2, 5, 10) if largest / (step * magnitude) <= TICKS)
    return [step * number for number in range(int(largest / step) + 1)]


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'xml:space="preserve" fill="{INK}">{escape(text)}</text>'
    )
