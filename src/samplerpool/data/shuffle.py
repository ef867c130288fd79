"""Numbers in an order that looks random and follows from a seed: without a list of them, and everywhere the same. Pure.

A Feistel network is a permutation of the numbers of some bits, whatever its round function. Walking on from results
that are too large makes it one of the first ``count`` numbers (cycle walking: Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

ROUNDS = 6


def shuffled(count: int, seed: int) -> Iterator[int]:
    """The numbers from 0 to ``count`` - 1, each once."""
    half = max(1, -(-max(0, count - 1).bit_length() // 2))
    mask = (1 << half) - 1
    keys = [f"{seed}/{number}/".encode() for number in range(ROUNDS)]
    for start in range(count):
        place = start
        while True:
            left, right = place >> half, place & mask
            for key in keys:
                digest = hashlib.blake2b(key + right.to_bytes(8, "little"), digest_size=8).digest()
                left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
            place = left << half | right
            if place < count:
                break
        yield place
