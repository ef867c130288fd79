"""Messages to bytes and back: the one place where bytes from outside are trusted with anything.

An envelope is the msgpack array ``[version, [entry, ...]]``; an entry is ``[kind, field, ...]``. ``PROTOCOL.md``
describes each. No ext types, no timestamps, no pickle; sizes, depth and field types are checked before any use.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack

from samplerpool.errors import ProtocolError
from samplerpool.types import CONTENT_TYPES, ROLES, TokenLogprobs
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    AddKey,
    ChatPrompt,
    Completed,
    Describe,
    Description,
    Failed,
    Finished,
    Generate,
    ListKeys,
    Malformed,
    Ping,
    Pong,
    Reply,
    Request,
    Restart,
    RevokeKey,
    Scale,
    Stop,
    TokenPrompt,
    Tokens,
    WireMessage,
)

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 65536
MAX_REQUESTS = 4096
"""Entries in a message to a worker or supervisor, which reads a message in one piece: meanwhile it hears nobody."""
MAX_DEPTH = 32
MAX_ARRAY = 2**22
MAX_CONTAINERS = 2**20
"""Arrays and maps in a message to a worker or supervisor: each takes one byte on the wire and 64 in memory."""
MAX_TOKEN_ID = 2**31 - 1
MAX_REQUEST_ID = 2**53

_GENERATE, _ABORT, _PING, _DESCRIBE, _STOP, _RESTART, _SCALE = 1, 2, 3, 4, 5, 6, 7
_LIST_KEYS, _ADD_KEY, _REVOKE_KEY = 8, 9, 10
_ACCEPTED, _TOKENS, _FINISHED, _FAILED, _PONG, _DESCRIPTION, _COMPLETED = 64, 65, 66, 67, 68, 69, 70
_CHAT, _TOKEN_IDS = 0, 1
_MESSAGE_KEYS, _BLOCK_KEYS = {"role", "content", "loss_weight", "parse_error"}, {"type", "value"}


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
            f"Protocol version {_short(version)} is not {PROTOCOL_VERSION}; use the same release on both sides."
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
        if type(candidate) is int and 0 < candidate <= MAX_REQUEST_ID:
            request_id = candidate
        decoder = decoders.get(kind) if type(kind) is int else None
        if decoder is None:
            raise ProtocolError(f"unknown message kind {_short(kind)}")
        return decoder(entry)
    except ProtocolError as error:
        return Malformed(request_id, f"Malformed message: {error.message}.")


# ---- checks -----------------------------------------------------------------------------------------------------


def _require(condition: bool, what: str) -> None:
    """For sentences that are there already; one that must be put together first is raised by its check itself."""
    if not condition:
        raise ProtocolError(what)


def _fields(entry: list[Any], count: int) -> list[Any]:
    if len(entry) != count + 1:
        raise ProtocolError(f"kind {entry[0]} takes {count} fields, not {len(entry) - 1}")
    return entry[1:]


def _id(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_REQUEST_ID:
        raise ProtocolError(f"an id must be an integer from 1 to {MAX_REQUEST_ID}, not {_short(value)}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_REQUEST_ID:
        raise ProtocolError(f"a count must be a non-negative integer, not {_short(value)}")
    return value


def _seconds(value: Any) -> float:
    _require(type(value) in (int, float) and 0 <= value < 1e9, "timeout_s must be a non-negative number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"text expected, not {_short(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"true or false expected, not {_short(value)}")
    return value


def _token_ids(value: Any) -> list[int]:
    _require(isinstance(value, list), "token ids must be an array")
    for token_id in value:
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise ProtocolError(f"a token id must be an integer from 0 to {MAX_TOKEN_ID}, not {_short(token_id)}")
    return value  # type: ignore[no-any-return]


def _logprobs(value: Any) -> list[TokenLogprobs]:
    _require(isinstance(value, list), "log-probabilities must be an array of one entry a token")
    entries = []
    for entry in value:
        _require(isinstance(entry, list) and len(entry) == 3, "an entry must be [id, logprob, [pair, ...]]")
        _require(type(entry[1]) is float and isinstance(entry[2], list), "an entry must be [id, logprob, [pair, ...]]")
        _token_ids(entry[:1])
        for pair in entry[2]:
            _require(
                isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is float, "a pair must be [id, logprob]"
            )
        _token_ids([pair[0] for pair in entry[2]])
        entries.append(TokenLogprobs(entry[0], entry[1], [(token, logprob) for token, logprob in entry[2]]))
    return entries


def _ids(value: Any) -> list[int]:
    _require(isinstance(value, list), "ids must be an array")
    return [_id(v) for v in value]


def _plain(value: Any) -> dict[str, Any]:
    _require(isinstance(value, dict), "a map expected")
    _check_plain(value, MAX_DEPTH)
    return value  # type: ignore[no-any-return]


def _check_plain(value: Any, depth: int) -> None:
    _require(depth > 0, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _require(isinstance(key, str), "map keys must be text")
            _check_plain(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth - 1)
    else:  # msgpack makes timestamps without asking the hook for extension types
        _require(value is None or isinstance(value, str | int | float | bool), "plain values expected")


def _chat_message(value: Any) -> Any:
    _require(isinstance(value, dict) and value.keys() <= _MESSAGE_KEYS, "not a v1 message")
    role, blocks, weight = value.get("role"), value.get("content"), value.get("loss_weight")
    if role not in ROLES:
        raise ProtocolError(f"unknown role {_short(role)}")
    _require(isinstance(blocks, list), "a message's content must be an array of blocks")
    for block in blocks:
        _require(isinstance(block, dict) and block.keys() == _BLOCK_KEYS, "a block must have type and value alone")
        if block["type"] not in CONTENT_TYPES:
            raise ProtocolError(f"unknown block type {_short(block['type'])}")
        _text(block["value"])
    _require(weight is None or type(weight) in (int, float), "loss_weight must be a number")
    _optional_text(value.get("parse_error"))
    return value


def _chat_messages(value: Any) -> list[Any]:
    _require(isinstance(value, list), "messages must be an array")
    return [_chat_message(m) for m in value]


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _short(value: Any) -> str:
    """A value from outside in a few words, whatever it is."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 70 else text[:67] + "..."


