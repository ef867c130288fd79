"""Where the chat reads and writes: a terminal with line editing, a plain one, or streams."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.answer_view import AnswerView, Surface, ViewOptions
from samplerpool.chat.completion import CompletionSources
from samplerpool.chat.encodings import tolerate_any_text, what_is_missing
from samplerpool.chat.plain_input import line_reader
from samplerpool.chat.statusline import StatusFacts
from samplerpool.chat.styles import Line, Palette, visible

PROMPT = "User: "
LABEL = "Assistant: "


class Console:
    """One way in and out. Answers go to ``stdout``, whatever is said about them to ``stderr``.

    Args:
        read_line: is given what stands there to be edited, and returns the next message, with or without its line end.
            Raises ``EOFError`` when there are no more, ``KeyboardInterrupt`` for Ctrl-C.
        interactive: someone is typing: Ctrl-C and failed turns do not end the chat, notices are shown.
        palette: styles to draw with; by default those that the terminal has.

    Attributes:
        view: how answers are shown; may be changed between them.
        last_stats: of the latest answer; ``None`` when there is none any more.
        last_reasoning: of the latest answer that was shown, whether folded or not.
    """

    def __init__(
        self,
        read_line: Callable[[str], str],
        stdout: TextIO,
        stderr: TextIO,
        *,
        interactive: bool,
        palette: Palette | None = None,
    ) -> None:
        self._read_line = read_line
        self.interactive = interactive
        self.view = ViewOptions()
        self.last_stats: AnswerStats | None = None
        self.last_reasoning = ""
        self._stdout = stdout
        self._stderr = stderr
        self._terminal = stdout.isatty()
        self._palette = palette or Palette.of(terminal=self._terminal)
        self._open_view: AnswerView | None = None
        self._typing: list[Any] | None = None
        for stream in (stdout, stderr):
            tolerate_any_text(stream)

    @property
    def columns(self) -> int:
        """The screen's width now; 80 where there is none."""
        try:
            return os.get_terminal_size(self._stdout.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read(self, default: str = "") -> str:
        """The next message.

        Args:
            default: stands there to be edited, where someone is typing.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: Ctrl-C at an empty line.
        """
        return self._read_line(default)

    def choose(self, title: str, options: Sequence[str]) -> int | None:
        """Let whoever is typing choose one of several.

        Returns:
            Its index; ``None`` if none was chosen, or nobody is typing.
        """
        if not self.interactive or not options:
            return None
        numbered = [[("bold", f"{number:>3}"), ("", f"  {option}")] for number, option in enumerate(options, 1)]
        self.show([[("", title)], *numbered])
        while True:
            self._send(f"1 to {len(options)}, or Enter for none: ")
            try:
                typed = input().strip()
            except (EOFError, KeyboardInterrupt):
                self._send("\n")
                return None
            if not typed:
                return None
            if typed.isdecimal() and 1 <= int(typed) <= len(options):
                return int(typed) - 1

    # ---- answers ----------------------------------------------------------------------------------------------------

    def begin_answer(
        self,
        *,
        reasoning_open: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
        tokens: Callable[[], int] | None = None,
    ) -> None:
        """Label the answer that follows, where someone looks on.

        Args:
            reasoning_open: it begins inside the model's reasoning, since the prompt has opened that.
            tags: what the model writes around parts of its answers: an opening and a closing tag for ``think`` and for
                ``tool_call``.
            tokens: how many have come so far; shown while the reasoning is folded.
        """
        if self.interactive and self._terminal:
            self._hide_typing()
            surface = Surface(self._send, self._palette, lambda: self.columns, LABEL)
            self._open_view = AnswerView(surface, self.view, tags=tags, reasoning_open=reasoning_open, tokens=tokens)

    def begin_reasoning(self) -> None:
        """The answer turns out to begin inside its reasoning; to be called before its first text."""
        if self._open_view is not None:
            self._open_view.begin_reasoning()

    def aside(self, text: str) -> None:
        """Say something about the answer that is being shown, on a line of its own."""
        if self._open_view is not None:
            self._open_view.aside(" ".join(text.split()))
        else:
            self.notice(text)

    def write(self, text: str) -> None:
        """Show a piece of the answer at once."""
        if self._open_view is not None:
            self._open_view.write(text)
        else:
            self._send(visible(text) if self._terminal else text)

    def end_answer(self, stats: AnswerStats | None = None) -> None:
        """End the answer's last line, and say in one more how it went, where someone looks on."""
        self._show_typing()
        answer, self._open_view = self._open_view, None
        if answer is not None:
            answer.end()
            self.last_reasoning = answer.reasoning
        else:
            self._send("\n")
        if stats is not None:
            self.last_stats = stats
            if self.interactive:
                self.show([[("dim", stats.line())]])

    def leave_answer(self) -> None:
        """End an answer that is still open, lest the terminal stay as answers need it."""
        if self._open_view is not None:
            self.end_answer()
        self._show_typing()

    def _hide_typing(self) -> None:
        """What is typed ahead is for the next prompt; it must not show in the middle of the answer."""
        with contextlib.suppress(termios.error, ValueError, OSError):
            settings = termios.tcgetattr(sys.stdin.fileno())
            self._typing = [*settings]
            settings[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, settings)

    def _show_typing(self) -> None:
        if self._typing is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._typing)
            self._typing = None

    # ---- saying -----------------------------------------------------------------------------------------------------

    def notice(self, text: str) -> None:
        """Say something to whoever is typing."""
        if self.interactive:
            self.error(text)

    def error(self, text: str) -> None:
        """Say what went wrong, in one line."""
        _say(self._stderr, visible(" ".join(text.split())) + "\n")

    def show(self, lines: Iterable[Line]) -> None:
        """Show some lines that are no part of an answer; where the output is for answers only, beside it."""
        if self.interactive and self._terminal:
            self._send(self._palette.paint_lines(lines))
        else:
            _say(self._stderr, Palette().paint_lines(lines))

    def _send(self, text: str) -> None:
        _say(self._stdout, text)


