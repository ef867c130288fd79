"""An answer on a terminal while it streams: reasoning dimmed or folded, tool calls as such, Markdown on request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from samplerpool.chat.markdown import MarkdownStream
from samplerpool.chat.styles import Palette, visible
from samplerpool.chat.widths import clipped
from samplerpool.data.segments import Kind, Segment, Segmenter

ReasoningView = Literal["full", "folded", "off"]
REASONING_VIEWS: tuple[ReasoningView, ...] = ("full", "folded", "off")

SHORT_CALL = 60
"""Characters of a tool call's arguments that are shown in one line."""
TICK_S = 0.1
"""Seconds between two drawings of a line that counts."""


@dataclass
class ViewOptions:
    """How answers are shown; may be changed between them.

    Args:
        reasoning: ``full``; ``folded`` into one line that counts; ``off``: not at all.
        markdown: draw Markdown rather than show it as it was written.
    """

    reasoning: ReasoningView = "full"
    markdown: bool = False


@dataclass(frozen=True)
class Surface:
    """What a view draws on.

    Args:
        write: sends text to the terminal at once.
        palette: styles that the terminal has.
        columns: the terminal's width now; it may change at any time.
        label: stands on the line where the answer begins.
        clock: seconds, for what counts them.
    """

    write: Callable[[str], None]
    palette: Palette
    columns: Callable[[], int]
    label: str
    clock: Callable[[], float] = field(default=time.monotonic)


