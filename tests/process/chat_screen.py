"""A chat in a real pseudo-terminal, with a terminal emulator behind it: tests see what a person would see."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pexpect
import pyte

DEADLINE_S = 90.0
KEYS = {
    "enter": "\r",
    "alt-enter": "\x1b\r",
    "ctrl-c": "\x03",
    "ctrl-d": "\x04",
    "ctrl-r": "\x12",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "left": "\x1b[D",
    "home": "\x01",
    "backspace": "\x7f",
}
_BRACKETED_PASTE = 2004 << 5  # as pyte keeps a private mode


class ChatScreen:
    """A program in a terminal of some size.

    Args:
        command: program and arguments.
        environ: its environment.
        columns, rows: the size of the screen.
    """

    def __init__(self, command: list[str], environ: dict[str, str], columns: int = 80, rows: int = 24) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.001)
        self._screen.write_process_input = self.send  # a terminal answers when it is asked where its cursor is
        self._stream = pyte.Stream(self._screen)
        self._child: Any = pexpect.spawn(
            command[0], command[1:], env=environ, dimensions=(rows, columns), encoding="utf-8", codec_errors="replace"
        )
        self._child.delaybeforesend = None
        self.raw = ""

    # ---- doing ------------------------------------------------------------------------------------------------------

    def send(self, text: str) -> None:
        """Send text as it is."""
        self._child.send(text)

    def press(self, *keys: str) -> None:
        """Press keys of ``KEYS``, one after the other."""
        for key in keys:
            self.send(KEYS[key])

    def ask(self, question: str) -> None:
        """Type a question at the prompt, and Enter once it stands there."""
        self.at_prompt()
        self.send(question)
        if question:
            self.wait_until(lambda: self._before_cursor().endswith(question.splitlines()[-1][-20:]), question)
        self.press("enter")

    def paste(self, text: str) -> None:
        """Paste as a terminal does: in brackets if the program has asked for them."""
        self.read_on()
        bracketed = _BRACKETED_PASTE in self._screen.mode
        lines = text.replace("\n", "\r")
        self.send(f"\x1b[200~{lines}\x1b[201~" if bracketed else lines)

    def resize(self, columns: int, rows: int = 24) -> None:
        """Change the size of the screen; the program is told by a signal."""
        self._child.setwinsize(rows, columns)
        self._screen.resize(rows, columns)

    # ---- seeing -----------------------------------------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """The screen's lines down to the last one that is not empty, without blanks at their ends."""
        return _without_blank_end(self._screen.display)

    @property
    def everything(self) -> str:
        """What has scrolled away, and the screen."""
        scrolled = ["".join(_cells(line, self._screen.columns)).rstrip() for line in self._screen.history.top]
        return "\n".join([*scrolled, *self.lines])

    @property
    def cursor(self) -> tuple[int, int]:
        """Row and column of the cursor, from 0."""
        return self._screen.cursor.y, self._screen.cursor.x

    def style_of(self, text: str) -> Any:
        """How the first character of a text on the screen is drawn: ``fg``, ``bold``, ``reverse`` and so on."""
        for row, line in enumerate(self._screen.display):
            if (column := line.find(text)) >= 0:
                return self._screen.buffer[row][column]
        raise AssertionError(f"{text!r} is not on the screen:\n{self}")

    def read_on(self) -> bool:
        """Take in what the program has written; whether there was anything."""
        try:
            text = self._child.read_nonblocking(65536, timeout=0.02)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            return False
        self.raw += text
        self._stream.feed(text)
        return True

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Take in what the program writes until something holds of the screen; fails if it does not in time."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if not self.read_on() and time.monotonic() > deadline:
                raise AssertionError(f"not within {DEADLINE_S:g} s: {what}; the screen is\n{self}")

    def wait_for(self, *texts: str) -> None:
        """Wait until all of these texts stand on the screen."""
        self.wait_until(lambda: all(text in "\n".join(self.lines) for text in texts), f"{texts} on the screen")

    def wait_until_gone(self, text: str) -> None:
        """Wait until a text is no more on the screen."""
        self.wait_until(lambda: text not in "\n".join(self.lines), f"no {text!r} on the screen")

    def at_prompt(self) -> None:
        """Wait until the cursor stands behind an empty prompt."""
        self.wait_until(lambda: self._before_cursor() == "User: ", "the prompt")

    def exit_code(self) -> int:
        """Wait for the program's end; its exit code, or the signal that ended it as a negative number."""
        self.wait_until(lambda: not self.read_on() and not self._child.isalive(), "the program's end")
        while self.read_on():
            pass
        self._child.close()
        return int(self._child.exitstatus if self._child.signalstatus is None else -self._child.signalstatus)

    def kill(self, number: int) -> None:
        """Send the program a signal, and wait for its end."""
        self._child.kill(number)
        self.exit_code()

    def close(self) -> None:
        """End the program, if it still runs."""
        self._child.close(force=True)

    def __str__(self) -> str:
        return "\n".join(f"| {line}" for line in self.lines)

    def _before_cursor(self) -> str:
        row, column = self.cursor
        return "".join(_cells(self._screen.buffer[row], column))


@contextmanager
def chat_screen(
    *options: str, columns: int = 80, rows: int = 24, module: str = "samplerpool", **environ: str
) -> Iterator[ChatScreen]:
    """``samplerpool chat`` with these options in a terminal; variables of the environment may be given by name."""
    base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORTERM", "LANG")}
    env = {**base, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environ}
    command = [sys.executable, "-m", module, *(["chat"] if module == "samplerpool" else []), *options]
    screen = ChatScreen(command, env, columns, rows)
    try:
        yield screen
    finally:
        screen.close()


def _cells(line: Any, columns: int) -> list[str]:
    return [line[column].data for column in range(columns)]


def _without_blank_end(lines: list[str]) -> list[str]:
    kept = [line.rstrip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    return kept