def open_console(
    history_folder: Path,
    *,
    sources: CompletionSources | None = None,
    look: Callable[[], StatusFacts] | None = None,
) -> Console:
    """The console of this process: with line editing if both its ends are a terminal that can do it.

    Otherwise each line of standard input is one message, and standard output carries the answers and nothing else.

    Args:
        history_folder: where what was typed is kept.
        sources: names for completion.
        look: what the status line says of the workers; called on another thread, now and then.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return plain_console(sys.stdin, sys.stdout, sys.stderr)
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        console = plain_console(sys.stdin, sys.stdout, sys.stderr)
    else:
        console = _editing_console(history_folder, sources or CompletionSources(), look)
    if missing := what_is_missing(sys.stdout.encoding):
        console.notice(missing)
    return console


def _editing_console(
    history_folder: Path, sources: CompletionSources, look: Callable[[], StatusFacts] | None
) -> Console:
    from samplerpool.chat.terminal import TerminalReader  # prompt_toolkit costs 0.1 s that a pipe need not pay

    def adjusted(facts: StatusFacts) -> StatusFacts:
        stats = console.last_stats
        if stats is None:
            return facts
        used = (stats.prompt_tokens or 0) + (stats.completion_tokens or 0)
        return replace(facts, tokens_per_s=stats.tokens_per_s, context_used=used or None)

    reader = TerminalReader(PROMPT, history_folder, sources=sources, look=look, adjust=adjusted)
    console = Console(reader, sys.stdout, sys.stderr, interactive=True)
    return console


def plain_console(stdin: TextIO | None, stdout: TextIO, stderr: TextIO) -> Console:
    """A console that takes one message a line, or none at all."""
    interactive = stdin is not None and stdin.isatty()
    return Console(plain_reader(stdin, stderr), stdout, stderr, interactive=interactive)


def plain_reader(stdin: TextIO | None, stderr: TextIO) -> Callable[[str], str]:
    """A function that reads one message a line, with a prompt on ``stderr`` for whoever types it."""
    if stdin is not None:
        tolerate_any_text(stdin)
        if stdin.isatty():
            return line_reader(stdin.fileno(), stdin.encoding, lambda text: _say(stderr, text), PROMPT)

    def read_line(_default: str) -> str:
        line = stdin.readline() if stdin else ""
        if not line:
            raise EOFError
        return line

    return read_line


def _say(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def discard_output() -> None:
    """Send what is still buffered for a reader that has gone nowhere, so that the interpreter can end in peace."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