class AnswerView:
    """Shows one answer.

    Args:
        surface: the terminal.
        options: how it is shown.
        tags, reasoning_open: as for ``Segmenter``.
        tokens: how many have come so far, where that is known.
    """

    def __init__(
        self,
        surface: Surface,
        options: ViewOptions,
        *,
        tags: Mapping[str, Sequence[str]] | None = None,
        reasoning_open: bool = False,
        tokens: Callable[[], int] | None = None,
    ) -> None:
        self._surface = surface
        self._options = options
        self._tags = tags
        self._segmenter = Segmenter(tags, reasoning_open=reasoning_open)
        self._markdown = MarkdownStream(surface.columns())
        self._tokens = tokens
        self._shown: Kind | None = None  # kind of what was shown last
        self._line = surface.label  # what stands on the cursor's line, as far as it is redrawn with it
        self._at_line_start = False
        self._counting: _Counter | None = None
        self._reasoning: list[str] = []
        surface.write(surface.palette.paint("label", surface.label))

    @property
    def reasoning(self) -> str:
        """The reasoning that has come, shown or not."""
        return "".join(self._reasoning)

    def begin_reasoning(self) -> None:
        """It begins inside the reasoning, as is known only now; nothing was written yet."""
        self._segmenter = Segmenter(self._tags, reasoning_open=True)

    def aside(self, text: str) -> None:
        """Say something about the answer on a line of its own; the answer goes on below."""
        self._stop_counting()
        self._raw("" if self._at_line_start else "\n")
        self._paint("dim", f"{text}\n")

    def write(self, text: str) -> None:
        """The answer goes on with this text."""
        for segment in self._segmenter.feed(text):
            self._segment(segment)
        if self._counting is not None:
            self._tick()
        elif self._segmenter.inside == "tool_call" or self._hides(self._segmenter.inside):
            self._count(self._segmenter.inside)

    def end(self) -> None:
        """The answer is over, whether it was finished or stopped; the cursor is at the beginning of a line then."""
        for segment in self._segmenter.end():
            self._segment(segment)
        self._stop_counting()
        self._draw_text(self._markdown.end())
        if not self._at_line_start:
            self._raw("\n")
        if self._surface.palette.attributes:
            self._surface.write("\x1b[0m")  # a Ctrl-C may have come between a style and its end

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _segment(self, segment: Segment) -> None:
        if segment.kind == "reasoning":
            self._reasoning.append(segment.text)
            if self._options.reasoning != "full":
                self._count("reasoning")
                return
        self._stop_counting()
        if segment.kind != self._shown or segment.kind == "tool_call":
            self._part(segment.kind)
        if segment.kind == "tool_call":
            self._tool_call(segment.text)
        elif segment.kind == "reasoning":
            self._paint("dim", segment.text)
        elif self._options.markdown:
            self._draw_text(self._markdown.feed(segment.text))
        else:
            self._paint("", segment.text)

    def _hides(self, kind: Kind) -> bool:
        return kind == "reasoning" and self._options.reasoning != "full"

    def _part(self, kind: Kind) -> None:
        """Begin a part of another kind: below the one before, with an empty line between."""
        if self._shown == "text":
            self._draw_text(self._markdown.end())
            self._markdown = MarkdownStream(self._surface.columns())
        if self._shown is not None:
            self._raw("\n" if self._at_line_start else "\n\n")
        if not self._surface.palette.attributes and (kind == "reasoning" or self._shown == "reasoning"):
            self._raw("(thinking) " if kind == "reasoning" else "(answer) ")  # where nothing can be dimmed
        self._shown = kind

    def _tool_call(self, text: str) -> None:
        call = json.loads(text)
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        if len(arguments) > SHORT_CALL:
            arguments = json.dumps(call["arguments"], ensure_ascii=False, indent=2)
        self._paint("warn", "calls ")
        self._paint("bold", call["name"])
        self._paint("code", f" {arguments}")

    def _draw_text(self, styled: Sequence[tuple[str, str]]) -> None:
        for style, text in styled:
            self._paint(style, text)

    # ---- a line that counts -----------------------------------------------------------------------------------------

    def _count(self, kind: Kind) -> None:
        """Say in one line what is going on, as long as nothing of it is to be seen."""
        if self._counting is not None:
            return
        if self._shown is not None:
            self._raw("\n" if self._at_line_start else "\n\n")
            self._shown = None
        now = self._surface.clock()
        self._counting = _Counter(kind, now, self._tokens() if self._tokens else 0)
        self._tick(first=True)

    def _tick(self, *, first: bool = False) -> None:
        counting, now = self._counting, self._surface.clock()
        if counting is None or not (first or now - counting.drawn_s >= TICK_S):
            return
        counting.drawn_s = now
        if self._surface.palette.attributes:
            self._redraw(f"{counting.doing} ... {self._so_far(counting)}")
        elif first:
            self._raw(f"{counting.doing} ...")

    def _so_far(self, counting: _Counter) -> str:
        seconds = f"{self._surface.clock() - counting.since_s:.1f} s"
        return f"{self._tokens() - counting.tokens} tokens, {seconds}" if self._tokens else seconds

    def _stop_counting(self) -> None:
        counting, self._counting = self._counting, None
        if counting is None:
            return
        folded = counting.kind == "reasoning" and self._options.reasoning == "folded"
        if not self._surface.palette.attributes:
            self._raw(f" {self._so_far(counting)}\n")
        elif folded:
            self._redraw(f"thought: {self._so_far(counting)}")
            self._raw("\n")
        else:
            self._redraw("")

    def _redraw(self, text: str) -> None:
        """Put another text behind what stands on the line."""
        surface = self._surface
        label = surface.palette.paint("label", self._line)
        shown = clipped(text, max(0, surface.columns() - len(self._line) - 1))
        surface.write(f"\r{label}{surface.palette.paint('dim', shown)}\x1b[K")

    # ---- output -----------------------------------------------------------------------------------------------------

    def _paint(self, style: str, text: str) -> None:
        if text:
            self._raw(self._surface.palette.paint(style, visible(text)), text)

    def _raw(self, drawn: str, text: str | None = None) -> None:
        self._line = ""
        self._at_line_start = (drawn if text is None else text).endswith("\n")
        self._surface.write(drawn)


@dataclass
class _Counter:
    """What a counting line counts: since when, and from how many tokens on."""

    kind: Kind
    since_s: float
    tokens: int
    drawn_s: float = 0.0

    @property
    def doing(self) -> str:
        return "thinking" if self.kind == "reasoning" else "calling a tool"
