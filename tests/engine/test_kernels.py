"""The attention kernel against the same sums written out in float64."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samplerpool.engine import kernels
from samplerpool.engine.kernels import AttentionPlan, decode_attention
from samplerpool.engine.openmp import openmp_parallel

pytest.importorskip("numba")


@dataclass
class Slab:
    """Keys and values of some rows, ``[rows, kv_heads, capacity, dim]``, and the arguments that point into them."""

    keys: Tensor
    values: Tensor
    lengths: Tensor

    @classmethod
    def random(cls, lengths: list[int], kv_heads: int, key_dim: int, value_dim: int, capacity: int) -> Slab:
        generator = torch.Generator().manual_seed(sum(lengths) + key_dim)
        keys = torch.randn(len(lengths), kv_heads, capacity, key_dim, generator=generator)
        values = torch.randn(len(lengths), kv_heads, capacity, value_dim, generator=generator)
        for row, length in enumerate(lengths):  # whoever reads further than the row's length spoils the result
            keys[row, :, length:] = values[row, :, length:] = float("nan")
        return cls(keys, values, torch.tensor(lengths))

    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.arange(len(self.keys))
        return (
            self.keys.data_ptr() + rows * self.keys.stride(0) * 4,
            self.values.data_ptr() + rows * self.values.stride(0) * 4,
            torch.full_like(rows, self.keys.stride(1)),
            torch.full_like(rows, self.values.stride(1)),
        )


def written_out(
    query: Tensor,
    slab: Slab,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    rows = []
    for row, length in enumerate(slab.lengths.tolist()):
        first = max(0, length - sliding_window) if sliding_window else 0
        group = query.shape[1] // slab.keys.shape[1]
        keys = slab.keys[row, :, first:length].double().repeat_interleave(group, 0)
        values = slab.values[row, :, first:length].double().repeat_interleave(group, 0)
        scores = torch.einsum("hd,htd->ht", query[row].double(), keys) * scaling
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None]], 1)
        weights = torch.softmax(scores, -1)[:, : length - first]
        rows.append(torch.einsum("ht,htd->hd", weights, values))
    return torch.stack(rows)


def check(slab: Slab, heads: int, **options: Any) -> None:
    kv_heads, key_dim, value_dim = slab.keys.shape[1], slab.keys.shape[3], slab.values.shape[3]
    query = torch.randn(len(slab.keys), heads, key_dim, generator=torch.Generator().manual_seed(5))
    out = torch.full((len(slab.keys), heads, value_dim), float("nan"))
    scaling = options.pop("scaling", key_dim**-0.5)
    decode_attention(query, *slab.pointers(), slab.lengths, out, kv_heads=kv_heads, scaling=scaling, **options)
    expected = written_out(query, slab, scaling, **options)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# ---- right results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_dim", "value_dim"),
    [
        (9, 3, 64, 64),
        (8, 1, 64, 64),
        (4, 4, 32, 32),
        (14, 2, 128, 128),
        (6, 2, 80, 80),
        (5, 5, 20, 12),
        (4, 2, 3, 5),
        (16, 16, 192, 128),
        (2, 1, 100, 256),
    ],
)
def test_heads_and_dimensions(heads: int, kv_heads: int, key_dim: int, value_dim: int, two_threads: None) -> None:
    check(Slab.random([1, 2, 3, 4, 7, 100, 257, 600], kv_heads, key_dim, value_dim, capacity=601), heads)


@settings(max_examples=60, deadline=None)
@given(
    tiles=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 9)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 4),
    dim=st.integers(1, 20),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.floats(1.0, 20.0),
    sunk=st.booleans(),
)
def test_tiles_of_successive_tokens(
    tiles: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    softcap: float | None,
    sunk: bool,
) -> None:
    counts = [count for _, count in tiles]
    ends = [before + count for before, count in tiles]
    slab = Slab.random(ends, kv_heads, dim, dim, capacity=max(ends))
    heads, generator = kv_heads * group, torch.Generator().manual_seed(3)
    query = torch.randn(sum(counts), heads, dim, generator=generator)
    sinks = torch.randn(heads, generator=generator) if sunk else None
    out = torch.full((sum(counts), heads, dim), float("nan"))
    plan = AttentionPlan(slab.lengths, *slab.pointers(), counts=torch.tensor(counts))
    plan.run(query, out, kv_heads=kv_heads, scaling=0.3, sliding_window=window, softcap=softcap, sinks=sinks)
    each = [
        (row, end - count + 1 + token)
        for row, (end, count) in enumerate(zip(ends, counts, strict=True))
        for token in range(count)
    ]
    rows = torch.tensor([row for row, _ in each])
    alone = Slab(slab.keys[rows], slab.values[rows], torch.tensor([length for _, length in each]))
    torch.testing.assert_close(
        out.double(), written_out(query, alone, 0.3, window, softcap, sinks), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("counts", [[1, 1], [1, 6, 1]])
def test_tiles_that_cannot_be_are_refused(counts: list[int]) -> None:
    slab = Slab.random([5, 5, 5], 1, 8, 8, capacity=5)
    with pytest.raises(ValueError, match="counts must be one a tile"):
        AttentionPlan(slab.lengths, *slab.pointers(), counts=torch.tensor(counts))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    key_dim=st.integers(1, 40),
    value_dim=st.integers(1, 40),
    sliding_window=st.none() | st.integers(1, 300),
    softcap=st.none() | st.floats(0.5, 50),
    sunk=st.booleans(),
)
def test_any_shape_with_any_option(
    lengths: list[int],
    kv_heads: int,
    group: int,
    key_dim: int,
    value_dim: int,
    sliding_window: int | None,
    softcap: float | None,
    sunk: bool,
) -> None:
    slab = Slab.random(lengths, kv_heads, key_dim, value_dim, capacity=310)
    sinks = torch.linspace(-2, 3, kv_heads * group) if sunk else None
    check(slab, kv_heads * group, sliding_window=sliding_window, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("scaling", [0.0, 1.0, 40.0])
def test_even_and_sharp_distributions(scaling: float) -> None:
    """Scores of several hundred: their differences must be taken before they are exponents."""
    slab = Slab.random([300, 513], 3, 64, 64, capacity=520)
    query, out = torch.randn(2, 9, 64), torch.empty(2, 9, 64)
    decode_attention(query, *slab.pointers(), slab.lengths, out, kv_heads=3, scaling=scaling)
    torch.testing.assert_close(out.double(), written_out(query, slab, scaling), rtol=1e-4, atol=2e-4)


def test_sinks_far_above_and_below_the_scores() -> None:
    slab = Slab.random([5, 300], 2, 16, 16, capacity=300)
    check(slab, 4, sinks=torch.tensor([-50.0, 0.0, 20.0, 60.0]))


def test_layers_have_their_own_pointers() -> None:
    slabs = [Slab.random([40, 3], 2, 16, 16, capacity=64) for _ in range(3)]
    for layer, slab in enumerate(slabs):
        slab.values *= layer + 1
    tables = [torch.stack(columns) for columns in zip(*(slab.pointers() for slab in slabs), strict=True)]
    plan = AttentionPlan(slabs[0].lengths, tables[0], tables[1], tables[2][0], tables[3])
    query, out = torch.randn(2, 4, 16), torch.empty(2, 4, 16)
    for layer, slab in enumerate(slabs):
        plan.run(query, out, layer=layer, kv_heads=2, scaling=0.25)
        torch.testing.assert_close(out.double(), written_out(query, slab, 0.25), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="layer 3 is not among the 3"):
        plan.run(query, out, layer=3, kv_heads=2, scaling=0.25)


def test_a_prefill_chunk_is_rows_that_share_keys(two_threads: None) -> None:
    """Tokens 37 to 50 of one prompt, causal, against torch's own attention."""
    keys, values = torch.randn(1, 3, 64, 32), torch.randn(1, 3, 64, 32)
    lengths = torch.arange(38, 52)
    query, out = torch.randn(14, 6, 32), torch.empty(14, 6, 32)
    pointers = [torch.full((14,), tensor.data_ptr()) for tensor in (keys, values)]
    strides = torch.full((14,), 64 * 32)
    decode_attention(query, *pointers, strides, strides, lengths, out, kv_heads=3, scaling=32**-0.5)
    mask = torch.arange(64)[None, :] < lengths[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
    )
    torch.testing.assert_close(out, expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_strided_queries_and_outputs() -> None:
    slab = Slab.random([9, 77], 3, 64, 64, capacity=80)
    projection = torch.randn(2, 3 * 9 * 64)  # queries as a slice of a fused projection
    query = projection[:, : 9 * 64].view(2, 9, 64)
    out = torch.full((9, 4, 64), -7.0)
    decode_attention(
        query, *slab.pointers(), slab.lengths, out.transpose(0, 1)[1:3], kv_heads=3, scaling=0.125
    )  # heads first, rows 1 and 2 of 4
    torch.testing.assert_close(
        out[:, 1:3].transpose(0, 1).double(), written_out(query, slab, 0.125), rtol=1e-5, atol=1e-5
    )
    assert (out[:, [0, 3]] == -7.0).all()


def test_rows_without_keys_get_zeros() -> None:
    slab = Slab.random([0, 4], 1, 8, 8, capacity=8)
    out = torch.ones(2, 2, 8)
    decode_attention(torch.randn(2, 2, 8), *slab.pointers(), slab.lengths, out, kv_heads=1, scaling=1.0)
    assert (out[0] == 0).all()
    assert (out[1] != 0).all()


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    slab = Slab.random([300, 20, 513, 100], 3, 64, 64, capacity=520)
    query = torch.randn(4, 9, 64)
    results = []
    for threads in (1, 2, 3):
        results.append(torch.empty(4, 9, 64))
        plan = AttentionPlan(slab.lengths.int(), *slab.pointers(), threads=threads)
        plan.run(query, results[-1], kv_heads=3, scaling=0.125)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# ---- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "out", "options", "message"),
    [
        (torch.zeros(3, 4, 8), torch.zeros(2, 4, 8), {}, "must have 2 rows"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 3, 8), {}, "the same number of heads"),
        (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), {}, "a multiple of 2"),
        (torch.zeros(2, 4, 8).double(), torch.zeros(2, 4, 8), {}, "must be float32"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 8, 4).transpose(1, 2), {}, "without gaps"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), {"layer": 1}, "layer 1 is not among"),
        (torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), {"sinks": torch.zeros(3)}, "sinks must be 4 float32"),
    ],
)
def test_misfits_are_refused(query: Tensor, out: Tensor, options: dict[str, Any], message: str) -> None:
    slab = Slab.random([3, 4], 2, 8, 8, capacity=8)
    plan = AttentionPlan(slab.lengths, *slab.pointers())
    with pytest.raises(ValueError, match=message):
        plan.run(query, out, kv_heads=2, scaling=1.0, **options)


