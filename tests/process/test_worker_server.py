"""The worker's server on a loop of the test's own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from samplerpool.worker import server
from samplerpool.worker.server import WorkerServer
from tests.process.conftest import DEADLINE_S


def test_a_fault_in_one_tick_does_not_end_the_ticking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_S", 0.005)
    sampler: Any = None

    async def run() -> None:
        faults: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.put_nowait(context))
        worker = WorkerServer(sampler, f"ipc://{tmp_path}/w.sock", "i")
        monkeypatch.setattr(worker, "_on_readable", lambda: 1 / 0)
        try:
            for _ in range(3):
                fault = await asyncio.wait_for(faults.get(), DEADLINE_S)
                assert isinstance(fault["exception"], ZeroDivisionError)
        finally:
            worker.close()

    asyncio.run(run())
