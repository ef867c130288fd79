"""Images, videos and sounds in messages: what they are, and how a client brings them into a request.

Whoever has the files reads them: a worker may run elsewhere, or for somebody else, and takes no path and no address
from anyone. So a block's path, ``file:`` URL or, where that is allowed, ``http(s):`` URL becomes a ``data:`` URL, which
holds the bytes, before the request is sent. Light: what they show is looked at in the worker.
"""

from __future__ import annotations

import base64
import mimetypes
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast
from urllib.parse import unquote, urlsplit

from samplerpool.errors import RenderError
from samplerpool.types import MEDIA_TYPES, Content, Message
from samplerpool.wire.codec import MAX_MESSAGE_BYTES

KINDS: Mapping[str, str] = {kind: kind.removesuffix("_url") for kind in MEDIA_TYPES}
"""What the blocks hold, by their type: image, video, audio."""

MAX_MEDIA_BYTES = (MAX_MESSAGE_BYTES - 2**20) // 4 * 3
"""Larger files cannot travel: written in base64 they would not fit a message. Workers usually allow less."""

UNKNOWN_TYPE = "application/octet-stream"

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")  # of one letter it would be a Windows drive


def has_media(messages: Sequence[Message]) -> bool:
    """Whether any block is an image, a video or a sound."""
    return any(block["type"] in KINDS for message in messages for block in message["content"])


def with_media_read(messages: Sequence[Message], *, folder: str = "", fetch: bool = False) -> Sequence[Message]:
    """The same messages, all their media as ``data:`` URLs, which hold the bytes.

    Args:
        messages: in the v1 form; they are not changed.
        folder: where relative paths are looked for first; after that in the working directory.
        fetch: get ``http(s):`` URLs, too.

    Raises:
        RenderError: a file cannot be read or is too large, or a URL is none that may be used. Names the block.
    """
    if not has_media(messages):
        return messages
    return [_message(number, message, folder, fetch) for number, message in enumerate(messages)]


def _message(number: int, message: Message, folder: str, fetch: bool) -> Message:
    content: list[Content] = []
    for place, block in enumerate(message["content"]):
        if kind := KINDS.get(block["type"]):
            source = _Source(f"messages[{number}].content[{place}]", kind, block["value"])
            block = cast(Content, {"type": block["type"], "value": source.data_url(folder, fetch)})
        content.append(block)
    return cast(Message, {**message, "content": content})


class _Source:
    """Where one block's media come from.

    Args:
        place: of the block, for errors.
        kind: image, video or audio.
        value: what the block says.
    """

    def __init__(self, place: str, kind: str, value: str) -> None:
        self._place, self._kind, self._value = place, kind, value

    def data_url(self, folder: str, fetch: bool) -> str:
        value = self._value
        if value.startswith("data:"):
            return value
        scheme = match[1].lower() if (match := _SCHEME.match(value)) else None
        if scheme in ("http", "https"):
            if not fetch:
                self._fail("is a URL, and these are only fetched on request: --fetch-media, or fetch_media=True")
            return self._fetched()
        if scheme == "file":
            return self._read(self._path_of_url())
        if scheme is not None and value[len(scheme) :].startswith("://"):
            self._fail("is a URL of a kind that is not known; use a path, or a file:, data:, http: or https: URL")
        if not value.strip():
            self._fail("is empty; it must be a path or a URL")
        return self._read(self._path(folder))

    def _path_of_url(self) -> Path:
        parts = urlsplit(self._value)
        if parts.netloc not in ("", "localhost"):
            self._fail(f"names a file on another machine, {parts.netloc!r}; file: URLs have three slashes")
        return Path(unquote(parts.path))

    def _path(self, folder: str) -> Path:
        path = Path(self._value).expanduser()
        try:
            beside = Path(folder) / path
            return beside if beside.exists() else path
        except (OSError, ValueError):  # a name too long, say; reading it will tell
            return path

    def _read(self, path: Path) -> str:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                self._fail("is no file")
            self._check_size(status.st_size)
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            self._fail(f"cannot be read: {getattr(error, 'strerror', None) or error}")
        self._check_size(len(data))  # it may have grown
        return self._made(data, mimetypes.guess_type(path.name)[0])

    def _fetched(self) -> str:
        from samplerpool.data.fetching import fetch

        try:
            data, media_type = fetch(self._value, MAX_MEDIA_BYTES)
        except (OSError, ValueError) as error:  # urllib's errors are among them
            self._fail(f"cannot be fetched: {error}")
        self._check_size(len(data))
        return self._made(data, media_type)

    def _check_size(self, size: int) -> None:
        if size > MAX_MEDIA_BYTES:
            self._fail(f"is larger than the {MAX_MEDIA_BYTES:,} bytes that fit a message; make it smaller")

    def _made(self, data: bytes, media_type: str | None) -> str:
        if not data:
            self._fail("has no bytes")
        main = (media_type or "").partition("/")[0]
        if main in KINDS.values() and main != self._kind:
            self._fail(f"is of type {media_type}; use a block of type {main}_url for it")
        return f"data:{media_type or UNKNOWN_TYPE};base64,{base64.b64encode(data).decode('ascii')}"

    def _fail(self, what: str) -> NoReturn:
        shown = self._value if len(self._value) <= 100 else self._value[:97] + "..."
        raise RenderError(f"{self._place}: the {self._kind} {shown!r} {what}.") from None
