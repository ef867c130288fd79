"""The compiled small operations against torch, over odd sizes, strides and extreme numbers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samplerpool.engine import small_ops
from samplerpool.engine.small_ops import GELU_TANH, SILU

pytestmark = pytest.mark.skipif(small_ops.why_unavailable() is not None, reason=str(small_ops.why_unavailable()))


@pytest.fixture(autouse=True, params=[1, 2], ids=["one-thread", "two-threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


@pytest.mark.parametrize("shape", [(8,), (1, 1, 576), (3, 200, 64), (2, 0, 16)])
def test_norm(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])
    torch.testing.assert_close(small_ops.rms_norm(x, weight, 1e-5), plain_norm(x, weight, 1e-5))


def test_norm_of_rows_with_gaps() -> None:
    x, weight = torch.randn(16, 3).t(), torch.randn(16)
    torch.testing.assert_close(small_ops.rms_norm(x, weight, 1e-5), plain_norm(x, weight, 1e-5))


def test_norm_of_a_part_of_wider_rows_and_of_zeros() -> None:
    wide, weight = torch.randn(7, 48), torch.randn(16)
    torch.testing.assert_close(
        small_ops.rms_norm(wide[:, 16:32], weight, 1e-6), plain_norm(wide[:, 16:32], weight, 1e-6)
    )
    assert torch.equal(small_ops.rms_norm(torch.zeros(2, 16), weight, 1e-6), torch.zeros(2, 16))


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_gates(rows: int) -> None:
    both = torch.randn(1, rows, 2 * 40) * 4
    both[0, 0, :6] = torch.tensor([-200.0, -88.0, -20.0, 0.0, 88.0, 1e30])
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(small_ops.gated(both, SILU), F.silu(gate) * up, rtol=1e-5, atol=1e-6)
    expected = F.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(small_ops.gated(both, GELU_TANH), expected, rtol=1e-5, atol=1e-5)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers does it; x [tokens, heads, dim], the rest of the dimensions stays."""
    rotary = cos.shape[-1]
    turned, rest = x[..., :rotary], x[..., rotary:]
    first, second = turned.chunk(2, -1)
    half = torch.cat((-second, first), -1)
    return torch.cat((turned * cos[:, None] + half * sin[:, None], rest), -1)


@pytest.mark.parametrize("tokens", [1, 37])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(9, 3, 64, 64), (4, 4, 32, 16), (2, 1, 16, 16)])
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_and_keeping(tokens: int, heads: int, kv_heads: int, dim: int, rotary: int, normed: bool) -> None:
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    cos, sin = torch.randn(tokens, rotary), torch.randn(tokens, rotary)
    keys, values = torch.zeros(500, dim), torch.zeros(500, dim)
    index = torch.randperm(500)[: tokens * kv_heads]
    query, key, value = (
        part.reshape(tokens, -1, dim) for part in qkv.clone().split([heads * dim, kv_heads * dim, kv_heads * dim], -1)
    )
    norms = (torch.randn(dim), torch.randn(dim), 1e-6) if normed else None
    if norms is not None:
        query, key = plain_norm(query, norms[0], norms[2]), plain_norm(key, norms[1], norms[2])

    found = small_ops.rotate_and_keep(qkv, cos, sin, index, keys, values, heads=heads, norms=norms)

    torch.testing.assert_close(found, rotated(query, cos, sin))
    torch.testing.assert_close(keys[index], rotated(key, cos, sin).view(-1, dim))
    assert torch.equal(values[index], value.reshape(-1, dim))
    others = torch.ones(500, dtype=torch.bool).index_fill_(0, index, False)
    assert not keys[others].any()
    assert not values[others].any()


def test_a_default_dtype_of_others_changes_nothing() -> None:
    """It holds for all threads of a process, and transformers sets it while it loads a model."""
    x, both, weight = torch.randn(3, 64), torch.randn(3, 64), torch.randn(64)
    expected = small_ops.rms_norm(x, weight, 1e-5), small_ops.gated(both, SILU)
    torch.set_default_dtype(torch.float64)
    try:
        found = small_ops.rms_norm(x, weight, 1e-5), small_ops.gated(both, SILU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [each.dtype for each in found] == [torch.float32] * 2
    assert all(map(torch.equal, found, expected))


def test_calls_on_two_threads_have_an_argument_each() -> None:
    """Two samplers in one process each step on a thread of their own."""
    inside, seen = threading.Barrier(2, timeout=60), []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def compiled(argument: int) -> None:
        inside.wait()  # both have written theirs by now
        seen.append(ctypes.c_int64.from_address(argument + 8).value)

    address = ctypes.cast(compiled, ctypes.c_void_p).value
    op = small_ops._Op(SimpleNamespace(address=address), "=2q")
    threads = [threading.Thread(target=op.run, args=(0, number)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [1, 2]


class TestWhatWouldBeReadWrongly:
    def test_norms(self) -> None:
        for x, weight in (
            (torch.randn(2, 12), torch.ones(12)),
            (torch.randn(2, 16, dtype=torch.float64), torch.ones(16)),
            (torch.randn(2, 16), torch.ones(8)),
        ):
            with pytest.raises(ValueError, match="must be float32 on the CPU"):
                small_ops.rms_norm(x, weight, 1e-6)

    def test_gates(self) -> None:
        with pytest.raises(ValueError, match="a multiple of 8"):
            small_ops.gated(torch.randn(2, 24), SILU)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"cos": torch.ones(3, 16)}, "cos must be"),
            ({"index": torch.zeros(3, dtype=torch.int64)}, "index must have 4 numbers"),
            ({"index": torch.zeros(4, dtype=torch.int32)}, "not what is handled"),
            ({"values": torch.zeros(5, 16)}, "values must be"),
            ({"norms": (torch.ones(8), torch.ones(16), 1e-6)}, "the queries' weight must be"),
        ],
    )
    def test_rotation(self, change: dict[str, object], message: str) -> None:
        arguments: dict[str, object] = {
            "cos": torch.ones(2, 16),
            "sin": torch.ones(2, 16),
            "index": torch.zeros(4, dtype=torch.int64),
            "keys": torch.zeros(9, 16),
            "values": torch.zeros(9, 16),
        }
        with pytest.raises(ValueError, match=message):
            small_ops.rotate_and_keep(torch.randn(2, 7 * 16), heads=3, **{**arguments, **change})  # type: ignore[arg-type]
