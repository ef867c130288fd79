"""Commands that read and write files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from samplerpool.chat.context import Chat
from samplerpool.chat.files import MAX_CONVERSATION_BYTES, append_line, path_of, read_text, write_new
from samplerpool.chat.samples import (
    conversation_in,
    fenced,
    finished_sample,
    preference,
    to_markdown,
    to_sample,
    tool_name,
    tools_in,
)
from samplerpool.chat.views import ending_lines
from samplerpool.data.json_text import to_json
from samplerpool.data.media import UNKNOWN_TYPE, with_media_read
from samplerpool.errors import RenderError, UsageError
from samplerpool.types import Content, Message


def save(chat: Chat, argument: str) -> None:
    """Save the conversation: in the file named, or where it was saved or loaded last."""
    chat.transcript.check_not_empty()
    path = path_of(argument) if argument else _latest_own(chat)
    sample = to_sample(chat.transcript.everything, chat.transcript.tools)
    text = json.dumps(sample, ensure_ascii=False, indent=2) + "\n"
    _write(chat, path, text)
    chat.latest_file = path
    chat.console.notice(f"Saved to {path} ({len(sample['messages'])} messages).")


def _latest_own(chat: Chat) -> Path:
    if chat.latest_file is None:
        raise UsageError("/save needs the name of a file the first time: /save FILE.")
    return chat.latest_file


def load(chat: Chat, argument: str) -> None:
    """Go on with a saved conversation. The present one stays on disk."""
    path = path_of(argument) if argument else chat.autosave.latest()
    messages, tools = conversation_in(read_text(path, MAX_CONVERSATION_BYTES), str(path))
    chat.keep()
    chat.autosave.begin_another()
    transcript = chat.transcript
    transcript.load(messages, tools)
    if argument:
        chat.own_files.add(path.absolute())
        chat.latest_file = path
    chat.keep()
    waiting = "; its last question has no answer, /retry asks it" if transcript.waiting else ""
    chat.console.notice(f"Loaded {path}: {len(messages)} messages{waiting}.")
    chat.console.show(ending_lines(transcript.everything))


def export(chat: Chat, argument: str) -> None:
    """Write the conversation as Markdown."""
    chat.transcript.check_not_empty()
    path = path_of(argument)
    _write(chat, path, to_markdown(chat.transcript.everything, chat.transcript.tools))
    chat.console.notice(f"Exported to {path}.")


def _write(chat: Chat, path: Path, text: str) -> None:
    own = path.absolute() in chat.own_files
    write_new(path, text, replace=own)
    chat.own_files.add(path.absolute())


def file(chat: Chat, argument: str) -> None:
    """Put a text file in front of the next message."""
    path = path_of(argument)
    text = read_text(path)
    if not text.strip():
        raise UsageError(f"{path} is empty.")
    chat.transcript.blocks.append({"type": "text", "value": f"{path.name}:\n{fenced(text.rstrip())}"})
    chat.console.notice(f"{path.name} ({len(text):,} characters) goes with the next message; /unset files drops it.")


def image(chat: Chat, argument: str) -> None:
    """Put an image in front of the next message. It is read now, so that it is what it was when it is asked about."""
    path = path_of(argument)
    block = cast(Content, {"type": "image_url", "value": str(path.absolute())})
    message: Message = {"role": "user", "content": [block]}
    try:
        (read,) = with_media_read([message])
    except RenderError as error:
        _, _, what = str(error).partition(": ")  # in front stands the block's place in a list that nobody sees
        raise UsageError(f"{what[:1].upper()}{what[1:]}") from None
    media_type = read["content"][0]["value"].removeprefix("data:").partition(";")[0]
    if media_type != UNKNOWN_TYPE and not media_type.startswith("image/"):
        raise UsageError(f"{path} is of type {media_type}, not an image; /file puts a text in front of a message.")
    chat.transcript.blocks += read["content"]
    chat.console.notice(f"{path.name} goes with the next message; /unset files drops it.")


def tools(chat: Chat, argument: str) -> None:
    """Show the tools on offer, or offer those of a file."""
    if argument:
        path = path_of(argument)
        chat.transcript.tools = tools_in(read_text(path), str(path))
        chat.keep()
    names = [tool_name(each) for each in json.loads(chat.transcript.tools or "[]")]
    chat.console.notice(
        f"Tools on offer: {', '.join(names)}. /unset tools takes them back."
        if names
        else "No tools are on offer; /tools FILE offers those of a JSON file."
    )


def keep(chat: Chat, argument: str) -> None:
    """Append the conversation to a file of conversations to learn from."""
    path = path_of(argument)
    append_line(path, to_json(finished_sample(chat.transcript)).decode())
    chat.console.notice(f"Appended to {path}: the conversation.")


def prefer(chat: Chat, argument: str) -> None:
    """Append the last answer and the one before it to a file of preferences."""
    path = path_of(argument)
    append_line(path, to_json(preference(chat.transcript)).decode())
    chat.console.notice(
        f"Appended to {path}: the last answer as chosen, the earlier one as rejected; /swap swaps them."
    )
