"""Foreign exceptions in one line."""

from __future__ import annotations


def failure_line(error: BaseException, limit: int = 240) -> str:
    """The first sentence or line of an exception's text, without the pages of advice that often follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[0].rstrip(".: ")
    if isinstance(error, KeyError):
        line = f"KeyError {line}"
    return line if len(line) <= limit else line[: limit - 3] + "..."
