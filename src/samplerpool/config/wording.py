"""How figures are written for people."""

from __future__ import annotations

UNKNOWN = "-"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(count: float | None) -> str:
    """1536 as ``1.5 KiB``."""
    if count is None:
        return UNKNOWN
    for unit in _UNITS[:-1]:
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


def duration_text(seconds: float | None) -> str:
    """3725 as ``1h 02m``; the two largest units that count."""
    if seconds is None:
        return UNKNOWN
    total = int(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {total % 60:02d}s" if minutes else f"{total}s"


def number_text(number: float | None) -> str:
    """With one decimal below 100, where there is one."""
    if number is None:
        return UNKNOWN
    return f"{number:.1f}" if isinstance(number, float) and number < 100 else f"{number:,.0f}"


def plural(count: int, word: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
