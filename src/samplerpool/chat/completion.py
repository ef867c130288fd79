"""What Tab offers in the chat: commands, parameters, file names and other things that commands take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samplerpool.chat.commands import COMMANDS
from samplerpool.config.sampling import PARAMS, bounds_of

MAX_FILES = 500
"""File names that are offered at most."""

Names = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Candidate:
    """One completion.

    Args:
        text: what takes the place of what was typed.
        replaces: characters before the cursor that it takes the place of.
        help: a line about it.
        label: how it is listed, where that is shorter than ``text``.
    """

    text: str
    replaces: int
    help: str = ""
    label: str = ""


@dataclass(frozen=True)
class CompletionSources:
    """Names that only the session knows, asked for when Tab is pressed.

    Args:
        names: for kinds of ``CommandSpec.completes`` (``worker``, ``pool``, ``adapter``, ``tool``), who is asked.
    """

    names: Mapping[str, Names] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        """Names of a kind; none if whoever knows them fails."""
        try:
            return [str(name) for name in self.names.get(kind, list)()]
        except Exception:  # a pool that has just gone; Tab must not end the chat
            return []


def candidates(before: str, sources: CompletionSources) -> list[Candidate]:
    """What can stand at the cursor.

    Args:
        before: the message up to the cursor.
    """
    if not before.startswith("/") or before.startswith("//") or "\n" in before:
        return []
    word, space, argument = before[1:].partition(" ")
    if not space:
        return _matching(word, ((spec.name, spec.help) for spec in COMMANDS.values()), ending=" ")
    spec = COMMANDS.get(word)
    if spec is None:
        return []
    return list(_arguments(spec.completes, word, argument, sources))


def _arguments(kind: str, command: str, argument: str, sources: CompletionSources) -> Iterator[Candidate]:
    if kind == "path":
        yield from _paths(argument)
    elif kind == "command":
        yield from _matching(argument, ((spec.name, spec.help) for spec in COMMANDS.values()))
    elif kind == "param":
        yield from _params(command, argument, sources)
    elif kind in ("", "tool") and " " in argument:
        return
    elif kind:
        kinds = {"pool": ("pool", "worker"), "adapter": ("worker", "adapter")}.get(kind, (kind,))
        word = argument.rsplit(" ", 1)[-1]
        yield from _matching(word, ((name, "") for each in kinds for name in sources.of(each)))


def _params(command: str, argument: str, sources: CompletionSources) -> Iterator[Candidate]:
    name, space, value = argument.partition(" ")
    if not space:
        named = ((each, _help_of(each)) for each in PARAMS if each != "num_return_sequences")
        yield from _matching(name, named, ending=" " if command == "set" else "")
    elif command == "set" and name in PARAMS:
        values = ("true", "false") if PARAMS[name].kind == "bool" else sources.of(name)
        yield from _matching(value, ((each, "") for each in values))


def _help_of(name: str) -> str:
    spec = PARAMS[name]
    bounds = bounds_of(spec)
    return f"{spec.help} ({bounds})" if bounds else spec.help


def _matching(typed: str, known: Iterable[tuple[str, str]], *, ending: str = "") -> list[Candidate]:
    return [
        Candidate(name + ending, len(typed), help, label=name) for name, help in known if name.startswith(typed.lower())
    ]


def _paths(typed: str) -> Iterator[Candidate]:
    """Files and folders; a folder's name ends in a slash, hidden ones are offered to whoever types their dot."""
    folder, beginning = os.path.split(typed)
    try:
        entries = sorted(os.scandir(Path(folder or ".").expanduser()), key=lambda entry: entry.name)
    except (OSError, RuntimeError, ValueError):
        return
    fitting = (e for e in entries if e.name.startswith(beginning) and (beginning or not e.name.startswith(".")))
    for entry, _ in zip(fitting, range(MAX_FILES), strict=False):
        name = f"{entry.name}/" if _is_folder(entry) else entry.name
        if name.isprintable():  # what is not could not be typed, and might command the terminal
            yield Candidate(name, len(beginning), label=name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
