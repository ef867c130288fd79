"""What a line typed into the chat means, and which commands there are. Pure: texts in, commands out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Completes = Literal["", "command", "param", "path", "worker", "pool", "adapter", "tool"]


@dataclass(frozen=True)
class CommandSpec:
    """One command of the chat.

    Args:
        name: as it is typed after the slash.
        argument: what follows it, for the help: ``NAME`` is needed, ``[NAME]`` may be left out; empty for nothing.
        help: one line for ``/help``.
        completes: what the argument is of, for completion; empty for what only the user knows.
    """

    name: str
    argument: str
    help: str
    completes: Completes = ""

    @property
    def usage(self) -> str:
        """As it is typed: ``/set NAME VALUE``."""
        return f"/{self.name} {self.argument}".rstrip()


_TABLE = (
    CommandSpec("help", "[COMMAND]", "Show all commands, or how one is used.", "command"),
    CommandSpec("system", "[TEXT]", "Show the system prompt, or set it; /unset system removes it."),
    CommandSpec("set", "NAME VALUE", "Set a sampling parameter for the turns that follow.", "param"),
    CommandSpec("unset", "NAME", "Take back a parameter, or system, template, tools, prefill or files.", "param"),
    CommandSpec("params", "", "Show the sampling parameters, and which of them were set."),
    CommandSpec(
        "template", "[NAME VALUE]", "Show arguments for the chat template, or set one: /template enable_thinking false."
    ),
    CommandSpec("retry", "[SEED]", "Answer the last question again, with another seed or this one."),
    CommandSpec("undo", "", "Take back the last question and its answer."),
    CommandSpec("swap", "", "Put the answer before /retry or /compare in the place of the last one."),
    CommandSpec("edit", "", "Open the last question in $VISUAL or $EDITOR, and ask it again."),
    CommandSpec("continue", "", "Go on with an answer that was stopped or cut off."),
    CommandSpec("prefill", "[TEXT]", "Show or set how the next answer begins; in double quotes with its spaces."),
    CommandSpec(
        "save", "[FILE]", "Save the conversation as JSON, a v1 sample; without FILE in the same one again.", "path"
    ),
    CommandSpec("load", "[FILE]", "Go on with a saved conversation; without FILE with the last one of all.", "path"),
    CommandSpec("export", "FILE", "Write the conversation as Markdown.", "path"),
    CommandSpec("file", "PATH", "Put a text file in front of the next message.", "path"),
    CommandSpec("image", "PATH", "Put an image in front of the next message, where the model takes images.", "path"),
    CommandSpec("tools", "[FILE]", "Show the tools on offer, or offer those of a JSON file.", "path"),
    CommandSpec(
        "tool", "[NAME] RESULT", "Answer the tool call of the last answer, the first or the named one.", "tool"
    ),
    CommandSpec("reasoning", "[HOW]", "Show reasoning full, folded or off from now on; alone: show the last one."),
    CommandSpec("markdown", "[on|off]", "Draw Markdown in answers, or show it as it was written."),
    CommandSpec("raw", "", "Show the exact prompt that the model sees, its special tokens, and the token ids."),
    CommandSpec("logprobs", "[N|off]", "Colour the last answer's tokens by probability; N: with alternatives."),
    CommandSpec("tokens", "", "Show the last answer token by token, and how full the context is."),
    CommandSpec("stats", "", "Show times and tokens of this chat's answers."),
    CommandSpec("workers", "", "Show the pool's workers: model, state, queue."),
    CommandSpec(
        "attach", "[POOL|WORKER]", "Talk to another pool, or to this worker only; alone: to all again.", "pool"
    ),
    CommandSpec("compare", "A B", "Answer the last question with two workers or adapters, side by side.", "adapter"),
    CommandSpec("keep", "FILE", "Append the conversation to a file for training (JSONL, v1 samples).", "path"),
    CommandSpec("prefer", "FILE", "Append the answer and the one before /retry or /compare, as a pair.", "path"),
    CommandSpec("clear", "", "Start the conversation anew; the bare word does it, too."),
    CommandSpec("exit", "", "Leave; the bare word, /quit and Ctrl-D do it, too."),
)

COMMANDS: Mapping[str, CommandSpec] = {spec.name: spec for spec in _TABLE}
"""All commands by name, in the order of the help."""

SYNONYMS: Mapping[str, str] = {"quit": "exit", "?": "help"}

BARE_WORDS = ("clear", "exit")
"""Commands that need no slash, if they are all that a message says."""


@dataclass(frozen=True)
class Nothing:
    """An empty line."""


@dataclass(frozen=True)
class Ask:
    """Put a question to the model."""

    text: str


@dataclass(frozen=True)
class Run:
    """Do what a command says: its name, as in ``COMMANDS``, and what was typed after it."""

    name: str
    argument: str = ""


@dataclass(frozen=True)
class Refused:
    """It looks like a command and is none, or is not used as it can be; ``why`` says what to do."""

    why: str


Command = Nothing | Ask | Run | Refused


def interpret(line: str) -> Command:
    """The command in a message: a bare word, or a slash and its name; anything else is a question.

    What begins with a slash never becomes a question by accident: two slashes stand for one.

    Text that is not valid Unicode (lone surrogates from a terminal in another encoding) is repaired, since it could
    not be sent.
    """
    text = line.encode("utf-8", "replace").decode("utf-8").strip()
    if not text:
        return Nothing()
    if text in BARE_WORDS:
        return Run(text)
    if text.startswith("//"):
        return Ask(text[1:])
    if text.startswith("/"):
        return _command(text)
    return Ask(text)


def _command(text: str) -> Run | Refused:
    typed = text[1:]
    word = "" if typed[:1].isspace() else "".join(typed.split(maxsplit=1)[:1])
    argument = typed[len(word) :].strip()
    name = SYNONYMS.get(word.lower(), word.lower())
    spec = COMMANDS.get(name)
    if spec is None:
        return Refused(_unknown(word, text))
    if argument and not spec.argument:
        return Refused(f"/{name} takes nothing after it, not {_short(argument)!r}; type just /{name}.")
    if not argument and spec.argument and not spec.argument.startswith("["):
        return Refused(f"/{name} needs something after it: {spec.usage}. {spec.help}")
    return Run(name, argument)


def _unknown(word: str, text: str) -> str:
    near = nearest(word)
    hint = f"the nearest one is {COMMANDS[near].usage}" if near else "/help shows all"
    first_line = text.split("\n", 1)[0]
    return (
        f"There is no command /{_short(word)}; {hint}. Nothing was sent. "
        f"To send a text that begins with a slash, type two: /{_short(first_line)}"
    )


def nearest(word: str) -> str:
    """The command that is most like a word: one that begins so, else the most similar; empty if none is."""
    wanted = word.lower()
    if not wanted or "/" in wanted:  # rather a path than a command
        return ""
    known = [*COMMANDS, *SYNONYMS]
    found = [name for name in known if name.startswith(wanted)] or difflib.get_close_matches(
        wanted, known, n=1, cutoff=0.3
    )
    return SYNONYMS.get(found[0], found[0]) if found else ""


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
