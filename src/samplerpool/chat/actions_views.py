"""Commands that show something."""

from __future__ import annotations

import shutil

from samplerpool.chat import views
from samplerpool.chat.attached import Ending
from samplerpool.chat.commands import COMMANDS, nearest
from samplerpool.chat.context import Chat
from samplerpool.chat.probabilities import show_probabilities
from samplerpool.errors import UsageError


def terminal_width() -> int:
    """Cells of a line; 80 where there is no terminal."""
    return shutil.get_terminal_size().columns


def help_(chat: Chat, argument: str) -> None:
    """Show all commands, or one."""
    name = argument.removeprefix("/").lower()
    if not name:
        chat.console.show(views.help_lines(terminal_width()))
    elif name in COMMANDS:
        chat.console.show(views.command_lines(COMMANDS[name]))
    else:
        near = nearest(name)
        hint = f"the nearest one is /{near}" if near else "/help shows all"
        raise UsageError(f"There is no command /{name}; {hint}.")


def params(chat: Chat, _argument: str) -> None:
    """Show the sampling parameters."""
    chat.console.show(views.param_lines(chat.settings.shown(chat.attached.defaults)))


def stats(chat: Chat, _argument: str) -> None:
    """Show times and tokens."""
    if not chat.stats:
        raise UsageError("There is no answer yet.")
    last = chat.ending
    chat.console.show(views.stats_lines(chat.stats, last.seed if last else None, last.worker if last else None))


def workers(chat: Chat, _argument: str) -> None:
    """Show the workers."""
    chat.console.show(views.worker_lines(chat.attached.sampler.workers(), chat.attached.worker))


def reasoning(chat: Chat, argument: str) -> None:
    """Set how reasoning is shown, or show the last one whole."""
    console = chat.console
    match argument.lower():
        case "":
            console.show(views.text_lines(console.last_reasoning or "The last answer had no reasoning."))
        case "full" | "folded" | "off" as how:
            console.view.reasoning = how
            console.notice(f"Reasoning: {how}")
        case _:
            raise UsageError(f"/reasoning takes full, folded or off, not {argument!r}.")


def markdown(chat: Chat, argument: str) -> None:
    """Draw Markdown or not; alone: the other way than now."""
    view = chat.console.view
    wanted = {"on": True, "off": False, "": not view.markdown}.get(argument.lower())
    if wanted is None:
        raise UsageError(f"/markdown takes on or off, not {argument!r}.")
    view.markdown = wanted
    chat.console.notice(f"Markdown is {'drawn' if wanted else 'shown as it was written'}.")


def raw(chat: Chat, _argument: str) -> None:
    """Show the prompt of the last question: the one that was used if it is known, else as it would be now."""
    sampler = chat.attached.sampler
    ending = chat.ending
    if ending is not None and ending.prompt_ids:
        token_ids = ending.prompt_ids
        pieces = sampler.pieces(token_ids)
    else:
        messages, prefill = chat.transcript.last_prompt
        token_ids, pieces = sampler.render(
            messages, chat.transcript.tools, prefill=prefill, template_options=chat.settings.template
        )
    chat.console.show(views.text_lines("".join(pieces)))
    chat.console.show([[("dim", f"{len(token_ids):,} tokens:")]])
    chat.console.show(views.token_lines(token_ids, pieces, terminal_width()))


def tokens(chat: Chat, _argument: str) -> None:
    """Show the last answer's tokens, and how full the context is."""
    ending = _known(chat)
    pieces = chat.attached.sampler.pieces(ending.token_ids)
    chat.console.show(views.token_lines(ending.token_ids, pieces, terminal_width()))
    limit = max((facts.max_model_len for facts in chat.attached.sampler.workers()), default=0)
    chat.console.show([views.context_line(ending.prompt_tokens, len(ending.token_ids), limit)])


def _known(chat: Chat) -> Ending:
    _ = chat.transcript.last
    if chat.ending is None:
        raise UsageError(
            "The tokens of this answer are not known (it was loaded, chosen or swapped); /retry makes one."
        )
    return chat.ending


def logprobs(chat: Chat, argument: str) -> None:
    """Have the probabilities of tokens shown from now on, and at once where they are known; or no longer."""
    params = chat.settings.params
    if argument.lower() == "off":
        params.pop("logprobs", None)
        chat.console.notice("Probabilities are no longer asked for.")
        return
    if argument or "logprobs" not in params:
        chat.settings.set("logprobs", argument or "0")
        chat.console.notice("Answers are shown once more by probability from now on; /logprobs off ends that.")
    ending = chat.ending
    if ending is not None and ending.logprobs:
        show_probabilities(chat, ending)
    elif ending is not None and ending.seed is not None:
        chat.console.notice(f"The last answer came without probabilities; /retry {ending.seed} asks for it with them.")
