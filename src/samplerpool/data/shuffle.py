"""Numbers in an order that looks random and follows from a seed: without a list of them, and everywhere the same. Pure.

A Feistel network is a permutation, whatever its round function: here of the pairs (left, right) that number a rectangle
just large enough, halves being added to each other modulo its sides. Walking on from the few results that are too large
makes it one of the first ``count`` numbers (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002). The rounds mix as well as sampling needs, and are no cipher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import isqrt

ROUNDS = 4
_WORD = 2**64 - 1
_ONE, _OTHER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
"""Odd multipliers of SplitMix64."""


def shuffled(count: int, seed: int) -> Iterator[int]:
    """The numbers from 0 to ``count`` - 1, each once."""
    height = isqrt(max(0, count - 1)) + 1
    width = -(-count // height)
    keys = [(_key(seed, 2 * number), _key(seed, 2 * number + 1)) for number in range(ROUNDS)]
    for start in range(count):
        place = start
        while True:
            left, right = divmod(place, width)
            for one, other in keys:
                left = (left + _mixed(right, one)) % height
                right = (right + _mixed(left, other)) % width
            place = left * width + right
            if place < count:
                break
        yield place


def _key(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), "big")


def _mixed(value: int, key: int) -> int:
    value = (value ^ key) * _ONE & _WORD
    value = (value ^ value >> 29) * _OTHER & _WORD
    return value >> 32
