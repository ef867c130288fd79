"""What is new in a text that is told once more. Pure."""

from __future__ import annotations


class Unseen:
    """The text behind what was shown, of one that begins anew.

    Where the end of what was shown had been cut short (half a character, or the first letters of a stop string), what
    stands there now is part of it.

    Args:
        shown: what there was of the text before.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._received = ""
        self._passed = False

    def new(self, delta: str) -> str:
        """What is new of the next piece of the text."""
        if self._passed:
            return delta
        self._received += delta
        return self.rest() if len(self._received) >= len(self._shown) else ""

    def rest(self) -> str:
        """What is new of a text that ends here, and was not told yet."""
        if self._passed:
            return ""
        self._passed = True
        return self._received[_shared(self._received, self._shown) :]


def _shared(first: str, second: str) -> int:
    """How many characters they begin with are the same."""
    different = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))