def test_pointers_of_other_rows_are_refused() -> None:
    slab = Slab.random([3, 4], 2, 8, 8, capacity=8)
    with pytest.raises(ValueError, match="for 3 tiles"):
        AttentionPlan(torch.tensor([1, 2, 3]), *slab.pointers())


# ---- threads, cache, absence ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_the_threads_are_those_of_torch(two_threads: None) -> None:
    assert openmp_parallel() is not None, torch.__config__.parallel_info()
    matrix = torch.randn(400, 400)
    slab = Slab.random([600] * 8, 3, 64, 64, capacity=600)
    query, out = torch.randn(8, 9, 64), torch.empty(8, 9, 64)
    _ = matrix @ matrix, matrix.exp()  # torch's threads exist from here on
    before = set(os.listdir("/proc/self/task"))
    for _ in range(3):
        decode_attention(query, *slab.pointers(), slab.lengths, out, kv_heads=3, scaling=0.125)
        _ = matrix @ matrix
    assert set(os.listdir("/proc/self/task")) <= before


def test_the_kernel_is_cached_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLERPOOL_CACHE_DIR", str(tmp_path))
    folder = kernels._writable_cache("0.60.0")
    assert folder is not None
    assert folder.parent == tmp_path / "kernels"
    assert kernels._writable_cache("0.61.0") != folder
    kernels._load.__wrapped__()
    compiled = [path.suffix for path in (tmp_path / "kernels").rglob("*.nb?")]
    assert sorted(compiled) == [".nbc", ".nbi"]


