"""``python -m samplerpool.worker``: one model on one device behind one socket. Started by a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from samplerpool.config.arguments import WorkerConfig
from samplerpool.config.logs import LogFile
from samplerpool.errors import EngineBroken, SamplerPoolError, StartFailed
from samplerpool.model.fingerprint import fingerprint
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.wire.figures import FigureReport
from samplerpool.wire.keys import KeyRing, Lock
from samplerpool.worker.build import Built, build_sampler
from samplerpool.worker.ranks import rank_cores
from samplerpool.worker.request_log import RequestLog
from samplerpool.worker.server import WorkerServer
from samplerpool.worker.upkeep import let_collections_be_rare, offer_to_the_oom_killer, resident_bytes
from samplerpool.worker.watch import watch_parent

log = logging.getLogger("samplerpool.worker")

SWITCH_INTERVAL_S = 0.0005
"""The socket's thread gets the interpreter within this time, even from an engine that never waits."""

MAX_BREAKS = 5
"""Steps of the engine in a row that may raise before it counts as beyond repair, as it is after some errors of a GPU.
More than a single bad request causes, which is sent again a few times."""

FIGURES_INTERVAL_S = 1.0
LOG_CHECK_INTERVAL_S = 1.0


class StatusPipe:
    """Tells the supervisor, one JSON line an event. A supervisor that does not read costs the worker nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.ready = False
        if descriptor >= 0:
            os.set_blocking(descriptor, False)
            os.set_inheritable(descriptor, False)

    def tell(self, event: str, **data: Any) -> None:
        """Write one event, if there is anybody to read it."""
        log.info("%s", data.get("detail") or event)
        self.ready |= event == "ready"
        if not self._write(event, data):
            log.warning("the supervisor did not take the event %r", event)

    def tell_progress(self, steps: int, live: int, busy: bool) -> None:
        """Write how far the engine is. One that is not taken is followed by the next."""
        self._write("progress", {"steps": steps, "live": live, "busy": busy})

    def tell_figures(self, figures: FigureReport) -> None:
        """Write what has been counted. One that is not taken is followed by the next."""
        self._write("metrics", figures.to_plain())

    def _write(self, event: str, data: dict[str, Any]) -> bool:
        if self._descriptor < 0:
            return True
        try:
            os.write(self._descriptor, json.dumps({"event": event, **data}).encode() + b"\n")
        except (BlockingIOError, BrokenPipeError):
            return False
        return True


def main() -> int:
    """Run one worker; the exit code is 0 after a stop, 1 if it could not start."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks for the stacks of a worker that hangs
    offer_to_the_oom_killer()
    config = WorkerConfig.from_dict(json.load(sys.stdin))
    log_file = LogFile(
        Path(config.log) if config.log else None,
        config.max_log_bytes,
        "%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    watch_parent(config.supervisor_pid, config.death_fd)
    if cores := rank_cores(config.cores, 0, config.devices):
        os.sched_setaffinity(0, cores)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    status = StatusPipe(config.status_fd)
    try:
        asyncio.run(_run(config, status, log_file))
    except SamplerPoolError as error:
        log.error("%s", error.message)
        status.tell("failed", error=error.to_wire())
        return 1
    except Exception as error:
        log.exception("the worker failed")
        failure = StartFailed(f"Worker {config.index} failed: {type(error).__name__}: {error}")
        status.tell("failed", error=failure.to_wire())
        return 1
    return 0


async def _run(config: WorkerConfig, status: StatusPipe, log_file: LogFile) -> None:
    keeping = asyncio.create_task(_every(LOG_CHECK_INTERVAL_S, log_file.rotate_if_large))  # native code writes as well
    signals = _signals()
    building = asyncio.create_task(asyncio.to_thread(_build, config, status))
    told_to_stop = asyncio.create_task(signals.get())
    await asyncio.wait((building, told_to_stop), return_when=asyncio.FIRST_COMPLETED)
    if not building.done():
        os._exit(0)  # told to stop while loading: a thread inside a library cannot be ended otherwise
    built = building.result()
    sampler = built.sampler
    let_collections_be_rare()
    try:
        server = _serve(config, built)
    except SamplerPoolError:
        built.close()
        raise
    try:
        status.tell("ready", description=server.description(), endpoint=server.endpoint)
        telling = _start_telling(config, status, sampler, server)
        await told_to_stop
        log.info("draining; a second signal skips it")
        await _drain(server, signals)
        for task in telling:
            task.cancel()
        server.stop()
        if config.report_figures:
            status.tell_figures(server.figures())
    finally:
        keeping.cancel()
        built.close()
        server.close()
        log.info("stopped")


def _signals() -> asyncio.Queue[int]:
    """Signals to stop, as they come. Those that come when the loop has ended change nothing.

    asyncio's own handlers would write them to a closed descriptor then, which shows in the log as an exception.
    """
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def take(number: int, _frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(signals.put_nowait, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, take)
    return signals


def _serve(config: WorkerConfig, built: Built) -> WorkerServer:
    facts = {
        "model": built.model,
        "pid": os.getpid(),
        "device": config.engine.device,
        "fingerprint": _fingerprint(config),
        **built.facts,
    }
    worker = f"w{config.index}"
    return WorkerServer(
        built.sampler,
        config.endpoint,
        config.incarnation,
        lambda: {**facts, "memory_bytes": resident_bytes(built.pids)},
        config.limits,
        RequestLog(config.log_requests, worker).on_ended,
        worker,
        Lock(config.secret_key, KeyRing(Path(config.known_keys))) if config.secret_key else None,
    )


def _start_telling(
    config: WorkerConfig, status: StatusPipe, sampler: BaseSampler, server: WorkerServer
) -> list[asyncio.Task[None]]:
    """Reports in intervals, from the socket's own loop, so that silence means that this loop does not turn."""

    def progress() -> None:
        if sampler.breaks >= MAX_BREAKS:
            raises = f"The engine raised in {sampler.breaks} steps in a row, so the worker ends."
            _give_up(status, EngineBroken(raises))
        steps, busy = sampler.progress()
        status.tell_progress(steps, server.live, busy)

    reports: list[tuple[float, Callable[[], None]]] = [(config.progress_interval_s, progress)]
    if config.report_figures:
        reports.append((FIGURES_INTERVAL_S, lambda: status.tell_figures(server.figures())))
    return [asyncio.create_task(_every(interval_s, report)) for interval_s, report in reports]


def _give_up(status: StatusPipe, error: SamplerPoolError) -> NoReturn:
    """End, to be started again: the engine would fail all that is sent here.

    At once, because native code in an unknown state may never end in good order.
    """
    log.error("%s", error.message)
    status.tell("failed", error=error.to_wire())
    os._exit(1)


async def _every(interval_s: float, do: Callable[[], None]) -> None:
    while True:
        do()
        await asyncio.sleep(interval_s)


async def _drain(server: WorkerServer, signals: asyncio.Queue[int]) -> None:
    """Wait until every request has ended, or for the next signal."""
    drained, told_again = asyncio.create_task(server.drain()), asyncio.create_task(signals.get())
    await asyncio.wait((drained, told_again), return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    told_again.cancel()


def _build(config: WorkerConfig, status: StatusPipe) -> Built:
    def broken(reason: str) -> NoReturn:
        _give_up(status, EngineBroken(reason) if status.ready else StartFailed(reason))

    return build_sampler(config, lambda detail: status.tell("loading", detail=detail), broken)


def _fingerprint(config: WorkerConfig) -> dict[str, Any]:
    """By which a batch knows the model again."""
    if config.engine.engine == "scripted":
        return {"name": "scripted", **config.engine.options}
    return fingerprint(config.model_args)


if __name__ == "__main__":
    sys.exit(main())
