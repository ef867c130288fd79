"""The line below the prompt: who answers, how busy it is, how full the context is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from samplerpool.chat.widths import clipped, width

INTERVAL_S = 2.0
"""Seconds between two looks at the workers."""

SHORT_NAME = 10
"""Characters of a model's name that are kept before anything else is left out."""

_GAP = " · "


@dataclass(frozen=True)
class StatusFacts:
    """What a status line says; ``None`` for what is not known.

    Args:
        model: its name or path.
        worker: who answers, like ``worker 0`` or ``2 workers``.
        running, queued: requests there, of everybody.
        tokens_per_s: pace of the last answer.
        context_used, context_size: tokens of the conversation, and how many there may be.
    """

    model: str | None = None
    worker: str | None = None
    running: int | None = None
    queued: int | None = None
    tokens_per_s: float | None = None
    context_used: int | None = None
    context_size: int | None = None


def status_text(facts: StatusFacts, columns: int) -> str:
    """The line for a screen of some width: what matters least is left out first, and a long name is cut."""
    name = (facts.model or "").rstrip("/").rsplit("/", 1)[-1]
    by_weight = [_context(facts), _queue(facts), facts.worker or "", _pace(facts)]
    while by_weight and width(_joined(name[:SHORT_NAME], by_weight)) > columns:
        by_weight.pop()
    context, queue, worker, pace = [*by_weight, "", "", "", ""][:4]
    rest = [part for part in (worker, queue, pace, context) if part]
    room = columns - width(_GAP.join(["", *rest])) if rest else columns
    return _joined(clipped(name, max(0, room)), rest)


def _joined(name: str, parts: list[str]) -> str:
    return _GAP.join(part for part in (name, *parts) if part)


def _queue(facts: StatusFacts) -> str:
    if facts.running is None:
        return ""
    if not facts.running and not facts.queued:
        return "idle"
    return f"{facts.running} running" + (f", {facts.queued} waiting" if facts.queued else "")


def _pace(facts: StatusFacts) -> str:
    return "" if facts.tokens_per_s is None else f"{facts.tokens_per_s:.1f} tokens/s"


def _context(facts: StatusFacts) -> str:
    if facts.context_used is None:
        return "" if facts.context_size is None else f"context {facts.context_size}"
    if facts.context_size is None:
        return f"context {facts.context_used}"
    return f"context {facts.context_used}/{facts.context_size}"


class StatusPoller:
    """Looks at the workers again and again while a prompt is shown, on a thread of its own: a prompt never waits.

    Args:
        look: what the line is to say now; may take a while, or raise.
    """

    def __init__(self, look: Callable[[], StatusFacts]) -> None:
        self._look = look
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._round = 0
        self.facts = StatusFacts()

    def start(self, on_news: Callable[[], None]) -> None:
        """Begin to look.

        Args:
            on_news: called on the thread whenever ``facts`` have changed.
        """
        with self._lock:
            self._round += 1
            self._wake = threading.Event()
            arguments = (self._round, self._wake, on_news)
        threading.Thread(target=self._run, args=arguments, name="samplerpool-watch-status", daemon=True).start()

    def stop(self) -> None:
        """Look no more; a look in progress ends by itself, and says nothing."""
        with self._lock:
            self._round += 1
            self._wake.set()

    def _run(self, number: int, wake: threading.Event, on_news: Callable[[], None]) -> None:
        while True:
            try:
                facts = self._look()
            except Exception:  # the line may be without its facts, the prompt may not be without the chat
                facts = StatusFacts(model=self.facts.model)
            with self._lock:
                if number != self._round:
                    return
                changed, self.facts = facts != self.facts, facts
            if changed:
                on_news()
            if wake.wait(INTERVAL_S):
                return