# ---- one encoder and one decoder a kind ---------------------------------------------------------------------------


def _encode_prompt(prompt: ChatPrompt | TokenPrompt) -> Sequence[Any]:
    if isinstance(prompt, ChatPrompt):
        return (_CHAT, prompt.messages, prompt.tools, prompt.options)
    fields = (_TOKEN_IDS, prompt.prompt_ids, prompt.generated_ids, prompt.delivered_chars)
    return fields if prompt.media is None else (*fields, _encode_prompt(prompt.media))


def _decode_prompt(value: Any) -> ChatPrompt | TokenPrompt:
    _require(isinstance(value, list) and len(value) in (4, 5), "a prompt must be an array of four or five")
    kind, first, second, third, *more = value
    if kind == _CHAT:
        _require(not more, "a prompt of messages must be an array of four")
        return ChatPrompt(_chat_messages(first), _optional_text(second), _plain(third))
    if kind != _TOKEN_IDS:
        raise ProtocolError(f"unknown prompt kind {_short(kind)}")
    return TokenPrompt(_token_ids(first), _token_ids(second), _count(third), _decode_media(more[0]) if more else None)


def _decode_media(value: Any) -> ChatPrompt:
    _require(isinstance(value, list) and len(value) == 4 and value[0] == _CHAT, "media must be a prompt of messages")
    prompt = _decode_prompt(value)
    assert isinstance(prompt, ChatPrompt)
    return prompt


def _decode_generate(entry: list[Any]) -> Generate:
    request_id, incarnation, prompt, params, priority, stream, parse = _fields(entry, 7)
    if priority not in (0, 1) or isinstance(priority, bool):
        raise ProtocolError(f"priority must be 0 or 1, not {_short(priority)}")
    return Generate(
        _id(request_id),
        _text(incarnation),
        _decode_prompt(prompt),
        _plain(params),
        priority,
        _flag(stream),
        _flag(parse),
        len(msgpack.packb(entry)),
    )


def _decode_stop(entry: list[Any]) -> Stop:
    request_id, timeout_s = _fields(entry, 2)
    return Stop(_id(request_id), _seconds(timeout_s))


def _decode_restart(entry: list[Any]) -> Restart:
    request_id, worker, timeout_s = _fields(entry, 3)
    return Restart(_id(request_id), None if worker is None else _count(worker), _seconds(timeout_s))


def _decode_scale(entry: list[Any]) -> Scale:
    request_id, workers, timeout_s = _fields(entry, 3)
    return Scale(_id(request_id), _count(workers), _seconds(timeout_s))


def _decode_add_key(entry: list[Any]) -> AddKey:
    request_id, name, public_key = _fields(entry, 3)
    return AddKey(_id(request_id), _text(name), _text(public_key))


