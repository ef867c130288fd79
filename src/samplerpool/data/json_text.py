"""Rows as JSON text, and back.

msgspec does it, in a fraction of the time that Python's own ``json`` takes, and as exactly: integers of any length,
floats to the last bit. What it does not take and ``json`` does (NaN, numbers beyond a float's range, half surrogate
pairs) goes to that, and so does what neither takes, for the sentence that says why.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_decode_anything = json.JSONDecoder().decode


def from_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        json.JSONDecodeError: it is not JSON.
        ValueError, RecursionError: a number of thousands of digits; brackets nested too deep.
    """
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_anything(text.rstrip().decode())


def to_json(value: Any) -> bytes:
    """A value as one line of JSON in UTF-8.

    JSON has no NaN and no infinity: they become null. Dates, bytes (base64) and what else is no JSON value become text.
    Half surrogate pairs, which UTF-8 cannot hold, are escaped.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(_finite(value), default=lambda unknown: _finite(_as_json(unknown))).encode()


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _as_json(value: object) -> Any:
    """Values that tables hold and neither JSON nor msgspec knows: numpy's, and what else has a text."""
    to_list = getattr(value, "tolist", None)
    return to_list() if callable(to_list) else str(value)


_encode = msgspec.json.Encoder(enc_hook=_as_json).encode
