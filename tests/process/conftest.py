"""Real worker processes with the scripted engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from samplerpool import SyncSampler

DEADLINE_S = 20.0


@pytest.fixture
def sampler() -> Iterator[SyncSampler]:
    """A private pool of one scripted worker."""
    with SyncSampler.launch(engine="scripted", devices="cpu") as sampler:
        yield sampler


@pytest.fixture
def two_workers() -> Iterator[SyncSampler]:
    """A private pool of two scripted workers."""
    with SyncSampler.launch(engine="scripted", devices="cpu", workers=2) as sampler:
        yield sampler


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds, or fail."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.01)
