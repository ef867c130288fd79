"""The other processes of a worker whose model is divided: started, told, watched and ended by rank 0.

Rank 0 is the worker itself. The others belong to its session, so whoever kills that kills them, and they end by
themselves when it is gone. The other way round, the worker ends when one of them does, and the supervisor starts all of
them anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from samplerpool.config.arguments import WorkerConfig

log = logging.getLogger(__name__)

END_GRACE_S = 5.0
"""How long the others may take to end when they are told to."""
BLAME_S = 3.0
"""How long rank 0, whose exchange with another rank failed, waits to see whether that one has ended."""

Broken = Callable[[str], NoReturn]
"""Called with the reason; ends the process."""


class Ranks:
    """The ranks from 1 on, as a ``Group`` for the engine of rank 0.

    Args:
        config: of the worker; ``devices`` says how many ranks there are.
        on_broken: called, from any thread, when the ranks are of no use any more.
    """

    def __init__(self, config: WorkerConfig, on_broken: Broken) -> None:
        self.size = config.devices
        self._on_broken = on_broken
        self._ending = False
        self._channels: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._store = os.memfd_create("samplerpool-ranks")
        for rank in range(1, self.size):
            channel, theirs = Pipe()
            with theirs:
                self._processes.append(_spawn(config, rank, theirs.fileno(), self._store))
            self._channels.append(channel)
        threading.Thread(target=self._watch, name="samplerpool-watch-ranks", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Of all ranks."""
        return [os.getpid(), *(process.pid for process in self._processes)]

    def join(self, device: str) -> None:
        """Meet the others, which have begun to load their parts of the model. Takes as long as they need to start."""
        from samplerpool.engine.ranks import join

        join(0, self.size, store_path(self._store), device)

    def wait(self) -> None:
        """Until all have their parts of the model."""
        for channel in self._channels:
            try:
                channel.recv_bytes()
            except (EOFError, OSError) as error:
                self.fail(error)

    # ---- the engine's group -----------------------------------------------------------------------------------------

    def tell(self, order: str, *arguments: Any) -> None:
        """Have the others do something."""
        message = json.dumps((order, arguments), separators=(",", ":")).encode()
        for channel in self._channels:
            try:
                channel.send_bytes(message)
            except OSError as error:
                self.fail(error)

    def fail(self, error: BaseException) -> NoReturn:
        """End: the ranks are out of step. If another rank has ended, that is the reason."""
        if not self._ending:
            log.error("rank 0 is out of step with the others", exc_info=error)
            time.sleep(BLAME_S)  # the watching thread is faster, if there is anything to see
        self._on_broken(f"Rank 0 of {self.size} failed: {type(error).__name__}: {error}")

    # ---- their ends -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the others end. Idempotent."""
        self._ending = True
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.send_bytes(json.dumps(("end", ())).encode())
            channel.close()
        self._channels = []
        deadline = time.monotonic() + END_GRACE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        poller = select.poll()
        ranks = {os.pidfd_open(process.pid): rank for rank, process in enumerate(self._processes, 1)}
        for descriptor in ranks:
            poller.register(descriptor, select.POLLIN)
        [(descriptor, _), *_] = poller.poll()
        if self._ending:
            return
        rank = ranks[descriptor]
        code = self._processes[rank - 1].wait()
        how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
        self._on_broken(f"Rank {rank} of {self.size} (process {self._processes[rank - 1].pid}) {how}.")


def store_path(descriptor: int) -> str:
    """A file that only this process and those that inherit the descriptor can name, and that ends with them."""
    return f"/proc/self/fd/{descriptor}"


def rank_cores(cores: tuple[int, ...], rank: int, size: int) -> tuple[int, ...]:
    """The worker's cores that this rank is pinned to; empty means not pinned. Fewer cores than ranks are shared."""
    if len(cores) < size:
        return cores
    return cores[len(cores) * rank // size : len(cores) * (rank + 1) // size]


def _spawn(config: WorkerConfig, rank: int, channel: int, store: int) -> subprocess.Popen[bytes]:
    """Start a follower in this process's session. It gets no secrets, and no descriptor of the supervisor's."""
    own = replace(config, secret_key="", status_fd=-1, death_fd=-1, supervisor_pid=os.getpid())
    document = {"rank": rank, "channel": channel, "store": store, "worker": asdict(own)}
    with open(os.memfd_create("samplerpool"), "w+b") as stdin:
        stdin.write(json.dumps(document).encode())
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "samplerpool.worker.follower"],
            stdin=stdin,
            env={**os.environ, "LOCAL_RANK": str(rank)},  # transformers takes the device of this number
            pass_fds=(channel, store),
        )
