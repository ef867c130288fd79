"""Every conversation on disk while it goes on, so that a closed terminal costs nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

from samplerpool.data.json_text import to_json
from samplerpool.errors import UsageError
from samplerpool.wire.files import write_private

CONVERSATIONS = "conversations"
"""The folder's name."""

KEPT = 100
"""Conversations that stay; older ones are removed."""


class Autosave:
    """Keeps one conversation at a time in a file of its own, which only this user can read.

    Args:
        folder: of all conversations; None to keep none.
        note: gets a sentence when nothing can be kept any more. It is tried again at each ``save``.
        clock: seconds since the epoch, for names.
    """

    def __init__(
        self, folder: Path | None, note: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._note = note
        self._clock = clock
        self._failing = False
        self.path: Path | None = None

    def save(self, sample: dict[str, object]) -> None:
        """Keep the conversation as it is now; readers see the one before or this one, never a part."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path is None:
                self.path = self._new_path(self._folder)
            write_private(self.path, to_json(sample).decode())
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._note(f"This conversation is not kept: {self._folder} cannot be written ({error.strerror}).")
            self._failing = True

    def begin_another(self) -> None:
        """The next ``save`` is of another conversation; this one stays as it is."""
        self.path = None

    def latest(self) -> Path:
        """The latest conversation but the present one.

        Raises:
            UsageError: there is none.
        """
        found = [path for path in _conversations(self._folder) if path != self.path] if self._folder else []
        if not found:
            raise UsageError("No earlier conversation is kept here; /load FILE loads one that was saved.")
        return found[-1]

    def _new_path(self, folder: Path) -> Path:
        for old in _conversations(folder)[: -KEPT + 1]:
            with contextlib.suppress(OSError):
                old.unlink()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        names = (folder / f"{stamp}-{os.getpid()}-{number}.json" for number in itertools.count(1))
        return next(path for path in names if not path.exists())


def _conversations(folder: Path) -> list[Path]:
    """All of them, the one that changed last at the end."""
    dated: list[tuple[float, Path]] = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):  # another chat may just remove it
            dated.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(dated)]
