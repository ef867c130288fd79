"""Line editing with prompt_toolkit: history with search, messages of many lines, pastes, completion, a status line."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, Output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from samplerpool.chat.completion import CompletionSources, candidates
from samplerpool.chat.encodings import encodable
from samplerpool.chat.statusline import StatusFacts, StatusPoller, status_text
from samplerpool.chat.styles import Palette, visible

HISTORY_FILE = "chat_history"
BURST_S = 0.05
"""Seconds within which the next line of a paste comes; nobody types one so fast."""

_STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"})


class TerminalReader:
    """Reads messages from a terminal.

    Args:
        prompt: stands before each.
        history_folder: where what was typed is kept, for later sessions too.
        sources: names for completion.
        look: what the status line says, asked on another thread.
        adjust: completes what was looked up by what the chat itself knows; asked at each drawing.
    """

    def __init__(
        self,
        prompt: str,
        history_folder: Path,
        *,
        sources: CompletionSources,
        look: Callable[[], StatusFacts] | None = None,
        adjust: Callable[[StatusFacts], StatusFacts] = lambda facts: facts,
    ) -> None:
        self._adjust = adjust
        self._poller = StatusPoller(look) if look else None
        colours = Palette.of(terminal=True).colours
        self._session: PromptSession[str] = PromptSession(
            # Without a colour its last space would be drawn as a cursor movement.
            [("fg:ansidefault bold", prompt)],
            multiline=True,
            prompt_continuation=" " * len(prompt),
            history=_open_history(history_folder),
            key_bindings=_bindings(),
            enable_history_search=True,
            enable_suspend=True,
            enable_open_in_editor=True,
            completer=_ChatCompleter(sources),
            complete_in_thread=True,
            reserve_space_for_menu=6,
            bottom_toolbar=self._toolbar if look else None,
            style=_STYLE,
            color_depth=None if colours else ColorDepth.DEPTH_1_BIT,
            output=_quiet_output(),
        )

    def __call__(self, default: str) -> str:
        """The next message.

        Args:
            default: stands there to be edited.

        Raises:
            EOFError: Ctrl-D at an empty prompt.
            KeyboardInterrupt: Ctrl-C at an empty prompt; elsewhere it clears what was typed.
        """
        if self._poller is None:
            return self._session.prompt(default=default)
        self._poller.start(self._session.app.invalidate)
        try:
            return self._session.prompt(default=default)
        finally:
            self._poller.stop()

    def _toolbar(self) -> str:
        facts = self._adjust(self._poller.facts if self._poller else StatusFacts())
        output = get_app().output
        return encodable(visible(status_text(facts, output.get_size().columns - 1)), output.encoding())


class _ChatCompleter(Completer):
    def __init__(self, sources: CompletionSources) -> None:
        self._sources = sources

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        for each in candidates(document.text_before_cursor, self._sources):
            yield Completion(each.text, -each.replaces, display=each.label or each.text, display_meta=each.help)


class _QuietOutput(Vt100_Output):
    """The terminal, which is never asked where its cursor is: some do not answer, some answer into the next line."""

    @property
    def responds_to_cpr(self) -> bool:
        """Whether it may be asked."""
        return False

    def get_rows_below_cursor_position(self) -> int:
        """What is certain. While nothing at all is known, neither the status line nor a menu would be drawn."""
        return 1


def _quiet_output() -> Output:
    return _QuietOutput.from_pty(sys.stdout, os.environ.get("TERM"), ColorDepth.from_env())


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    editing = ~is_searching
    burst = _Burst()
    choosing = Condition(lambda: _chosen_completion(get_app().current_buffer.complete_state))

    @bindings.add("c-c", filter=editing)
    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @bindings.add("escape", "enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("enter", filter=editing & choosing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None  # it stands there already

    @bindings.add("enter", filter=editing & ~choosing)
    @bindings.add("c-j", filter=editing & ~choosing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if burst.goes_on(event):
            buffer.newline(copy_margin=False)
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    return bindings


def _chosen_completion(state: object) -> bool:
    return getattr(state, "current_completion", None) is not None


class _Burst:
    """Tells a paste from typing where the terminal does not mark pastes: its lines come faster than anybody types.

    The last line end of a paste sends nothing either, as in a terminal that marks pastes. So a pause within the paste
    cannot cut it in two.
    """

    def __init__(self) -> None:
        self._last_s = float("-inf")
        self._last_key: object = None  # of what was read together with the latest line end of a paste

    def goes_on(self, event: KeyPressEvent) -> bool:
        """Whether the line end that was just read is one of a paste."""
        queue = event.app.key_processor.input_queue
        together = event.key_sequence[-1] is self._last_key
        soon = time.monotonic() - self._last_s < BURST_S
        pasted = bool(queue) or together or soon or _readable(event.app.input.fileno())
        self._last_key = queue[-1] if queue else None
        self._last_s = time.monotonic() if pasted else float("-inf")
        return pasted


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.0)[0])


class _ForgivingHistory(FileHistory):
    """A history file that may stop being writable at any time."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            pass


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
