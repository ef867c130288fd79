"""What stands for one worker's place on a machine of the cluster: an actor that runs the worker's process.

The process is the one that a pool has everywhere, and hears of its supervisor's requests through the actor. It watches
the actor as it watches a supervisor elsewhere, so it ends when the actor does: with its pool, or its machine's Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.config.folders import shared_runtime_folder
from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.pool.addresses import NODE
from samplerpool.pool.descriptors import close_held, death_pipe
from samplerpool.pool.devices import WorkerPlan, worker_environment
from samplerpool.pool.process import WorkerProcess
from samplerpool.ray.logtail import LogTail
from samplerpool.wire.files import private_folder, write_private

LOOK_INTERVAL_S = 0.25
"""Between two looks at what the process has written."""

Report = dict[str, Any]


class Host:
    """Made by Ray, on the machine that it chose. One process at a time.

    Args:
        cpus, gpus: how many the place has.
    """

    def __init__(self, cpus: int, gpus: int) -> None:
        import ray

        context = ray.get_runtime_context()
        there = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        self._here = str(ray.util.get_node_ip_address())
        self._device = ",".join(f"cuda:{gpu}" for gpu in context.get_accelerator_ids().get("GPU", ())) or "cpu"
        self._share = min(1.0, gpus / there["GPU"] if gpus else cpus / there["CPU"])
        self._process: WorkerProcess | None = None
        self._folder, self._lock = _own_folder()
        self._death_fd, self._death_write_end = death_pipe()

    async def where(self) -> str:
        """The machine's address, as the others reach it. An answer means that the place exists."""
        return self._here

    async def run(self, document: str, release: str, keys: str) -> AsyncIterator[list[Report]]:
        """Run one process to its end.

        Args:
            document: a ``WorkerConfig`` and its ``WorkerPlan`` in JSON.
            release: of this package on the launching machine.
            keys: text of the file of the keys that are let in.

        Yields:
            Lists of what the process reports, of ``{"event": "log", "text"}``, and around them ``{"event": "started",
            "pid", "node", "device"}`` and ``{"event": "exited", "returncode"}``.
        """
        self._end_process()
        try:
            process = self._process = self._start(document, release, keys)
        except (OSError, SamplerPoolError) as error:
            failure = StartFailed(f"The worker could not be started on {self._here}: {error}")
            yield [{"event": "failed", "error": failure.to_wire()}, {"event": "exited", "returncode": 1}]
            return
        yield [{"event": "started", "pid": process.pid, "node": self._here, "device": self._device}]
        log = LogTail(process.log)
        async for reports in _until_exit(process, log):
            yield reports
        if self._process is process:
            self._end_process()
        yield [{"event": "exited", "returncode": process.returncode}]

    def _start(self, document: str, release: str, keys: str) -> WorkerProcess:
        if release != version("samplerpool"):
            raise StartFailed(
                f"samplerpool is {version('samplerpool')} there, and {release} where the pool was launched."
            )
        data = json.loads(document)
        config, plan = WorkerConfig.from_dict(data["config"]), WorkerPlan(**{**data["plan"], "cores": ()})
        write_private(self._known_keys, keys)
        log = self._folder / "worker.log"
        node = f"[{self._here}]" if ":" in self._here else self._here
        config = replace(
            config,
            endpoint=config.endpoint.replace(NODE, node),
            known_keys=str(self._known_keys),
            engine=replace(config.engine, machine_share=self._share / config.devices),
            log=str(log),
            death_fd=self._death_fd,
            supervisor_pid=os.getpid(),
        )
        return WorkerProcess(config, worker_environment(plan, os.environ), log, device=self._device, restarted=False)

    @property
    def _known_keys(self) -> Path:
        return self._folder / "known.keys"

    async def ask(self, incarnation: str, what: str) -> None:
        """Carry out ``terminate``, ``dump_stacks`` or ``kill`` on just this process."""
        process = self._process
        if process is not None and process.config.incarnation == incarnation:
            {"terminate": process.terminate, "dump_stacks": process.dump_stacks, "kill": process.kill}[what]()

    async def let_in(self, keys: str) -> None:
        """Know these keys from now on."""
        write_private(self._known_keys, keys)

    async def leave(self) -> None:
        """Leave nothing behind on this machine."""
        self._end_process()
        close_held(self._death_write_end)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def _end_process(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.reap()


async def _until_exit(process: WorkerProcess, log: LogTail) -> AsyncIterator[list[Report]]:
    """What it reports and writes, up to its end."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    watched = process.descriptors
    for descriptor in watched:
        loop.add_reader(descriptor, woken.set)
    try:
        ended = False
        while not ended:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), LOOK_INTERVAL_S)
            woken.clear()
            ended = process.exited()  # before the last look at what it said
            reports, silent = process.read_status()
            if silent:
                loop.remove_reader(process.status_fd)
            if text := log.read_new():
                reports.append({"event": "log", "text": text})
            if reports:
                yield reports
    finally:
        log.close()
        for descriptor in watched:
            loop.remove_reader(descriptor)


def _own_folder() -> tuple[Path, int]:
    """For the log and the known keys, and a descriptor that holds it; what hosts that were killed left is removed.

    Held by locks, because process numbers say nothing where machines or containers share the folder.
    """
    parent = private_folder(private_folder(shared_runtime_folder().absolute()) / "hosts")
    with open(parent / ".lock", "w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        for path in parent.glob("host-*"):
            _remove_unless_held(path)
        folder = Path(tempfile.mkdtemp(prefix="host-", dir=parent))
        lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_unless_held(folder: Path) -> None:
    with contextlib.suppress(OSError), open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
