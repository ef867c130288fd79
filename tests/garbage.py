"""Messages as a broken or hostile client sends them: mutated, truncated, of wrong types, huge, deep, random. Seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from samplerpool.wire.codec import PROTOCOL_VERSION

_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**53 + 1,
    2**64 - 1,
    -(2**63),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\0\N{ROCKET}" * 20,
    b"\xff\xfe",
    [],
    {},
    [[]],
    {"a": {"b": [1, None]}},
    [0, [], None, {}],
    msgpack.Timestamp(5),
    msgpack.ExtType(7, b"x"),
)
_HEADERS = (b"\xdc", b"\xdd", b"\xde", b"\xdf", b"\xd9", b"\xda", b"\xdb", b"\xc4", b"\xc6", b"\xc7", b"\xc9", b"\xd4")
"""What announces arrays, maps, text, bytes and extension types."""


class Garbage:
    """Draws messages. About one in ten is well formed, with an id that was used, or for another incarnation.

    Args:
        seed: the same one gives the same messages.
        incarnation: of the worker that they are meant for.
    """

    def __init__(self, seed: int, incarnation: str = "i") -> None:
        self._dice = random.Random(seed)
        self._incarnation = incarnation
        self._last_id = 0
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self._flipped,
            self._flipped,
            self._cut,
            self._spliced,
            self._confused,
            self._confused,
            self._announced,
            self._nested,
            self._random,
            self._well_formed,
        )

    def messages(self, count: int) -> Iterator[bytes]:
        """So many of them."""
        for _ in range(count):
            yield self._dice.choice(self._kinds)()

    # ---- well-formed ones -----------------------------------------------------------------------------------------

    def _entry(self) -> list[Any]:
        dice = self._dice
        kind = dice.randrange(8)
        if kind < 4:
            return [dice.choice((2, 3, 4)), dice.randint(1, 50)]
        self._last_id += dice.randint(0, 2)
        incarnation = self._incarnation if dice.random() < 0.8 else "another"
        content = [{"type": "text", "value": "hello"}]
        prompt = (
            [0, [{"role": "user", "content": content}], None, {}]
            if kind < 7
            else [1, [104, 105], [106], dice.randint(0, 1)]
        )
        if dice.random() < 0.3:
            prompt = [*prompt, *([] if kind < 7 else [None]), "Sure"]
        params = {"max_new_tokens": dice.randint(1, 8), "stop": ["x"]}
        if dice.random() < 0.15:
            return [12, self._last_id, incarnation, prompt]
        if dice.random() < 0.3:
            return [11, self._last_id, incarnation, prompt, params]
        return [1, self._last_id, incarnation, prompt, params, dice.randint(0, 1), dice.random() < 0.5, False]

    def _well_formed(self) -> bytes:
        return self._pack([self._entry() for _ in range(self._dice.randint(1, 4))])

    @staticmethod
    def _pack(entries: list[Any]) -> bytes:
        return msgpack.packb([PROTOCOL_VERSION, entries])  # type: ignore[no-any-return]

    # ---- and others -----------------------------------------------------------------------------------------------

    def _flipped(self) -> bytes:
        data = bytearray(self._well_formed())
        for _ in range(self._dice.choice((1, 1, 2, 8))):
            data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
        return bytes(data)

    def _cut(self) -> bytes:
        data = self._well_formed()
        return data[: self._dice.randrange(len(data))]

    def _spliced(self) -> bytes:
        first, second = self._well_formed(), self._well_formed()
        return first[: self._dice.randrange(len(first))] + second[self._dice.randrange(len(second)) :]

    def _confused(self) -> bytes:
        """A value of another type or range somewhere."""
        entry: Any = self._entry()
        place = entry
        while True:
            keys = list(range(len(place))) if isinstance(place, list) else list(place)
            key = self._dice.choice(keys)
            if not isinstance(place[key], list | dict) or not place[key] or self._dice.random() < 0.3:
                place[key] = self._dice.choice(_ODD_VALUES)
                return self._pack([entry])
            place = place[key]

    def _announced(self) -> bytes:
        """A length that does not come."""
        data = self._well_formed()
        at = self._dice.randrange(len(data))
        header = self._dice.choice(_HEADERS) + self._dice.randbytes(4)
        return data[:at] + header * self._dice.choice((1, 1, 30)) + data[at:]

    def _nested(self) -> bytes:
        depth = self._dice.choice((3, 40, 600, 3000))
        data = self._well_formed()
        at = self._dice.randrange(len(data))
        return data[:at] + self._dice.choice((b"\x91", b"\x81\xa1a")) * depth + b"\xc0" + data[at:]

    def _random(self) -> bytes:
        return self._dice.randbytes(self._dice.choice((0, 1, 5, 40, 300)))
