"""Where the chat reads and writes: a terminal with line editing, or plain streams."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

PROMPT = "User: "
LABEL = "Assistant: "

# A model must not be able to move the cursor, retitle the window or paste into the shell: what a terminal would obey
# is shown as a picture of it.
_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


class Console:
    """One way in and out. Answers go to ``stdout``, whatever is said about them to ``stderr``.

    Args:
        read_line: returns the next message, with or without its line end. Raises ``EOFError`` when there are no more,
            ``KeyboardInterrupt`` for Ctrl-C.
        interactive: someone is typing: Ctrl-C and failed turns do not end the chat, notices are shown.
    """

    def __init__(self, read_line: Callable[[], str], stdout: TextIO, stderr: TextIO, *, interactive: bool) -> None:
        self.read = read_line
        self.interactive = interactive
        self._stdout = stdout
        self._stderr = stderr
        self._terminal = stdout.isatty()
        self._typing: list[Any] | None = None
        for stream in (stdout, stderr):
            tolerate_any_text(stream)

    def begin_answer(self) -> None:
        """Label the answer that follows, where someone looks on."""
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
        self._stdout.write(text.translate(_VISIBLE) if self._terminal else text)
        self._stdout.flush()

    def end_answer(self) -> None:
        """End the answer's last line."""
        if self._typing is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._typing)
            self._typing = None
        self.write("\n")

    def notice(self, text: str) -> None:
        """Say something to whoever is typing."""
        if self.interactive:
            self.error(text)

    def error(self, text: str) -> None:
        """Say what went wrong, in one line."""
        self._stderr.write(" ".join(text.split()).translate(_VISIBLE) + "\n")
        self._stderr.flush()


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
    tolerate_any_text(sys.stdin)
    return plain_console(sys.stdin, sys.stdout, sys.stderr)


def plain_console(stdin: TextIO | None, stdout: TextIO, stderr: TextIO) -> Console:
    """A console that takes one message a line, or none at all."""
    interactive = stdin is not None and stdin.isatty()

    def read_line() -> str:
        if interactive:
            stderr.write(PROMPT)
            stderr.flush()
        line = stdin.readline() if stdin else ""
        if not line:
            raise EOFError
        return line

    return Console(read_line, stdout, stderr, interactive=interactive)


def discard_output() -> None:
    """Send what is still buffered for a reader that has gone nowhere, so that the interpreter can end in peace."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
