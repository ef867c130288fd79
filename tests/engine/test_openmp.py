"""Threads of torch's OpenMP: those that a thread leaves behind can be ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from samplerpool.engine.openmp import openmp_parallel, release_threads

pytestmark = pytest.mark.skipif(openmp_parallel() is None, reason="torch has no OpenMP here that is known")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


def in_parallel() -> None:
    (torch.zeros(1 << 20) + 1).sum()


def test_released_threads_are_gone_and_come_again() -> None:
    found: list[int] = []

    def loader() -> None:  # the pool belongs to the thread that uses it
        before = threads_of_this_process()
        in_parallel()
        found.append(threads_of_this_process() - before)
        release_threads()
        found.append(threads_of_this_process() - before)
        in_parallel()
        found.append(threads_of_this_process() - before)
        release_threads()

    thread = threading.Thread(target=loader)
    thread.start()
    thread.join()
    assert found == [1, 0, 1]
