"""Where the chat reads and writes: a terminal with line editing, or plain streams."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import termios
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.styles import Line, Palette, visible

PROMPT = "User: "
LABEL = "Assistant: "


class Console:
    """One way in and out. Answers go to ``stdout``, whatever is said about them to ``stderr``.

    Args:
        read_line: is given what stands there to be edited, and returns the next message, with or without its line end.
            Raises ``EOFError`` when there are no more, ``KeyboardInterrupt`` for Ctrl-C.
        interactive: someone is typing: Ctrl-C and failed turns do not end the chat, notices are shown.
    """

    def __init__(self, read_line: Callable[[str], str], stdout: TextIO, stderr: TextIO, *, interactive: bool) -> None:
        self._read_line = read_line
        self.interactive = interactive
        self._stdout = stdout
        self._stderr = stderr
        self._terminal = stdout.isatty()
        self._palette = Palette.of(terminal=self._terminal)
        self._typing: list[Any] | None = None
        for stream in (stdout, stderr):
            tolerate_any_text(stream)

    def read(self, default: str = "") -> str:
        """The next message.

        Args:
            default: stands there to be edited, where someone is typing.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: Ctrl-C at an empty line.
        """
        return self._read_line(default)

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
            self.write(LABEL)

    def _hide_typing(self) -> None:
        """What is typed ahead is for the next prompt; it must not show in the middle of the answer."""
        with contextlib.suppress(termios.error, ValueError, OSError):
            settings = termios.tcgetattr(sys.stdin.fileno())
            self._typing = [*settings]
            settings[3] &= ~termios.ECHO
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, settings)

    def write(self, text: str) -> None:
        """Show a piece of the answer at once."""
        self._stdout.write(visible(text) if self._terminal else text)
        self._stdout.flush()

    def end_answer(self, stats: AnswerStats | None = None) -> None:
        """End the answer's last line, and say in one more how it went, where someone looks on."""
        if self._typing is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._typing)
            self._typing = None
        self.write("\n")
        if stats is not None and self.interactive:
            self.show([[("dim", stats.line())]])

    def notice(self, text: str) -> None:
        """Say something to whoever is typing."""
        if self.interactive:
            self.error(text)

    def error(self, text: str) -> None:
        """Say what went wrong, in one line."""
        self._stderr.write(visible(" ".join(text.split())) + "\n")
        self._stderr.flush()

    def show(self, lines: Iterable[Line]) -> None:
        """Show whoever is typing some lines that are no part of an answer."""
        self._stdout.write(self._palette.paint_lines(lines))
        self._stdout.flush()

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
            self._stdout.write(f"1 to {len(options)}, or Enter for none: ")
            self._stdout.flush()
            try:
                typed = input().strip()
            except (EOFError, KeyboardInterrupt):
                self.show([[]])
                return None
            if not typed:
                return None
            if typed.isdecimal() and 1 <= int(typed) <= len(options):
                return int(typed) - 1


def tolerate_any_text(stream: TextIO) -> None:
    """Let characters that a stream's encoding lacks (emoji in an ASCII locale) become ``?`` rather than an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def open_console(history_folder: Path) -> Console:
    """The console of this process: with line editing if both its ends are a terminal.

    Otherwise each line of standard input is one message, and standard output carries the answers and nothing else.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        from samplerpool.chat.terminal import terminal_reader  # prompt_toolkit costs 0.2 s that a pipe need not pay

        return Console(terminal_reader(PROMPT, history_folder), sys.stdout, sys.stderr, interactive=True)
    return plain_console(sys.stdin, sys.stdout, sys.stderr)


def plain_console(stdin: TextIO | None, stdout: TextIO, stderr: TextIO) -> Console:
    """A console that takes one message a line, or none at all."""
    interactive = stdin is not None and stdin.isatty()
    return Console(plain_reader(stdin, stderr), stdout, stderr, interactive=interactive)


def plain_reader(stdin: TextIO | None, stderr: TextIO) -> Callable[[str], str]:
    """A function that reads one message a line, with a prompt on ``stderr`` for whoever types it."""
    if stdin is not None:
        tolerate_any_text(stdin)

    def read_line(_default: str) -> str:
        if stdin is not None and stdin.isatty():
            stderr.write(PROMPT)
            stderr.flush()
        line = stdin.readline() if stdin else ""
        if not line:
            raise EOFError
        return line

    return read_line


def discard_output() -> None:
    """Send what is still buffered for a reader that has gone nowhere, so that the interpreter can end in peace."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
