"""A text in the user's own editor."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from samplerpool.errors import UsageError

FALLBACKS = ("nano", "vi")
Edit = Callable[[str], str]


def editor_command(environ: Mapping[str, str], found: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The command of the editor: ``$VISUAL``, else ``$EDITOR``, else what is mostly there.

    Raises:
        UsageError: there is none, or what the variable says is no command.
    """
    for variable in ("VISUAL", "EDITOR"):
        if wanted := environ.get(variable, "").strip():
            try:
                return shlex.split(wanted)
            except ValueError as error:
                raise UsageError(f"${variable} is {wanted!r}, which is no command: {error}.") from None
    for name in FALLBACKS:
        if found(name):
            return [name]
    raise UsageError("There is no editor; set $EDITOR to the command of one.")


def edit(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """Let the user change a text.

    Returns:
        The text as it was saved, without blank lines at its end.

    Raises:
        UsageError: no editor, or it failed.
    """
    command = editor_command(environ)
    handle, name = tempfile.mkstemp(prefix="question-", suffix=".md")  # nobody else can read it
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        try:
            with _ctrl_c_left_to_the_editor():
                code = subprocess.run([*command, name], check=False).returncode
        except OSError as error:
            raise UsageError(f"The editor {command[0]!r} cannot be started: {error.strerror}.") from None
        if code != 0:
            raise UsageError(f"The editor {command[0]!r} ended with code {code}; nothing was changed.")
        return path.read_text(encoding="utf-8", errors="replace").rstrip()
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _ctrl_c_left_to_the_editor() -> Iterator[None]:
    """Ctrl-C goes to all that share a terminal. In an editor it is a key like others, and here it would end the editor
    with all that was typed. A function that does nothing is not handed down to it, as ignoring the signal would be."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
