"""Counter-based Gumbel noise: a function of a key and a counter, the same on every device.

The hash is SplitMix64 (Steele et al. 2014) in integer arithmetic of a key, made of seed and position, and a counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_POSITION_STEP = 0xD1342543DE82EF95


def _signed(value: int) -> int:
    value &= _MASK_64
    return value - 2**64 if value >= 2**63 else value


def row_key(seed: int, position: int) -> int:
    """The noise's key for the token at ``position`` (number of tokens generated before it), a signed 64-bit integer."""
    return _signed(_mix_int(_mix_int(seed + _GAMMA) + position * _POSITION_STEP))


def _mix_int(z: int) -> int:
    z &= _MASK_64
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK_64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK_64
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    """The same as ``_mix_int`` on int64 tensors: products wrap around, shifts are made logical by a mask."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(_MIX_1)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(_MIX_2)
    return z ^ ((z >> 31) & (2**33 - 1))


def gumbel_noise(keys: Tensor, counters: Tensor) -> Tensor:
    """Standard Gumbel noise.

    Args:
        keys: int64, of ``row_key``; broadcast against ``counters``.
        counters: int64, token ids or block counters.

    Returns:
        float32 in about -2.8 to 37. A uniform number near 0 becomes large noise: there float32 is dense, so the tail
        that decides races is smooth.
    """
    bits = _mix(keys + (counters + 1) * _signed(_GAMMA))
    uniform = (((bits >> 11) & (2**53 - 1)).to(torch.float32) + 0.5) * 2.0**-53
    return -torch.log(-torch.log1p(-uniform.clamp(max=1.0 - 2.0**-24)))
