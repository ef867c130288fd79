"""Which of several pools a chat attaches to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from samplerpool.chat import pools
from samplerpool.chat.pools import chosen_pool, described
from samplerpool.errors import PoolNotFound
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry


def pool(name: str, workers: int = 1, state: str = "running") -> ConnectionFile:
    entry = WorkerEntry(0, "ipc:///nowhere", "x", "cpu", "ready", ProcessId(1, 0))
    return ConnectionFile(name, "tiny", "dense", state, ProcessId(1, 0), "ipc:///x", (entry,) * workers, created=1000.0)


def test_a_pool_in_one_line() -> None:
    assert described(pool("night", 2), 4725.0) == "night: tiny, 2 workers, up 1h 02m"
    assert described(pool("late", state="stopping"), 1003.0) == "late: tiny, 1 worker, stopping, up 3s"


@pytest.mark.parametrize("running", [[], ["only"]])
def test_where_there_is_no_choice_nobody_is_asked(running: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "running_pools", lambda: [pool(name) for name in running])
    assert chosen_pool(lambda title, options: pytest.fail("asked")) is None


def test_one_of_several_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "running_pools", lambda: [pool("a"), pool("b")])
    asked: list[tuple[str, int]] = []

    def second(title: str, options: Sequence[str]) -> int:
        asked.append((title, len(options)))
        return 1

    assert chosen_pool(second) == "b"
    assert asked == [("2 pools are running:", 2)]
    with pytest.raises(PoolNotFound, match="--pool NAME"):
        chosen_pool(lambda title, options: None)
