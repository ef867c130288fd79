"""Line editing with prompt_toolkit: history, bracketed paste (a pasted text of many lines is one message), Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY_FILE = "chat_history"


class _ForgivingHistory(FileHistory):
    """A history file that may stop being writable at any time."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            pass


def terminal_reader(prompt: str, history_folder: Path) -> Callable[[str], str]:
    """A function that reads one message from the terminal, and is given what stands there to be edited.

    It raises ``EOFError`` for Ctrl-D, and ``KeyboardInterrupt`` for Ctrl-C at an empty prompt; elsewhere Ctrl-C clears
    what was typed.
    """
    session: PromptSession[str] = PromptSession(
        [("fg:ansidefault bold", prompt)],  # without a colour its last space would be drawn as a cursor movement
        history=_open_history(history_folder),
        key_bindings=_bindings(),
        enable_history_search=True,
    )
    return lambda default: session.prompt(default=default)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-c")
    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return bindings


def _open_history(folder: Path) -> History:
    path = folder / HISTORY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # questions are nobody else's business
        with path.open("a"):
            pass
    except OSError:
        return InMemoryHistory()
    return _ForgivingHistory(path)