def _decode_revoke_key(entry: list[Any]) -> RevokeKey:
    request_id, name = _fields(entry, 2)
    return RevokeKey(_id(request_id), _text(name))


def _decode_accepted(entry: list[Any]) -> Accepted:
    request_id, prompt_ids, seed = _fields(entry, 3)
    return Accepted(_id(request_id), _token_ids(prompt_ids), _count(seed))


def _decode_tokens(entry: list[Any]) -> Tokens:
    if len(entry) == 5:
        _, request_id, index, token_ids, text = entry
        return Tokens(_id(request_id), _count(index), _token_ids(token_ids), _text(text))
    request_id, index, token_ids, text, logprobs = _fields(entry, 5)
    ids = _token_ids(token_ids)
    entries = _logprobs(logprobs)
    _require(ids == [each.token_id for each in entries], "log-probabilities must be those of the tokens")
    return Tokens(_id(request_id), _count(index), ids, _text(text), entries)


def _decode_finished(entry: list[Any]) -> Finished:
    request_id, reason, prompt_tokens, completion_tokens, message = _fields(entry, 5)
    return Finished(
        _id(request_id),
        _text(reason),
        _count(prompt_tokens),
        _count(completion_tokens),
        None if message is None else _chat_message(message),
    )


def _decode_completed(entry: list[Any]) -> Completed:
    request_id, reason, prompt_tokens, completion_tokens, seed, text, message, logprobs = _fields(entry, 8)
    return Completed(
        _id(request_id),
        _text(reason),
        _count(prompt_tokens),
        _count(completion_tokens),
        _count(seed),
        _text(text),
        None if message is None else _chat_message(message),
        None if logprobs is None else _logprobs(logprobs),
    )


def _decode_failed(entry: list[Any]) -> Failed:
    request_id, error, message, data = _fields(entry, 4)
    return Failed(_count(request_id), _text(error), _text(message), _plain(data))


def _decode_pong(entry: list[Any]) -> Pong:
    ping_id, incarnation, steps, live = _fields(entry, 4)
    return Pong(_id(ping_id), _text(incarnation), _count(steps), _ids(live))


def _decode_description(entry: list[Any]) -> Description:
    request_id, info = _fields(entry, 2)
    return Description(_id(request_id), _plain(info))


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
    Abort: lambda m: (_ABORT, m.request_id),
    Ping: lambda m: (_PING, m.ping_id),
    Describe: lambda m: (_DESCRIBE, m.request_id),
    Stop: lambda m: (_STOP, m.request_id, m.timeout_s),
    Restart: lambda m: (_RESTART, m.request_id, m.worker, m.timeout_s),
    Scale: lambda m: (_SCALE, m.request_id, m.workers, m.timeout_s),
    ListKeys: lambda m: (_LIST_KEYS, m.request_id),
    AddKey: lambda m: (_ADD_KEY, m.request_id, m.name, m.public_key),
    RevokeKey: lambda m: (_REVOKE_KEY, m.request_id, m.name),
    Accepted: lambda m: (_ACCEPTED, m.request_id, m.prompt_ids, m.seed),
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
    Failed: lambda m: (_FAILED, m.request_id, m.error, m.message, m.data),
    Pong: lambda m: (_PONG, m.ping_id, m.incarnation, m.steps, m.live),
    Description: lambda m: (_DESCRIPTION, m.request_id, m.info),
}

_REQUEST_DECODERS: dict[int, Callable[[list[Any]], Request]] = {
    _GENERATE: _decode_generate,
    _ABORT: lambda entry: Abort(_id(_fields(entry, 1)[0])),
    _PING: lambda entry: Ping(_id(_fields(entry, 1)[0])),
    _DESCRIBE: lambda entry: Describe(_id(_fields(entry, 1)[0])),
    _STOP: _decode_stop,
    _RESTART: _decode_restart,
    _SCALE: _decode_scale,
    _LIST_KEYS: lambda entry: ListKeys(_id(_fields(entry, 1)[0])),
    _ADD_KEY: _decode_add_key,
    _REVOKE_KEY: _decode_revoke_key,
}

_REPLY_DECODERS: dict[int, Callable[[list[Any]], Reply]] = {
    _ACCEPTED: _decode_accepted,
    _TOKENS: _decode_tokens,
    _FINISHED: _decode_finished,
    _COMPLETED: _decode_completed,
    _FAILED: _decode_failed,
    _PONG: _decode_pong,
    _DESCRIPTION: _decode_description,
}
