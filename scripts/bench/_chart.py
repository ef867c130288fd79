"""A bar chart as SVG text. It shows on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#2563eb", "#60a5fa", "#f59e0b", "#10b981", "#14b8a6", "#9ca3af")
INK = "#6b7280"
WIDTH, LABELS, FIGURES, MARGIN = 760, 250, 60, 12
BAR, GAP, TITLE = 16, 5, 30


@dataclass(frozen=True)
class Bar:
    """One bar. ``color`` is an index: the same system has the same one in every group."""

    label: str
    value: float
    color: int


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars in groups, each group with a scale of its own: compare within a group.

    Args:
        groups: (heading, bars).

    Returns:
        An SVG document.
    """
    parts: list[str] = [_text(MARGIN, MARGIN + 12, title, size=16, weight="bold")]
    y = MARGIN + 28
    for heading, bars in groups:
        parts.append(_text(MARGIN, y + 16, heading, size=13, weight="bold"))
        y += TITLE - 6
        scale = (WIDTH - LABELS - FIGURES - 2 * MARGIN) / max((bar.value for bar in bars), default=1.0)
        for bar in bars:
            parts += _bar(bar, y, scale)
            y += BAR + GAP
        y += GAP * 2
    height = y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    length, color = max(1.0, bar.value * scale), COLORS[bar.color % len(COLORS)]
    start = MARGIN + LABELS
    return [
        _text(start - 8, y + 12, bar.label, anchor="end"),
        f'<rect x="{start}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{color}"/>',
        _text(start + length + 6, y + 12, f"{bar.value:,.0f}"),
    ]


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{INK}">{escape(text)}</text>'
    )
