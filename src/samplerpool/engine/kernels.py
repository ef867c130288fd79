"""Attention of a step on the CPU: each token's query over exactly the keys that it sees.

torch's own means pad every row of a batch to the longest; this kernel reads what is there and no more, so it runs at
the speed of memory. It is compiled by numba (extra ``fast``) at first use and cached on disk, and runs on torch's own
OpenMP threads.

    plan = AttentionPlan(lengths, key_pointers, value_pointers, key_strides, value_strides)   # once a step
    plan.run(query, out, layer=layer, kv_heads=3, scaling=0.125)                              # once a layer

A prompt's tokens are given in tiles of successive ones, which share what is read.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from samplerpool.config.folders import cache_folder
from samplerpool.engine.openmp import openmp_parallel

_Built = TypeVar("_Built")

_SMALL_WORK = 50_000
"""Multiplications below which waking the other threads costs more than they save."""

_NO_WINDOW = 2**62

_compiling = threading.Lock()
"""Where numba keeps its cache is a setting of the whole process, and two samplers may be started at once."""


# ---- the compiled kernel -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kernel:
    call: Callable[[int], None]
    """Run in this thread."""
    address: int
    compiled: Any
    """Owns the code at that address."""
    argument: struct.Struct
    scratch_floats: Callable[[int, int, int], int]


def available() -> bool:
    """Whether the kernel can be used here. The first call compiles it (some seconds) or loads it from the cache."""
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """What keeps the kernel from being used, for the log; None if nothing does."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def prepare() -> None:
    """Compile the kernel, or load it from the cache, so that no request waits for it.

    Raises:
        RuntimeError: it is not available; the message says why.
    """
    _kernel()


def _kernel() -> _Kernel:
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(f"The decode-attention kernel is not available: {loaded}")
    return loaded


@lru_cache(maxsize=1)
def _load() -> _Kernel | str:
    """The kernel, or the reason why there is none."""
    built = compile_cached(_build)
    if isinstance(built, str):
        return built
    compiled, kernels_compiled = built
    return _Kernel(
        call=ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled.address),
        address=compiled.address,
        compiled=compiled,
        argument=struct.Struct(kernels_compiled.ARGUMENT),
        scratch_floats=kernels_compiled.scratch_floats,
    )


def _build(cache: bool) -> tuple[Any, Any]:
    from samplerpool.engine import kernels_compiled

    return kernels_compiled.compile_kernel(cache=cache), kernels_compiled


def compile_cached(build: Callable[[bool], _Built]) -> _Built | str:
    """What ``build`` makes of numba, told whether numba may use its cache; or the reason why there is nothing."""
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}); install samplerpool[fast]"
    folder = _writable_cache(numba.__version__)
    with _compiling:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder or "")
        try:
            return build(folder is not None)
        except Exception as error:  # whatever a compiler of another release or on another CPU stumbles over: go without
            return f"numba {numba.__version__} cannot compile it ({type(error).__name__}: {error})"
        finally:
            numba.config.CACHE_DIR = before


