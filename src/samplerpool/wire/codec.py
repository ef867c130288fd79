"""Messages to bytes and back: the one place where bytes from outside are trusted with anything.

An envelope is the msgpack array ``[version, [entry, ...]]``; an entry is ``[kind, field, ...]``. ``PROTOCOL.md``
describes each. No ext types, no timestamps, no pickle; sizes, depth and (by ``wire.checks``) field types are checked
before any use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from samplerpool.errors import ProtocolError
from samplerpool.types import PromptCount, RenderedPrompt
from samplerpool.wire import checks
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    AddKey,
    ChatPrompt,
    Completed,
    Count,
    Counted,
    Describe,
    Description,
    Failed,
    Finished,
    Generate,
    ListKeys,
    Malformed,
    Ping,
    Pong,
    Prompt,
    Render,
    Rendered,
    Reply,
    Request,
    Restart,
    RevokeKey,
    Scale,
    Stop,
    TextPrompt,
    TokenPrompt,
    Tokens,
    WireMessage,
)

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 65536
MAX_REQUESTS = 4096
"""Entries in a message to a worker or supervisor, which reads a message in one piece: meanwhile it hears nobody."""
MAX_ARRAY = 2**22
MAX_CONTAINERS = 2**20
"""Arrays and maps in a message to a worker or supervisor: each takes one byte on the wire and 64 in memory."""

_GENERATE, _ABORT, _PING, _DESCRIBE, _STOP, _RESTART, _SCALE = 1, 2, 3, 4, 5, 6, 7
_LIST_KEYS, _ADD_KEY, _REVOKE_KEY, _COUNT, _RENDER = 8, 9, 10, 11, 12
_ACCEPTED, _TOKENS, _FINISHED, _FAILED, _PONG, _DESCRIPTION, _COMPLETED = 64, 65, 66, 67, 68, 69, 70
_COUNTED, _RENDERED = 71, 72
_CHAT, _TOKEN_IDS, _TEXT = 0, 1, 2


def encode(messages: Iterable[WireMessage]) -> bytes:
    """Pack messages into one envelope.

    Raises:
        ProtocolError: a value that msgpack cannot hold, or more than ``MAX_MESSAGE_BYTES``.
    """
    try:
        data: bytes = msgpack.packb((PROTOCOL_VERSION, [_ENCODERS[type(m)](m) for m in messages]))
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


def decode_requests(data: bytes) -> list[Request | Malformed]:
    """What a worker or supervisor received. An envelope that cannot be read is one ``Malformed`` with id 0."""
    return list(requests_in(data))


def requests_in(data: bytes) -> Iterator[Request | Malformed]:
    """The same, one after the other, so that a message of thousands can be taken in parts."""
    return _decode(data, _REQUEST_DECODERS, MAX_REQUESTS, MAX_CONTAINERS)


def decode_replies(data: bytes) -> list[Reply | Malformed]:
    """What a client received."""
    return list(_decode(data, _REPLY_DECODERS, MAX_ENTRIES, MAX_MESSAGE_BYTES))


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
        return decoder(entry)
    except ProtocolError as error:
        return Malformed(request_id, f"Malformed message: {error.message}.")


# ---- one encoder and one decoder a kind ---------------------------------------------------------------------------


def _encode_prompt(prompt: Prompt) -> Sequence[Any]:
    """With as many items as it takes: what stands last is left out where it is empty."""
    if isinstance(prompt, TextPrompt):
        return (_TEXT, prompt.text)
    if isinstance(prompt, ChatPrompt):
        chat = (_CHAT, prompt.messages, prompt.tools, prompt.options)
        return (*chat, prompt.prefill) if prompt.prefill else chat
    ids = (_TOKEN_IDS, prompt.prompt_ids, prompt.generated_ids, prompt.delivered_chars)
    media = None if prompt.media is None else _encode_prompt(prompt.media)
    if prompt.goes_on:
        return (*ids, media, prompt.prefill, True)
    if prompt.prefill:
        return (*ids, media, prompt.prefill)
    return ids if media is None else (*ids, media)


def _decode_prompt(value: Any) -> Prompt:
    checks.require(isinstance(value, list) and len(value) > 1, "a prompt must be an array of two or more")
    kind = value[0]
    if kind == _CHAT:
        return _decode_chat_prompt(value)
    if kind == _TEXT:
        checks.require(len(value) == 2, "a prompt of text must be an array of two")
        return TextPrompt(checks.text(value[1]))
    if kind != _TOKEN_IDS:
        raise ProtocolError(f"unknown prompt kind {checks.short(kind)}")
    checks.require(4 <= len(value) <= 7, "a prompt of tokens must be an array of four to seven")
    _, first, second, third, *more = value
    media = more[0] if more else None
    return TokenPrompt(
        checks.token_ids(first),
        checks.token_ids(second),
        checks.count(third),
        None if media is None else _decode_chat_prompt(media),
        checks.text(more[1]) if len(more) > 1 else "",
        checks.flag(more[2]) if len(more) > 2 else False,
    )


def _decode_chat_prompt(value: Any) -> ChatPrompt:
    checks.require(
        isinstance(value, list) and len(value) in (4, 5) and value[0] == _CHAT,
        "a prompt of messages must be an array of four or five",
    )
    _, messages, tools, options, *more = value
    return ChatPrompt(
        checks.chat_messages(messages),
        checks.optional_text(tools),
        checks.plain(options),
        checks.text(more[0]) if more else "",
    )


def _decode_generate(entry: list[Any]) -> Generate:
    request_id, incarnation, prompt, params, priority, stream, parse = checks.fields(entry, 7)
    if priority not in (0, 1) or isinstance(priority, bool):
        raise ProtocolError(f"priority must be 0 or 1, not {checks.short(priority)}")
    return Generate(
        checks.request_id(request_id),
        checks.text(incarnation),
        _decode_prompt(prompt),
        checks.plain(params),
        priority,
        checks.flag(stream),
        checks.flag(parse),
        len(msgpack.packb(entry)),
    )


def _decode_count(entry: list[Any]) -> Count:
    request_id, incarnation, prompt, params = checks.fields(entry, 4)
    return Count(
        checks.request_id(request_id),
        checks.text(incarnation),
        _decode_prompt(prompt),
        checks.plain(params),
        len(msgpack.packb(entry)),
    )


def _decode_render(entry: list[Any]) -> Render:
    request_id, incarnation, prompt = checks.fields(entry, 3)
    return Render(
        checks.request_id(request_id), checks.text(incarnation), _decode_prompt(prompt), len(msgpack.packb(entry))
    )


def _decode_stop(entry: list[Any]) -> Stop:
    request_id, timeout_s = checks.fields(entry, 2)
    return Stop(checks.request_id(request_id), checks.seconds(timeout_s))


def _decode_restart(entry: list[Any]) -> Restart:
    request_id, worker, timeout_s = checks.fields(entry, 3)
    return Restart(
        checks.request_id(request_id), None if worker is None else checks.count(worker), checks.seconds(timeout_s)
    )


def _decode_scale(entry: list[Any]) -> Scale:
    request_id, workers, timeout_s = checks.fields(entry, 3)
    return Scale(checks.request_id(request_id), checks.count(workers), checks.seconds(timeout_s))


def _decode_add_key(entry: list[Any]) -> AddKey:
    request_id, name, public_key = checks.fields(entry, 3)
    return AddKey(checks.request_id(request_id), checks.text(name), checks.text(public_key))


def _decode_revoke_key(entry: list[Any]) -> RevokeKey:
    request_id, name = checks.fields(entry, 2)
    return RevokeKey(checks.request_id(request_id), checks.text(name))


def _decode_accepted(entry: list[Any]) -> Accepted:
    request_id, prompt_ids, seed, reasoning_open = checks.fields(entry, 4)
    return Accepted(
        checks.request_id(request_id), checks.token_ids(prompt_ids), checks.count(seed), checks.flag(reasoning_open)
    )


def _decode_tokens(entry: list[Any]) -> Tokens:
    if len(entry) == 5:
        _, request_id, index, token_ids, text = entry
        return Tokens(
            checks.request_id(request_id), checks.count(index), checks.token_ids(token_ids), checks.text(text)
        )
    request_id, index, token_ids, text, logprobs = checks.fields(entry, 5)
    ids = checks.token_ids(token_ids)
    entries = checks.logprobs(logprobs)
    checks.require(ids == [each.token_id for each in entries], "log-probabilities must be those of the tokens")
    return Tokens(checks.request_id(request_id), checks.count(index), ids, checks.text(text), entries)


def _decode_finished(entry: list[Any]) -> Finished:
    request_id, reason, prompt_tokens, completion_tokens, message = checks.fields(entry, 5)
    return Finished(
        checks.request_id(request_id),
        checks.text(reason),
        checks.count(prompt_tokens),
        checks.count(completion_tokens),
        None if message is None else checks.chat_message(message),
    )


def _decode_completed(entry: list[Any]) -> Completed:
    request_id, reason, prompt_tokens, completion_tokens, seed, text, message, logprobs = checks.fields(entry, 8)
    return Completed(
        checks.request_id(request_id),
        checks.text(reason),
        checks.count(prompt_tokens),
        checks.count(completion_tokens),
        checks.count(seed),
        checks.text(text),
        None if message is None else checks.chat_message(message),
        None if logprobs is None else checks.logprobs(logprobs),
    )


def _decode_counted(entry: list[Any]) -> Counted:
    request_id, prompt_tokens, max_new_tokens, limit, escaped = checks.fields(entry, 5)
    count = PromptCount(
        checks.count(prompt_tokens), checks.count(max_new_tokens), checks.count(limit), checks.pairs(escaped)
    )
    return Counted(checks.request_id(request_id), count)


def _decode_rendered(entry: list[Any]) -> Rendered:
    request_id, token_ids, pieces = checks.fields(entry, 3)
    prompt = RenderedPrompt(checks.token_ids(token_ids), checks.texts(pieces))
    checks.require(len(prompt.token_ids) == len(prompt.pieces), "there must be one piece a token")
    return Rendered(checks.request_id(request_id), prompt)


def _decode_failed(entry: list[Any]) -> Failed:
    request_id, error, message, data = checks.fields(entry, 4)
    return Failed(checks.count(request_id), checks.text(error), checks.text(message), checks.plain(data))


def _decode_pong(entry: list[Any]) -> Pong:
    ping_id, incarnation, steps, live = checks.fields(entry, 4)
    return Pong(checks.request_id(ping_id), checks.text(incarnation), checks.count(steps), checks.ids(live))


def _decode_description(entry: list[Any]) -> Description:
    request_id, info = checks.fields(entry, 2)
    return Description(checks.request_id(request_id), checks.plain(info))


_ENCODERS: dict[type, Callable[[Any], Sequence[Any]]] = {
    Generate: lambda m: (
        _GENERATE,
        m.request_id,
        m.incarnation,
        _encode_prompt(m.prompt),
        m.params,
        m.priority,
        m.stream,
        m.parse,
    ),
    Count: lambda m: (_COUNT, m.request_id, m.incarnation, _encode_prompt(m.prompt), m.params),
    Render: lambda m: (_RENDER, m.request_id, m.incarnation, _encode_prompt(m.prompt)),
    Abort: lambda m: (_ABORT, m.request_id),
    Ping: lambda m: (_PING, m.ping_id),
    Describe: lambda m: (_DESCRIBE, m.request_id),
    Stop: lambda m: (_STOP, m.request_id, m.timeout_s),
    Restart: lambda m: (_RESTART, m.request_id, m.worker, m.timeout_s),
    Scale: lambda m: (_SCALE, m.request_id, m.workers, m.timeout_s),
    ListKeys: lambda m: (_LIST_KEYS, m.request_id),
    AddKey: lambda m: (_ADD_KEY, m.request_id, m.name, m.public_key),
    RevokeKey: lambda m: (_REVOKE_KEY, m.request_id, m.name),
    Accepted: lambda m: (_ACCEPTED, m.request_id, m.prompt_ids, m.seed, m.reasoning_open),
    Tokens: lambda m: (
        (_TOKENS, m.request_id, m.index, m.token_ids, m.text)
        if m.logprobs is None
        else (_TOKENS, m.request_id, m.index, m.token_ids, m.text, m.logprobs)
    ),
    Finished: lambda m: (
        _FINISHED,
        m.request_id,
        m.finish_reason,
        m.prompt_tokens,
        m.completion_tokens,
        m.message,
    ),
    Completed: lambda m: (
        _COMPLETED,
        m.request_id,
        m.finish_reason,
        m.prompt_tokens,
        m.completion_tokens,
        m.seed,
        m.text,
        m.message,
        m.logprobs,
    ),
    Counted: lambda m: (_COUNTED, m.request_id, *m.count),
    Rendered: lambda m: (_RENDERED, m.request_id, *m.prompt),
    Failed: lambda m: (_FAILED, m.request_id, m.error, m.message, m.data),
    Pong: lambda m: (_PONG, m.ping_id, m.incarnation, m.steps, m.live),
    Description: lambda m: (_DESCRIPTION, m.request_id, m.info),
}

_REQUEST_DECODERS: dict[int, Callable[[list[Any]], Request]] = {
    _GENERATE: _decode_generate,
    _COUNT: _decode_count,
    _RENDER: _decode_render,
    _ABORT: lambda entry: Abort(checks.request_id(checks.fields(entry, 1)[0])),
    _PING: lambda entry: Ping(checks.request_id(checks.fields(entry, 1)[0])),
    _DESCRIBE: lambda entry: Describe(checks.request_id(checks.fields(entry, 1)[0])),
    _STOP: _decode_stop,
    _RESTART: _decode_restart,
    _SCALE: _decode_scale,
    _LIST_KEYS: lambda entry: ListKeys(checks.request_id(checks.fields(entry, 1)[0])),
    _ADD_KEY: _decode_add_key,
    _REVOKE_KEY: _decode_revoke_key,
}

_REPLY_DECODERS: dict[int, Callable[[list[Any]], Reply]] = {
    _ACCEPTED: _decode_accepted,
    _TOKENS: _decode_tokens,
    _FINISHED: _decode_finished,
    _COMPLETED: _decode_completed,
    _COUNTED: _decode_counted,
    _RENDERED: _decode_rendered,
    _FAILED: _decode_failed,
    _PONG: _decode_pong,
    _DESCRIPTION: _decode_description,
}
