"""What the commands do: the table, and those that change the conversation and how it is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from samplerpool.chat import answering
from samplerpool.chat.actions_compare import compare
from samplerpool.chat.actions_files import export, file, image, keep, load, prefer, save, tools
from samplerpool.chat.actions_views import (
    help_,
    logprobs,
    markdown,
    params,
    raw,
    reasoning,
    stats,
    tokens,
    workers,
)
from samplerpool.chat.context import Chat
from samplerpool.chat.settings import Settings
from samplerpool.errors import UsageError

Action = Callable[[Chat, str], None]


def clear(chat: Chat, _argument: str) -> None:
    """Start anew; the conversation so far stays on disk."""
    chat.keep()
    chat.transcript.clear()
    chat.autosave.begin_another()
    chat.console.last_stats = None
    chat.console.notice("The conversation starts anew.")


def leave(chat: Chat, _argument: str) -> None:
    """Leave the chat."""
    chat.over = True


def system(chat: Chat, argument: str) -> None:
    """Show or set the system prompt."""
    if argument:
        chat.transcript.set_system(argument)
        chat.keep()
    now = chat.transcript.system
    chat.console.notice(f"System prompt: {now}" if now else "There is no system prompt; /system TEXT sets one.")


def set_(chat: Chat, argument: str) -> None:
    """Set a sampling parameter."""
    name, *value = argument.split(maxsplit=1)
    if not value:
        canonical = Settings.canonical(name)
        raise UsageError(f"/set {canonical} needs a value; /unset {canonical} takes it back.")
    canonical, held = chat.settings.set(name, _text_in(value[0]))
    chat.console.notice(f"{canonical} = {_as_typed(held)}")


def template(chat: Chat, argument: str) -> None:
    """Show what the chat template is told, or tell it something."""
    name, *value = argument.split(maxsplit=1)[:2] or [""]
    if not name:
        told = ", ".join(f"{each} = {_as_typed(held)}" for each, held in chat.settings.template.items())
        chat.console.notice(f"Arguments for the chat template: {told or 'none'}")
    elif not value or "\n" in value[0]:
        raise UsageError(f"/template {name} needs a value on the same line, as in /template enable_thinking false.")
    else:
        held = chat.settings.set_template(name, _text_in(value[0]))
        chat.console.notice(f"{name} = {_as_typed(held)}, for the chat template")


def unset(chat: Chat, argument: str) -> None:
    """Take something back that was set."""
    name = argument.split()[0].lower()
    transcript = chat.transcript
    takes: Mapping[str, Callable[[], None]] = {
        "system": lambda: transcript.set_system(None),
        "tools": lambda: setattr(transcript, "tools", None),
        "prefill": lambda: setattr(transcript, "prefill", ""),
        "files": transcript.blocks.clear,
        "template": chat.settings.template.clear,
    }
    if name in takes:
        takes[name]()
        chat.keep()
        chat.console.notice(f"{name}: none now")
    else:
        canonical = chat.settings.unset(name)
        chat.console.notice(f"{canonical} is the pool's again")


def retry(chat: Chat, argument: str) -> None:
    """Answer the last question once more."""
    transcript = chat.transcript
    changes: dict[str, Any] = {} if transcript.waiting else {"seed": None}
    if argument:
        once = Settings({})
        once.set("seed", argument)
        changes = once.params
    transcript.ask_again()
    answering.answer(chat, **changes)
    turn = transcript.turns[-1] if transcript.turns else None
    if turn and turn.earlier and turn.earlier["content"] == turn.answer["content"]:
        chat.console.notice("(the same answer; with a temperature above 0 another seed gives another one)")


def undo(chat: Chat, _argument: str) -> None:
    """Take the last question back."""
    text = chat.transcript.undo()
    chat.keep()
    chat.console.notice(f"Taken back: {_start_of(text)}")


def swap(chat: Chat, _argument: str) -> None:
    """Put the answer before the last ``/retry`` or ``/compare`` back."""
    chat.transcript.swap()
    chat.keep()
    chat.console.notice(f"The answer is now: {_start_of(chat.transcript.last_answer)}")


def edit(chat: Chat, _argument: str) -> None:
    """Change the last question in an editor, and ask it again."""
    if not chat.console.interactive:
        raise UsageError("/edit needs a terminal.")
    before = chat.transcript.last_question
    after = chat.edit(before).rstrip()
    if after in ("", before.rstrip()):
        chat.console.notice("The question stays as it was.")
        return
    chat.transcript.ask_instead(after)
    chat.console.notice(f"The question is now: {_start_of(after)}")
    answering.answer(chat)


def continue_(chat: Chat, _argument: str) -> None:
    """Lengthen the last answer."""
    answering.go_on(chat)


def prefill(chat: Chat, argument: str) -> None:
    """Show or set how the next answer begins."""
    if argument:
        chat.transcript.prefill = _text_in(argument)
    now = chat.transcript.prefill
    what = f"The next answer begins with {_as_typed(now)}" if now else "The next answer begins as the model likes"
    chat.console.notice(f"{what}.")


def tool(chat: Chat, argument: str) -> None:
    """Answer a tool call; when all have their results, the model goes on."""
    transcript = chat.transcript
    first, _, rest = argument.partition(" ")
    named = rest.strip() != "" and first in transcript.open_calls
    transcript.answer_call(rest.strip() if named else argument, first if named else None)
    if left := transcript.open_calls:
        chat.console.notice(f"Still to be answered: {', '.join(left)}.")
        return
    transcript.ask_with_results()
    answering.answer(chat)


def attach(chat: Chat, argument: str) -> None:
    """Talk to another pool, or one worker, or all of them again."""
    attached = chat.attached
    if not argument:
        attached.to_all()
        chat.console.notice("Attached to all workers.")
    elif argument.isdecimal():
        attached.to_worker(int(argument))
        chat.console.notice(f"Attached to worker {int(argument)} only; /attach alone is for all again.")
    else:
        attached.to_pool(argument)
        chat.ended = None
        models = sorted({facts.model for facts in attached.sampler.workers() if facts.model})
        chat.console.notice(f"Attached to {argument}{': ' if models else ''}{', '.join(models)}.")


ACTIONS: Mapping[str, Action] = {
    "help": help_,
    "system": system,
    "set": set_,
    "unset": unset,
    "params": params,
    "template": template,
    "retry": retry,
    "undo": undo,
    "swap": swap,
    "edit": edit,
    "continue": continue_,
    "prefill": prefill,
    "save": save,
    "load": load,
    "export": export,
    "file": file,
    "image": image,
    "tools": tools,
    "tool": tool,
    "reasoning": reasoning,
    "markdown": markdown,
    "raw": raw,
    "logprobs": logprobs,
    "tokens": tokens,
    "stats": stats,
    "workers": workers,
    "attach": attach,
    "compare": compare,
    "keep": keep,
    "prefer": prefer,
    "clear": clear,
    "exit": leave,
}
"""What each command of ``COMMANDS`` does. Errors are raised, and cost the command alone."""


def _as_typed(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text_in(argument: str) -> str:
    """The text that was typed; in double quotes it may begin and end with spaces, and hold JSON's escapes."""
    try:
        value = json.loads(argument)
    except ValueError:
        return argument
    return value if isinstance(value, str) else argument


def _start_of(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
