"""A chat with the workers behind a ``SyncSampler``, on this process's terminal or pipes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from samplerpool.chat.answer_view import ViewOptions
from samplerpool.chat.attached import Attached
from samplerpool.chat.autosave import CONVERSATIONS
from samplerpool.chat.console import Console, open_console, plain_console, plain_reader
from samplerpool.chat.encodings import tolerate_any_text
from samplerpool.chat.json_console import JsonConsole
from samplerpool.chat.repl import Repl
from samplerpool.chat.surroundings import completion_sources, status_facts
from samplerpool.chat.transcript import Transcript
from samplerpool.config.folders import state_folder
from samplerpool.errors import UsageError
from samplerpool.samplers.sync_sampler import SyncSampler


def converse(
    sampler: SyncSampler,
    params: Mapping[str, Any],
    *,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    question: str | None = None,
    form: str | None = None,
    view: ViewOptions | None = None,
) -> int:
    """Chat until the user leaves, or the input ends.

    Args:
        params: sampling parameters of every turn.
        system: the system prompt.
        template_options: keyword arguments for the chat template.
        question: answer just this, on standard output, instead.
        form: write answers as JSON lines, ``json_console.FORMS``.
        view: how answers are shown on a terminal, at the beginning.

    Returns:
        The exit code: 0; 1 if the worker is gone for good, or a question or command without a terminal failed; 130 if
        one of those was interrupted.
    """
    transcript = Transcript(system)

    def attached() -> Attached:  # /attach changes it
        return repl.attached

    console = _console(attached, transcript, asked=question is not None, form=form)
    console.view = view or console.view
    repl = Repl(
        sampler,
        console,
        transcript,
        params,
        lambda: why_gone(sampler),
        connect=SyncSampler.connect,
        conversations=state_folder() / CONVERSATIONS if console.interactive else None,
        template_options=template_options,
    )
    return repl.run() if question is None else repl.once(question)


def _console(attached: Callable[[], Attached], transcript: Transcript, *, asked: bool, form: str | None) -> Console:
    if form is not None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as JSON is, whatever the locale
        return JsonConsole(
            plain_reader(None if asked else sys.stdin, sys.stderr),
            sys.stdout,
            sys.stderr,
            form=form,
            latest=lambda: attached().sampler.last,
            conversation=lambda: transcript.messages,
        )
    if asked:
        return plain_console(None, sys.stdout, sys.stderr)
    return open_console(
        state_folder(),
        sources=completion_sources(attached, lambda: transcript.open_calls),
        look=lambda: status_facts(attached().sampler.workers(), attached().worker),
    )


def one_message(once: str | None, stdin: TextIO | None) -> str | None:
    """The single message that is to be answered: of ``--once``, of a document, or the one and then the other.

    Args:
        once: its text, or None.
        stdin: where the document is read to its end; None for no document.

    Returns:
        The message; None if neither is given.

    Raises:
        UsageError: there is nothing to read.
    """
    if stdin is None:
        return once
    if stdin.isatty():
        print("Reading the message; it ends with Ctrl-D at the beginning of a line.", file=sys.stderr)
    tolerate_any_text(stdin)
    document = stdin.read()
    if not document.strip():
        raise UsageError("--stdin sends what comes in on standard input, and nothing came.")
    return document if once is None else f"{once}\n\n{document}"


def why_gone(sampler: SyncSampler) -> str | None:
    """Why no worker can answer any more, or None while one can, or will."""
    workers = sampler.connection.workers()
    if any(worker.up or worker.coming for worker in workers):
        return None
    return "no worker is left. " + " ".join(worker.down_reason for worker in workers)
