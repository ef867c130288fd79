"""What ``samplerpool batch`` does to its own process."""

from __future__ import annotations

import contextlib
import gc

from samplerpool.cli.batch_process import COLLECT_AFTER, rare_collection


def test_cycles_are_looked_for_rarely_during_a_run_and_as_before_behind_it():
    before = gc.get_threshold()
    with contextlib.suppress(KeyError), rare_collection():
        during = gc.get_threshold()
        raise KeyError
    assert during == (COLLECT_AFTER, *before[1:])
    assert gc.get_threshold() == before
