"""Messages to bytes and back: the one place where bytes from outside are trusted with anything.

An envelope is the msgpack array ``[version, [entry, ...]]``; an entry is ``[kind, field, ...]``. ``PROTOCOL.md``
describes each. No ext types, no timestamps, no pickle; sizes, depth and (by ``wire.checks``) field types are checked
before any use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgpack

from samplerpool.errors import ProtocolError
from samplerpool.wire import checks
from samplerpool.wire.entries import ENCODERS, REPLY_DECODERS, REQUEST_DECODERS
from samplerpool.wire.messages import Count, Generate, Malformed, Render, Reply, Request, WireMessage

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 65536
MAX_REQUESTS = 4096
"""Entries in a message to a worker or supervisor, which reads a message in one piece: meanwhile it hears nobody."""
MAX_ARRAY = 2**22
MAX_CONTAINERS = 2**20
"""Arrays and maps in a message to a worker or supervisor: each takes one byte on the wire and 64 in memory."""


_SUBMISSIONS = frozenset({Generate, Count, Render})
"""Whose size counts, where a worker keeps them."""


def encode(messages: Iterable[WireMessage]) -> bytes:
    """Pack messages into one envelope.

    Raises:
        ProtocolError: a value that msgpack cannot hold, or more than ``MAX_MESSAGE_BYTES``.
    """
    try:
        data: bytes = msgpack.packb((PROTOCOL_VERSION, [ENCODERS[type(m)](m) for m in messages]))
    except UnicodeEncodeError as error:
        raise ProtocolError(f"The text cannot be sent as UTF-8 (a lone surrogate?): {error}.") from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"The message cannot be packed: {error}.") from error
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"The message has {len(data):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}. Send less at a time.",
            bytes=len(data),
        )
    return data


def encode_requests(messages: Iterable[Request]) -> bytes:
    """The same for a worker or supervisor, which reads no message whose lists are too long, or too many: it could not
    say which request that was, and those beside it would be lost too.

    Raises:
        ProtocolError: it would not be read.
    """
    data = encode(messages)
    if len(data) > MAX_CONTAINERS:  # a smaller one cannot hold so much
        try:
            _entries(data, MAX_REQUESTS, MAX_CONTAINERS)
        except ProtocolError as error:
            raise ProtocolError(f"A worker would not read this: {error.message}", bytes=len(data)) from error
    return data


def decode_requests(data: bytes) -> list[Request | Malformed]:
    """What a worker or supervisor received. An envelope that cannot be read is one ``Malformed`` with id 0."""
    return list(requests_in(data))


def requests_in(data: bytes) -> Iterator[Request | Malformed]:
    """The same, one after the other, so that a message of thousands can be taken in parts."""
    return _decode(data, REQUEST_DECODERS, MAX_REQUESTS, MAX_CONTAINERS)


def decode_replies(data: bytes) -> list[Reply | Malformed]:
    """What a client received."""
    return list(_decode(data, REPLY_DECODERS, MAX_ENTRIES, MAX_MESSAGE_BYTES))


def _decode(
    data: bytes, decoders: Mapping[int, Callable[[list[Any]], Any]], max_entries: int, max_containers: int
) -> Iterator[Any]:
    try:
        entries = _entries(data, max_entries, max_containers)
    except ProtocolError as error:
        return iter((Malformed(0, error.message),))
    return (_decode_entry(entry, decoders) for entry in entries)


def _entries(data: bytes, max_entries: int, max_containers: int) -> list[Any]:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"The message has {len(data):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}.")
    try:
        envelope = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            ext_hook=_refuse_ext,
            max_array_len=min(len(data), MAX_ARRAY),  # so much is set aside before the items are seen
            **(_counting_hooks(max_containers) if len(data) > max_containers else {}),
        )
    except ProtocolError:
        raise
    except MemoryError as error:
        raise ProtocolError(f"There is no memory for what the message of {len(data):,} bytes holds.") from error
    except (ValueError, RecursionError) as error:  # msgpack's own errors and bad UTF-8 are ValueErrors
        raise ProtocolError(f"Not a msgpack message: {type(error).__name__} {error}".rstrip() + ".") from error
    if not isinstance(envelope, list) or len(envelope) != 2 or not isinstance(envelope[1], list):
        raise ProtocolError("An envelope must be [version, [entry, ...]].")
    version: Any = envelope[0]
    entries: list[Any] = envelope[1]
    if version != PROTOCOL_VERSION or isinstance(version, bool):
        raise ProtocolError(
            f"Protocol version {checks.short(version)} is not {PROTOCOL_VERSION}; use the same release on both sides."
        )
    if len(entries) > max_entries:
        raise ProtocolError(f"{len(entries)} entries in one message; the limit is {max_entries}.")
    return entries


def _counting_hooks(most: int) -> dict[str, Callable[[Any], Any]]:
    """Hooks that end the reading of a message with more arrays and maps than ``most``."""
    counter = itertools.count(1)

    def counted(container: Any) -> Any:
        if next(counter) > most:
            raise ProtocolError(f"The message has more than {most:,} arrays and maps.")
        return container

    return {"list_hook": counted, "object_hook": counted}


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ProtocolError(f"msgpack extension type {code} is not part of the protocol.")


def _decode_entry(entry: Any, decoders: Mapping[int, Callable[[list[Any]], Any]]) -> Any:
    request_id = 0
    try:
        if type(entry) is not list or len(entry) < 2:
            raise ProtocolError("an entry must be [kind, id, ...]")
        kind, candidate = entry[0], entry[1]
        if type(candidate) is int and 0 < candidate <= checks.MAX_REQUEST_ID:
            request_id = candidate
        decoder = decoders.get(kind) if type(kind) is int else None
        if decoder is None:
            raise ProtocolError(f"unknown message kind {checks.short(kind)}")
        message = decoder(entry)
        if type(message) in _SUBMISSIONS:
            message.size_bytes = len(msgpack.packb(entry))
        return message
    except ProtocolError as error:
        return Malformed(request_id, f"Malformed message: {error.message}.")
