"""What happens to a pool's workers while a batch runs."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samplerpool.wire.endpoint import WorkerEntry, find_pool


class Troubles:
    """Sends signals to the workers of a pool while a batch runs."""

    def __init__(self, pool: str, seed: int) -> None:
        self._pool = pool
        self._draw = random.Random(seed)
        self.sent = 0

    def send(self, which: signal.Signals) -> None:
        """To one of the workers that are ready."""
        ready = [worker for worker in find_pool(self._pool).workers if _runs(worker)]
        if ready:
            os.kill(self._draw.choice(ready).process.pid, which)
            self.sent += which == signal.SIGKILL

    @contextmanager
    def kills(self, every_s: float) -> Iterator[None]:
        """Kill one every few seconds."""
        over = threading.Event()

        def kill() -> None:
            while not over.wait(every_s):
                self.send(signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _runs(worker: WorkerEntry) -> bool:
    if worker.state != "ready" or not worker.process.alive():
        return False
    status = Path(f"/proc/{worker.process.pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] != "T"
