"""What a chat is made of: all that its commands look at and change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.attached import Attached, Ending
from samplerpool.chat.autosave import Autosave
from samplerpool.chat.console import Console
from samplerpool.chat.samples import to_sample
from samplerpool.chat.settings import Settings
from samplerpool.chat.transcript import Transcript
from samplerpool.chat.turns import Turn
from samplerpool.errors import SamplerPoolError, log_hint


@dataclass
class Chat:
    """One conversation over one console.

    Args:
        edit: lets the user change a text in an editor.
        gone: says, after a failed turn, why no further turn can succeed; ``None`` means that one can.

    ``ended`` is how the request for a turn ended, that turn beside it. ``stats`` are of all answers. ``own_files`` were
    written or loaded here, and may be written again; ``latest_file`` is what ``/save`` alone means. ``over`` becomes
    True at the end, ``gone_for_good`` when that is because no turn can succeed any more, ``any_failed`` when something
    went wrong.
    """

    console: Console
    transcript: Transcript
    settings: Settings
    attached: Attached
    autosave: Autosave
    edit: Callable[[str], str]
    gone: Callable[[], str | None] = lambda: None
    ended: tuple[Turn, Ending] | None = None
    stats: list[AnswerStats] = field(default_factory=list)
    own_files: set[Path] = field(default_factory=set)
    latest_file: Path | None = None
    over: bool = False
    gone_for_good: bool = False
    any_failed: bool = False

    @property
    def ending(self) -> Ending | None:
        """How the request for the last answer ended, if it was made in this chat and by what is attached now."""
        if self.ended is None or not self.transcript.turns or self.ended[0] is not self.transcript.turns[-1]:
            return None
        return self.ended[1]

    def keep(self) -> None:
        """Put the conversation as it is now on disk, unless nothing was said."""
        if self.transcript.turns or self.transcript.question or self.transcript.waiting:
            self.autosave.save(to_sample(self.transcript.everything, self.transcript.tools))

    def failed(self, error: Exception) -> None:
        """Say in one line what went wrong."""
        self.any_failed = True
        kind = "" if isinstance(error, SamplerPoolError) else f"{type(error).__name__}: "
        self.console.error(f"Error: {kind}{error}{log_hint(error)}")
