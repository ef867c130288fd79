"""The worker processes of one pool: carries out what is asked and turns what they report into events."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from samplerpool.config.arguments import EngineConfig, WorkerConfig
from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.pool.addresses import Addresses
from samplerpool.pool.cluster_worker import ClusterDriver, ClusterWorker
from samplerpool.pool.descriptors import close_held, death_pipe
from samplerpool.pool.devices import worker_environment
from samplerpool.pool.events import (
    Event,
    WorkerExited,
    WorkerFailed,
    WorkerLoading,
    WorkerProgress,
    WorkerReady,
    WorkerSpawned,
)
from samplerpool.pool.keybook import KeyBook
from samplerpool.pool.logfiles import cluster_log, tail, worker_log
from samplerpool.pool.metrics import MetricsBook
from samplerpool.pool.process import WorkerProcess
from samplerpool.pool.rules import PoolRules
from samplerpool.pool.settings import PoolSettings
from samplerpool.wire.addresses import new_incarnation, remove_socket

_log = logging.getLogger(__name__)

Readers = dict[int, Callable[[], None]]
"""What to call when a descriptor can be read."""


class WorkerSet:
    """All workers that have a process.

    Args:
        addresses: where their sockets are bound.
        keys: who may come in, where others can reach those.
        readers: descriptors to be watched are entered here, and removed with their worker.
        feed: called with each event.
        book: gets the workers' figures.
    """

    def __init__(
        self,
        settings: PoolSettings,
        addresses: Addresses,
        keys: KeyBook | None,
        readers: Readers,
        feed: Callable[[Event], None],
        book: MetricsBook,
    ) -> None:
        self._settings = settings
        self._addresses = addresses
        self._keys = keys
        self._readers = readers
        self._feed = feed
        self._book = book
        self._death_fd, self._death_write_end = death_pipe()
        self.plan = settings.plan
        self._progress_interval_s = PoolRules.of(settings.pool_args).progress_interval_s
        self._driver = _cluster_driver(settings)
        self.processes: dict[int, WorkerProcess | ClusterWorker] = {}
        self._spawned: set[int] = set()

    def spawn(self, index: int) -> None:
        """Start a worker, and feed ``WorkerSpawned`` or ``WorkerFailed``."""
        try:
            process = self._started(index)
        except (OSError, SamplerPoolError) as error:
            self._feed(WorkerFailed(index, StartFailed(f"Worker {index} could not be started: {error}.")))
            return
        self._spawned.add(index)
        self.processes[index] = process
        for descriptor in process.descriptors:
            self._readers[descriptor] = functools.partial(self._look, process)
        self._feed(WorkerSpawned(index, process.pid))

    def _started(self, index: int) -> WorkerProcess | ClusterWorker:
        config, plan = self._config(index), self.plan[index]
        log, restarted = worker_log(self._settings.log_folder, index), index in self._spawned
        if self._driver is not None and self._keys is not None:
            return ClusterWorker(self._driver, config, plan, self._keys.text(), log, restarted=restarted)
        environ = worker_environment(plan, os.environ)
        return WorkerProcess(config, environ, log, device=plan.device, restarted=restarted)

    def _config(self, index: int) -> WorkerConfig:
        settings, plan, incarnation = self._settings, self.plan[index], new_incarnation()
        return WorkerConfig(
            pool=settings.pool,
            index=index,
            endpoint=self._addresses.worker(index, incarnation),
            incarnation=incarnation,
            secret_key=self._keys.lock.secret if self._keys is not None else "",
            known_keys=str(self._keys.path) if self._keys is not None else "",
            model_args=settings.model_args,
            sample_args=settings.sample_args,
            engine=EngineConfig(
                engine=settings.pool_args.engine,
                device=plan.torch_device,
                max_batch=settings.pool_args.max_batch,
                max_model_len=settings.pool_args.max_model_len,
                machine_share=1 / sum(each.devices for each in self.plan),
                options=settings.pool_args.engine_options,
            ),
            limits=settings.pool_args.client_limits(),
            devices=plan.devices,
            split_mode=settings.pool_args.split_mode,
            cores=plan.cores,
            log=str(worker_log(settings.log_folder, index)),
            max_log_bytes=settings.pool_args.max_log_bytes,
            log_requests=settings.pool_args.log_requests,
            report_figures=settings.pool_args.metrics is not None,
            death_fd=self._death_fd,
            supervisor_pid=os.getpid(),
            progress_interval_s=self._progress_interval_s,
        )

    def terminate(self, index: int) -> None:
        """Ask a worker to end."""
        self.processes[index].terminate()

    def dump_stacks(self, index: int) -> None:
        """Ask a worker for its stacks."""
        self.processes[index].dump_stacks()

    def kill(self, index: int) -> None:
        """End a worker and its children at once."""
        self.processes[index].kill()

    def let_in(self, keys: str) -> None:
        """Tell workers that cannot see the file of known keys what is in it."""
        for process in self.processes.values():
            if isinstance(process, ClusterWorker):
                process.let_in(keys)

    def _look(self, process: WorkerProcess | ClusterWorker) -> None:
        """Take what it reports, and its end."""
        if self.processes.get(process.config.index) is not process:
            return  # its descriptor's number was another's when the loop woke up
        exited = process.exited()  # before the last look at what it said
        reports, silent = process.read_status()
        if silent:
            self._readers.pop(process.status_fd, None)
        self._report(process, reports)
        if exited or process.exited():
            self._forget(process)
            self._feed(WorkerExited(process.config.index, process.returncode, tail(process.log)))

    def _report(self, process: WorkerProcess | ClusterWorker, reports: list[dict[str, Any]]) -> None:
        index, incarnation = process.config.index, process.config.incarnation
        for report in reports:
            if report["event"] == "metrics" and self._book.take(index, incarnation, report):
                continue
            if report["event"] == "ready" and isinstance(endpoint := report.get("endpoint"), str):
                process.endpoint = endpoint
            event = report_event(index, report)
            if event is None:
                _log.warning("worker %d reported something unknown: %.200r", index, report)
            else:
                self._feed(event)

    def _forget(self, process: WorkerProcess | ClusterWorker) -> None:
        for descriptor in process.descriptors:
            self._readers.pop(descriptor, None)
        process.reap()
        remove_socket(process.config.endpoint)
        del self.processes[process.config.index]

    def reap_strangers(self) -> None:
        """As a container's first process: take leave of orphans that were handed to us, such as a worker's children."""
        ours = {process.pid for process in self.processes.values()}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in ours:
                    return  # its own turn comes
                os.waitpid(ended.si_pid, 0)

    def close(self) -> None:
        """Kill and reap whatever is left."""
        for process in self.processes.values():
            process.kill()
        for process in list(self.processes.values()):
            self._forget(process)
        if self._driver is not None:
            self._driver.close()
        os.close(self._death_fd)
        close_held(self._death_write_end)


def _cluster_driver(settings: PoolSettings) -> ClusterDriver | None:
    if settings.cluster is None:
        return None
    return ClusterDriver(settings.pool, settings.cluster, cluster_log(settings.log_folder))


def report_event(index: int, report: dict[str, Any]) -> Event | None:
    """What a line of a worker's status pipe means to the policy; None if it means nothing."""
    match report:
        case {"event": "loading"}:
            return WorkerLoading(index, str(report.get("detail") or ""))
        case {"event": "ready", "description": dict(description)}:
            return WorkerReady(index, description)
        case {"event": "progress", "steps": int(steps), "live": int(live), "busy": bool(busy)}:
            return WorkerProgress(index, steps, busy or live > 0)
        case {"event": "failed", "error": [str(name), str(message), dict(data)]}:
            return WorkerFailed(index, _worker_error(index, name, message, data))
    return None


def _worker_error(index: int, name: str, message: str, data: dict[str, Any]) -> SamplerPoolError:
    if name not in SamplerPoolError.by_name:
        name, message = StartFailed.__name__, f"Worker {index} could not start: {name}: {message}"
    if name == StartFailed.__name__:
        data = {**data, "worker": index}
    return SamplerPoolError.from_wire(name, message, data)
