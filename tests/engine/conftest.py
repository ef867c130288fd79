"""Real torch on tiny models."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("tests.engine_contract", "tests.model_zoo", "tests.near_ties")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest, one_thread: None) -> None:
    """For tests of what shares its work out among threads."""
    torch.set_num_threads(request.param)


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """Ending a manager of transformers collects garbage twice, which takes half a second with all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