def _writable_cache(numba_version: str) -> Path | None:
    """Where compiled kernels are kept: one folder for each state of their sources, as numba looks at one file only.

    Workers that start together each compile, and replace the file in one step.
    """
    digest = hashlib.sha256(numba_version.encode())
    for name in ("kernels_compiled.py", "kernels_simd.py", "small_ops_compiled.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    folder = cache_folder() / "kernels" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


# ---- its use -------------------------------------------------------------------------------------------------------


class AttentionPlan:
    """What all layers' attention has in common in one step. Not for use by two threads at once.

    The addresses must stay valid while the plan is used; that is the caller's duty.
    """

    def __init__(
        self,
        lengths: Tensor,
        key_pointers: Tensor,
        value_pointers: Tensor,
        key_strides: Tensor,
        value_strides: Tensor,
        *,
        counts: Tensor | None = None,
        threads: int | None = None,
    ) -> None:
        """
        Args:
            lengths: ``[tiles]`` integers, the number of keys that each tile's last token sees, its own included; the
                tokens before it see one less each.
            key_pointers: ``[tiles]`` or ``[layers, tiles]`` int64, the address of the row's first key of kv head 0. The
                keys of one kv head follow each other without gaps: ``[length, key_dim]`` float32.
            value_pointers: likewise, of the values.
            key_strides: ``[tiles]`` or ``[layers, tiles]`` int64, floats from one kv head's keys to the next one's.
            value_strides: likewise, of the values.
            counts: ``[tiles]`` integers, the tokens in each tile, at most as many as its length; None: one each.
            threads: at most so many; None: as many as torch uses.

        Raises:
            RuntimeError: the kernel is not available.
            ValueError: shapes do not fit together.
        """
        self._kernel = _kernel()
        self._lengths = torch.as_tensor(lengths, dtype=torch.int64).contiguous()
        tiles = len(self._lengths)
        self._counts = torch.ones_like(self._lengths) if counts is None else counts.to(torch.int64).contiguous()
        if self._counts.shape != self._lengths.shape or bool((self._counts > self._lengths.clamp(min=1)).any()):
            raise ValueError("counts must be one a tile, and none above the tile's length")
        self._firsts = self._counts.cumsum(0) - self._counts
        self._rows = int(self._counts.sum())
        self._most = int(self._counts.max()) if tiles else 1
        self._order = torch.argsort(self._lengths * self._counts, descending=True)
        tables = (key_pointers, value_pointers, key_strides, value_strides)
        self._tables = [torch.as_tensor(table, dtype=torch.int64).contiguous() for table in tables]
        for table in self._tables:
            if table.shape[-1] != tiles or table.dim() > 2:
                shape = list(table.shape)
                raise ValueError(f"pointers and strides must be [N] or [layers, N] for {tiles} tiles, not {shape}")
        self._addresses = [(table.data_ptr(), tiles * 8 if table.dim() == 2 else 0) for table in self._tables]
        self._layers = min((len(table) for table in self._tables if table.dim() == 2), default=1)
        self._tiles = tiles
        self._keys = int((self._lengths * self._counts).sum())
        self._threads = threads or torch.get_num_threads()
        self._parallel = openmp_parallel() if self._threads > 1 else None
        self._shape: tuple[int, int, int] | None = None
        self._argument = ctypes.create_string_buffer(self._kernel.argument.size)
        self._argument_address = ctypes.addressof(self._argument)

    def run(
        self,
        query: Tensor,
        out: Tensor,
        *,
        kv_heads: int,
        scaling: float,
        layer: int = 0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """One layer's attention of all tokens, written to ``out``. A tile of length 0 gets zeros.

        Args:
            query: ``[tokens, heads, key_dim]`` float32, one tile behind the other; any strides, but the last dimension
                without gaps.
            out: ``[tokens, heads, value_dim]`` float32, likewise.
            layer: which row of two-dimensional pointers and strides.
            scaling: of the scores.
            sliding_window: each token attends to so many of its last keys.
            softcap: scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
            sinks: ``[heads]`` float32, one more score a head, which takes weight and has no value (GPT-OSS).

        Raises:
            ValueError: shapes or dtypes do not fit together.
        """
        rows, heads, key_dim = query.shape
        out_rows, out_heads, value_dim = out.shape
        query_row, query_head, query_step = query.stride()
        out_row, out_head, out_step = out.stride()
        # The kernel reads and writes raw memory, so nothing that is wrong may reach it.
        if not rows == out_rows == self._rows or heads != out_heads or heads % kv_heads:
            raise ValueError(
                f"query {list(query.shape)} and out {list(out.shape)} must have {self._rows} rows and the same number "
                f"of heads, a multiple of {kv_heads}"
            )
        if query.dtype is not torch.float32 or out.dtype is not torch.float32 or not query_step == out_step == 1:
            raise ValueError("query and out must be float32 tensors whose last dimension is without gaps")
        if not 0 <= layer < self._layers:
            raise ValueError(f"layer {layer} is not among the {self._layers} of the plan's pointers")
        if sinks is not None and (sinks.dtype is not torch.float32 or sinks.shape != (heads,) or sinks.stride(0) != 1):
            raise ValueError(f"sinks must be {heads} float32 without gaps, not {list(sinks.shape)} {sinks.dtype}")
        group = heads // kv_heads
        if (group, key_dim, value_dim) != self._shape:
            self._make_room(group, key_dim, value_dim)
        keys, values, key_strides, value_strides = (start + layer * step for start, step in self._addresses)
        self._kernel.argument.pack_into(
            self._argument, 0, 0, 0, self._tiles * kv_heads, self._order.data_ptr(), self._firsts.data_ptr(),
            self._counts.data_ptr(), self._lengths.data_ptr(),
            keys, values, key_strides, value_strides, query.data_ptr(), query_row, query_head,
            out.data_ptr(), out_row, out_head, kv_heads, group, key_dim, value_dim, sliding_window or _NO_WINDOW,
            0 if sinks is None else sinks.data_ptr(), self._scratch.data_ptr(), self._scratch_bytes,
            scaling, softcap or 0.0,
        )  # fmt: skip
        if self._parallel is None or self._keys * heads * (key_dim + value_dim) < _SMALL_WORK:
            self._kernel.call(self._argument_address)
        else:
            self._parallel(self._kernel.address, self._argument_address, self._threads, 0)

    def _make_room(self, group: int, key_dim: int, value_dim: int) -> None:
        floats = self._kernel.scratch_floats(group * self._most, key_dim, value_dim)
        self._scratch_bytes = (floats * 4 + 127) // 64 * 64  # no two threads write to the same line of the cache
        self._scratch = torch.empty(self._threads * self._scratch_bytes, dtype=torch.uint8)
        self._shape = (group, key_dim, value_dim)


def decode_attention(
    query: Tensor,
    key_pointers: Tensor,
    value_pointers: Tensor,
    key_strides: Tensor,
    value_strides: Tensor,
    lengths: Tensor,
    out: Tensor,
    **options: Any,
) -> None:
    """One layer's attention without keeping the plan: see ``AttentionPlan`` (tensors) and its ``run`` (options)."""
    AttentionPlan(lengths, key_pointers, value_pointers, key_strides, value_strides).run(query, out, **options)
