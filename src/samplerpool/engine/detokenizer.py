"""Token ids to text as they come: whole characters only, and never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.engine.base import Codec

REPLACEMENT = "\ufffd"
MAX_INCOMPLETE = 3
"""Bytes that a cut-off UTF-8 character can have, so the replacement characters that may still change."""
MAX_WINDOW = 64


class Detokenizer:
    """The text of one request's tokens, in deltas.

    Only a short window of tokens is decoded each time: the tokens of the last delta, which give the new ones their
    context (some tokenizers drop a leading space), and those after it. Text that may still change, or may turn out
    to be the beginning of a stop string, is held back.

    Args:
        codec: decodes token ids.
        stop: strings that end the text before them.
        skip_special_tokens: leave special tokens out of the text.
        generated_ids: tokens that were received before (a continuation).
        delivered_chars: how many characters of their text were delivered.
    """

    def __init__(
        self,
        codec: Codec,
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        generated_ids: Sequence[int] = (),
        delivered_chars: int = 0,
    ) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._context = 0  # characters of the window's text that were given out before
        self._held = ""  # given out by the window, kept back because a stop string may begin in it
        self.stopped = False
        if generated_ids:
            self._replay(generated_ids, delivered_chars)

    def _replay(self, generated_ids: Sequence[int], delivered_chars: int) -> None:
        text = "".join(self.add((token_id,)) for token_id in generated_ids)
        self._held = text[delivered_chars:] + self._held

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that may be shown now. Sets ``stopped`` when a stop string is complete; the text ends before it."""
        if self.stopped:
            return ""
        return self._filter_stop(self._decode(token_ids))

    def finish(self) -> str:
        """What was held back, at the end of the tokens."""
        if self.stopped:
            return ""
        text = self._codec.decode(self._window, skip_special_tokens=self._skip_special_tokens)[self._context :]
        self._window, self._context = [], 0
        rest, self._held = self._cut_at_stop(self._held + text), ""
        return rest

    def _decode(self, token_ids: Sequence[int]) -> str:
        window = self._window
        before = len(window)
        window.extend(token_ids)
        text = self._codec.decode(window, skip_special_tokens=self._skip_special_tokens)
        changing = 0
        if text.endswith(REPLACEMENT):
            changing = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_INCOMPLETE)
        start = self._context
        end = self._context = max(len(text) - changing, start)
        if end > start and not changing:
            self._slide(before, 0)
        elif len(window) > MAX_WINDOW:
            self._slide(len(window) - MAX_WINDOW // 8, len(text) - end)
        return text[start:end]

    def _slide(self, start: int, pending: int) -> None:
        """Forget the tokens before ``start``; the last ``pending`` characters have not been given out yet."""
        if start:
            self._window = self._window[start:]
            text = self._codec.decode(self._window, skip_special_tokens=self._skip_special_tokens)
            self._context = max(len(text) - pending, 0)

    def _filter_stop(self, delta: str) -> str:
        if not self._stop:
            delta, self._held = self._held + delta, ""
            return delta
        text = self._cut_at_stop(self._held + delta)
        if self.stopped:
            self._held = ""
            return text
        keep = self._longest_stop_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _cut_at_stop(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if not found:
            return text
        self.stopped = True
        return text[: min(found)]

    def _longest_stop_beginning(self, text: str) -> int:
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
