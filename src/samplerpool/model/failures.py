"""Foreign exceptions in one line."""

from __future__ import annotations

from collections.abc import Iterator

MISMATCH = (
    "torchvision was built for another torch, and beside it transformers cannot be imported; install the torchvision "
    "that goes with this torch, from where torch came, or uninstall it"
)


def failure_line(error: BaseException, limit: int = 240) -> str:
    """The first sentence or line of an exception's text, without the pages of advice that often follow."""
    if any("operator torchvision::" in str(cause) for cause in _causes(error)):
        return MISMATCH
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[0].rstrip(".: ")
    if isinstance(error, KeyError):
        line = f"KeyError {line}"
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