def test_the_cache_of_others_is_as_it_was_when_two_threads_compile_at_once() -> None:
    import numba

    before, folders, second = numba.config.CACHE_DIR, [], []

    def inner(cache: bool) -> None:
        folders.append(numba.config.CACHE_DIR)

    def outer(cache: bool) -> None:
        thread = threading.Thread(target=kernels.compile_cached, args=(inner,))
        thread.start()
        thread.join(0.05)
        second.append(thread)
        assert not folders, "the second one has to wait"

    assert kernels.compile_cached(outer) is None
    second[0].join()
    assert folders not in ([], [before])
    assert before == numba.config.CACHE_DIR


def test_without_a_folder_it_compiles_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMPLERPOOL_CACHE_DIR", str(tmp_path / "file"))
    assert kernels._writable_cache("0.60.0") is None
    assert not isinstance(kernels._load.__wrapped__(), str)


def test_without_numba_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.available()
    monkeypatch.setitem(sys.modules, "numba", None)
    reason = kernels._load.__wrapped__()
    assert isinstance(reason, str)
    assert "install samplerpool[fast]" in reason
    monkeypatch.setattr(kernels, "_load", lambda: reason)
    assert not kernels.available()
    with pytest.raises(RuntimeError, match="install samplerpool"):
        kernels.prepare()
