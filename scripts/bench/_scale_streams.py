"""Part of ``scale.py``: what a streamed token frame costs the client, as fast as it goes and at the pace of a model."""

from __future__ import annotations

import threading
import time
from typing import Any

from _processes import POOL, own_folders, pool_of

from samplerpool import SyncSampler

MANY = 64
PACE_S = 0.02
CASES = {
    "1 stream": (1, 30_000, 0.0),
    f"{MANY} streams": (MANY, 2_000, 0.0),
    "1 stream at 50 tokens/s": (1, 500, PACE_S),
    f"{MANY} streams at 50 tokens/s": (MANY, 250, PACE_S),
}
"""Streams at a time, tokens of each, seconds between two tokens."""


def measure() -> dict[str, dict[str, float]]:
    """Each case once, all over one connection of this process."""
    with own_folders() as folder, pool_of(1, folder, max_batch=MANY), SyncSampler.connect(POOL) as sampler:
        consume(sampler, 1_000, 0.0)
        return {name: _case(sampler, *case) for name, case in CASES.items()}


def _case(sampler: SyncSampler, streams: int, tokens: int, pace_s: float) -> dict[str, float]:
    pieces: list[int] = []
    threads = [threading.Thread(target=lambda: pieces.append(consume(sampler, tokens, pace_s))) for _ in range(streams)]
    messages = sampler.connection.messages_received()
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    if len(pieces) != streams:
        raise RuntimeError("A stream failed.")
    frames = streams * tokens
    return {
        "frames_per_s": frames / elapsed_s,
        "pieces_per_frame": sum(pieces) / frames,
        "messages_per_frame": (sampler.connection.messages_received() - messages) / frames,
        "client_us_per_frame": cpu_s / frames * 1e6,
    }


def consume(sampler: SyncSampler, tokens: int, pace_s: float) -> int:
    """Read one answer to its end; how many pieces it came in."""
    prompt = f"[[tokens:{tokens}]][[pace:{pace_s}]]"
    pieces = sum(1 for _ in sampler.generate(prompt, max_new_tokens=tokens))
    last: Any = sampler.last
    if last is None or last.error is not None or len(last.token_ids) != tokens:
        raise RuntimeError(f"An answer is not as it should be: {last and last.error}")
    return pieces
