"""What the fields of an entry must be. Each check takes a value from outside and gives it back, or raises.

All of them raise ``ProtocolError`` with what was wrong, as part of a sentence.
"""

from __future__ import annotations

from typing import Any

from samplerpool.errors import ProtocolError
from samplerpool.types import CONTENT_TYPES, ROLES, TokenLogprobs

MAX_DEPTH = 32
MAX_TOKEN_ID = 2**31 - 1
MAX_REQUEST_ID = 2**53

_MESSAGE_KEYS, _BLOCK_KEYS = {"role", "content", "loss_weight", "parse_error"}, {"type", "value"}


def require(condition: bool, what: str) -> None:
    """For sentences that are there already; one that must be put together first is raised by its check itself."""
    if not condition:
        raise ProtocolError(what)


def fields(entry: list[Any], count: int) -> list[Any]:
    """The fields behind an entry's kind, of which there must be so many."""
    if len(entry) != count + 1:
        raise ProtocolError(f"kind {entry[0]} takes {count} fields, not {len(entry) - 1}")
    return entry[1:]


def request_id(value: Any) -> int:
    """An id: 1 to 2^53."""
    if type(value) is not int or not 0 < value <= MAX_REQUEST_ID:
        raise ProtocolError(f"an id must be an integer from 1 to {MAX_REQUEST_ID}, not {short(value)}")
    return value


def count(value: Any) -> int:
    """A count: 0 to 2^53."""
    if type(value) is not int or not 0 <= value <= MAX_REQUEST_ID:
        raise ProtocolError(f"a count must be a non-negative integer, not {short(value)}")
    return value


def seconds(value: Any) -> float:
    """A time span."""
    require(type(value) in (int, float) and 0 <= value < 1e9, "timeout_s must be a non-negative number")
    return float(value)


def text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise ProtocolError(f"text expected, not {short(value)}")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ProtocolError(f"true or false expected, not {short(value)}")
    return value


def token_ids(value: Any) -> list[int]:
    """Token ids, int32."""
    require(isinstance(value, list), "token ids must be an array")
    for token_id in value:
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise ProtocolError(f"a token id must be an integer from 0 to {MAX_TOKEN_ID}, not {short(token_id)}")
    return value  # type: ignore[no-any-return]


def logprobs(value: Any) -> list[TokenLogprobs]:
    """One entry a token."""
    require(isinstance(value, list), "log-probabilities must be an array of one entry a token")
    entries = []
    for entry in value:
        require(isinstance(entry, list) and len(entry) == 3, "an entry must be [id, logprob, [pair, ...]]")
        require(type(entry[1]) is float and isinstance(entry[2], list), "an entry must be [id, logprob, [pair, ...]]")
        token_ids(entry[:1])
        for pair in entry[2]:
            require(
                isinstance(pair, list) and len(pair) == 2 and type(pair[1]) is float, "a pair must be [id, logprob]"
            )
        token_ids([pair[0] for pair in entry[2]])
        entries.append(TokenLogprobs(entry[0], entry[1], [(token, logprob) for token, logprob in entry[2]]))
    return entries


def pairs(value: Any) -> list[tuple[str, str]]:
    """Pairs of texts."""
    require(isinstance(value, list), "an array of pairs expected")
    for pair in value:
        require(isinstance(pair, list) and len(pair) == 2, "a pair must be an array of two texts")
    return [(text(first), text(second)) for first, second in value]


def texts(value: Any) -> list[str]:
    """Several texts."""
    require(isinstance(value, list), "an array of texts expected")
    return [text(v) for v in value]


def ids(value: Any) -> list[int]:
    """Several ids."""
    require(isinstance(value, list), "ids must be an array")
    return [request_id(v) for v in value]


def plain(value: Any) -> dict[str, Any]:
    """A map of plain values: what JSON knows, nested a little."""
    require(isinstance(value, dict), "a map expected")
    _check_plain(value, MAX_DEPTH)
    return value  # type: ignore[no-any-return]


def _check_plain(value: Any, depth: int) -> None:
    require(depth > 0, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            require(isinstance(key, str), "map keys must be text")
            _check_plain(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth - 1)
    else:  # msgpack makes timestamps without asking the hook for extension types
        require(value is None or isinstance(value, str | int | float | bool), "plain values expected")


def chat_message(value: Any) -> Any:
    """A message in the v1 form."""
    require(isinstance(value, dict) and value.keys() <= _MESSAGE_KEYS, "not a v1 message")
    role, blocks, weight = value.get("role"), value.get("content"), value.get("loss_weight")
    if role not in ROLES:
        raise ProtocolError(f"unknown role {short(role)}")
    require(isinstance(blocks, list), "a message's content must be an array of blocks")
    for block in blocks:
        require(isinstance(block, dict) and block.keys() == _BLOCK_KEYS, "a block must have type and value alone")
        if block["type"] not in CONTENT_TYPES:
            raise ProtocolError(f"unknown block type {short(block['type'])}")
        text(block["value"])
    require(weight is None or type(weight) in (int, float), "loss_weight must be a number")
    optional_text(value.get("parse_error"))
    return value


def chat_messages(value: Any) -> list[Any]:
    """Several of them."""
    require(isinstance(value, list), "messages must be an array")
    return [chat_message(m) for m in value]


def optional_text(value: Any) -> str | None:
    """Text or nil."""
    return None if value is None else text(value)


def short(value: Any) -> str:
    """A value from outside in a few words, whatever it is."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    shown = repr(value[:60] if isinstance(value, str | bytes) else value)
    return shown if len(shown) <= 70 else shown[:67] + "..."
