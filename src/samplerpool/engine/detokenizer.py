"""Token ids to text as they come: whole characters only, and never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from samplerpool.engine.base import Codec

REPLACEMENT = "\ufffd"
MAX_OPEN = 64
"""Tokens without the end of a character after which there is none to wait for."""
KEPT_OPEN = 8


class Detokenizer:
    """The text of one request's tokens, in deltas.

    Only a short window of tokens is decoded each time: those of the last delta that left no character open, which give
    the new ones their context (some tokenizers drop a leading space), and those after it. Text that may still change,
    or may turn out to be the beginning of a stop string, is held back.

    All replacement characters at the end may still change, not only as many as a character has bytes: where a
    vocabulary falls back to bytes, as those of SentencePiece do, one open character makes them of the whole run.

    Args:
        codec: decodes token ids.
        stop: strings that end the text before them.
        skip_special_tokens: leave special tokens out of the text.
        generated_ids: tokens that were received before (a continuation).
        delivered_chars: how many characters of their text were delivered.
        context_ids: tokens before the first one, whose text is somebody else's matter.

    Attributes:
        stopped: a stop string is complete.
        count: tokens so far, up to the one that completed it.
        delivered: of a continuation, the text that was delivered before.
    """

    def __init__(
        self,
        codec: Codec,
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        generated_ids: Sequence[int] = (),
        delivered_chars: int = 0,
        context_ids: Sequence[int] = (),
    ) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = list(context_ids)
        self._settled = len(self._window)  # tokens of the window that are only context,
        self._context = self._text_of(self._window) if context_ids else ""  # and their text
        self._shown = 0  # characters behind the context that were given out
        self._held = ""  # given out by the window, kept back because a stop string may begin in it
        self.stopped = False
        self.count = 0
        self.delivered = ""
        if generated_ids:
            self._replay(generated_ids, delivered_chars)

    def _replay(self, generated_ids: Sequence[int], delivered_chars: int) -> None:
        text = self.add(generated_ids)
        self.delivered = text[:delivered_chars]
        self._held = text[delivered_chars:] + self._held

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that may be shown now; it ends before a stop string. What follows one is not taken."""
        text = ""
        for token_id in token_ids:  # one by one, so that it makes no difference how they come
            if self.stopped:
                break
            text += self._filter_stop(self._decode(token_id))
            self.count += 1
        if self.stopped:  # only where a continuation had come so far is anything left
            text, self._held = text + self._held, ""
        return text

    def finish(self) -> str:
        """What was held back, at the end of the tokens."""
        if self.stopped:
            return self.add(())
        text = self._open_text()[self._shown :]
        self._window, self._settled, self._context, self._shown = [], 0, "", 0
        rest, self._held = self._cut_at_stop(self._held + text), ""
        return rest

    def _decode(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._open_text()
        start, end = self._shown, max(self._shown, len(text.rstrip(REPLACEMENT)))
        if text and end == len(text):
            self._settle()
        elif len(self._window) - self._settled > MAX_OPEN:
            end = max(start, len(text) - self._shorten(text))
        else:
            self._shown = end
        return text[start:end]

    def _text_of(self, token_ids: Sequence[int]) -> str:
        return self._codec.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _open_text(self) -> str:
        """The text behind the context."""
        text = self._text_of(self._window)
        if text.startswith(self._context):
            return text[len(self._context) :]
        # In a vocabulary that falls back to bytes, open ones spoil the complete ones before them, which were given out.
        return self._text_of(self._window[self._settled :])

    def _settle(self) -> None:
        """All was given out: the tokens behind the context become the context."""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._context = self._text_of(self._window)
        self._shown = 0

    def _shorten(self, text: str) -> int:
        """Forget most of a window that does not settle; how many characters of its text are still held back."""
        if not text:  # special tokens that do not show
            del self._window[self._settled :]
            return 0
        self._window, self._settled, self._context = self._window[-KEPT_OPEN:], 0, ""
        kept = self._text_of(self._window)
        self._shown = len(kept.rstrip(REPLACEMENT))
        return len(kept) - self._shown

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
        """The text before the stop string that is complete first; of those that end together, before the longest."""
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if not found:
            return text
        self.stopped = True
        return text[: min(found)[1]]

    def _longest_stop_beginning(self, text: str) -> int:
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
