"""torch's own OpenMP threads, for compiled code beside torch, and for keeping them quick.

A second pool of threads on the same cores would fight with torch's, so compiled kernels run on these.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

_PAUSE_SOFT = 1
"""``omp_pause_soft`` of OpenMP 5.0: give up the threads, keep the settings."""


def release_threads() -> None:
    """End the OpenMP threads that belong to the calling thread; its next parallel work starts them again.

    GNU's OpenMP keeps a pool for each thread that ever did parallel work, and lets its idle threads spin for a while
    only if all pools together have no more threads than there are cores. A pool that is left behind by the thread that
    loaded the model makes each parallel loop of the engine's thread begin with system calls.
    """
    library = _library()
    if library is not None and hasattr(library, "omp_pause_resource_all"):
        library.omp_pause_resource_all(_PAUSE_SOFT)


@lru_cache(maxsize=1)
def openmp_parallel() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP library that torch is linked to; None if torch has another kind of pool."""
    library = _library()
    if library is None:
        return None
    function = library.GOMP_parallel
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """Looked up through torch's library, whose dependencies the lookup follows: so it is the same copy."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        library = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), mode=os.RTLD_NOLOAD | os.RTLD_NOW
        )
        _ = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    return library
