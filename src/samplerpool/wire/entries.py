"""The entries of an envelope: for each kind of message, plain values of it, and it of plain values. Pure.

``codec`` makes bytes of them. What comes from outside is checked here, field by field (``wire.checks``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
)

_GENERATE, _ABORT, _PING, _DESCRIBE, _STOP, _RESTART, _SCALE = 1, 2, 3, 4, 5, 6, 7
_LIST_KEYS, _ADD_KEY, _REVOKE_KEY, _COUNT, _RENDER = 8, 9, 10, 11, 12
_ACCEPTED, _TOKENS, _FINISHED, _FAILED, _PONG, _DESCRIPTION, _COMPLETED = 64, 65, 66, 67, 68, 69, 70
_COUNTED, _RENDERED = 71, 72
_CHAT, _TOKEN_IDS, _TEXT = 0, 1, 2


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
    )


def _decode_count(entry: list[Any]) -> Count:
    request_id, incarnation, prompt, params = checks.fields(entry, 4)
    return Count(checks.request_id(request_id), checks.text(incarnation), _decode_prompt(prompt), checks.plain(params))


def _decode_render(entry: list[Any]) -> Render:
    request_id, incarnation, prompt = checks.fields(entry, 3)
    return Render(checks.request_id(request_id), checks.text(incarnation), _decode_prompt(prompt))


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


ENCODERS: dict[type, Callable[[Any], Sequence[Any]]] = {
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

REQUEST_DECODERS: dict[int, Callable[[list[Any]], Request]] = {
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

REPLY_DECODERS: dict[int, Callable[[list[Any]], Reply]] = {
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
