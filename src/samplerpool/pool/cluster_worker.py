"""A worker on a machine of a Ray cluster, as the supervisor has it: a channel to the process that speaks to Ray.

That process (``python -m samplerpool.ray.driver``) is the only one of a pool on this machine that imports ray. It is
started with the first worker, and again when it has died. All workers die with it, and are then started again like
others that died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.config.logs import open_log
from samplerpool.errors import WorkerDied
from samplerpool.pool.cluster import ClusterPlan
from samplerpool.pool.descriptors import close_held, death_pipe
from samplerpool.pool.devices import WorkerPlan
from samplerpool.pool.logfiles import tail
from samplerpool.pool.process import parsed_report, spawn_module
from samplerpool.wire.endpoint import ProcessId

CLOSE_TIMEOUT_S = 8.0
"""How long the driver may take to give everything back to the cluster."""


class ClusterDriver:
    """The process that speaks to Ray, when there is one.

    Args:
        pool: the pool's name, for people who look at the cluster.
        plan: where the workers are to run.
        log: file for its output.
    """

    def __init__(self, pool: str, plan: ClusterPlan, log: Path) -> None:
        self._settings = {"pool": pool, "plan": asdict(plan)}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._death_fd, self._death_write_end = death_pipe()

    def hand_over(self, channel: socket.socket, document: str) -> None:
        """Have a worker run.

        Args:
            channel: its end of the worker's channel.
            document: about the worker.

        Raises:
            OSError: the driver cannot be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._start()
        assert self._control is not None
        with open(os.memfd_create("samplerpool"), "w+b") as file:  # of any size, and nobody waits for it to be read
            file.write(document.encode())
            file.flush()
            file.seek(0)
            socket.send_fds(self._control, [b"worker"], [channel.fileno(), file.fileno()])

    def _start(self) -> None:
        self._control, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = open_log(self.log, go_on=True)
        try:
            settings = {
                **self._settings,
                "control_fd": other_end.fileno(),
                "death_fd": self._death_fd,
                "supervisor_pid": os.getpid(),
            }
            self._process = spawn_module(
                "samplerpool.ray.driver",
                json.dumps(settings),
                environ=os.environ,
                output=output,
                pass_fds=(other_end.fileno(), self._death_fd),
            )
        finally:
            other_end.close()
            os.close(output)

    def _end(self, timeout_s: float = 0.0) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Give everything back to the cluster. Whatever that takes, nothing of it is left here."""
        self._end(CLOSE_TIMEOUT_S)
        os.close(self._death_fd)
        close_held(self._death_write_end)


class ClusterWorker:
    """One worker, from the request for its place to its end. See ``pool.process.WorkerProcess``.

    Args:
        config: what is of one machine alone is filled in on the worker's.
        plan: of its environment there.
        keys: text of the file of known keys.
        log: file for a copy of its output.

    Raises:
        OSError: it cannot be asked for.
    """

    def __init__(
        self, driver: ClusterDriver, config: WorkerConfig, plan: WorkerPlan, keys: str, log: Path, *, restarted: bool
    ) -> None:
        self.config = config
        self.log = log
        self.device = plan.device
        self.node = ""
        self.endpoint = ""
        self.identity = ProcessId(0, 0)
        self.returncode = 0
        self._driver = driver
        self._channel, other_end = socket.socketpair()
        self._pending = b""
        self._ended = False
        document = {
            "config": asdict(config),
            "plan": asdict(plan),
            "keys": keys,
            "version": version("samplerpool"),
            "log": str(log),
            "restarted": restarted,
        }
        try:
            self._channel.setblocking(False)
            with other_end:
                driver.hand_over(other_end, json.dumps(document))
        except BaseException:
            self._channel.close()
            raise

    @property
    def pid(self) -> int:
        """Of its process on its machine; 0: not known yet."""
        return self.identity.pid

    @property
    def descriptors(self) -> tuple[int, ...]:
        """When one of these can be read, there is a report, or the end."""
        return (self._channel.fileno(),)

    @property
    def status_fd(self) -> int:
        """The one that ends."""
        return self._channel.fileno()

    def read_status(self) -> tuple[list[dict[str, Any]], bool]:
        """Reports that have arrived, and whether that was all."""
        told: list[dict[str, Any] | None] = []
        with contextlib.suppress(BlockingIOError):
            while chunk := self._receive():
                *lines, self._pending = (self._pending + chunk).split(b"\n")
                told += [self._told(report) for line in lines if (report := parsed_report(line)) is not None]
            if not self._ended:
                told.append(self._lost())
        return [report for report in told if report is not None], self._ended

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(65536)
        except ConnectionResetError:
            return b""

    def _told(self, report: dict[str, Any]) -> dict[str, Any] | None:
        """What the policy is to hear of it."""
        match report:
            case {"event": "started", "pid": int(pid), "node": str(node), "device": str(device)}:
                self.identity, self.node, self.device = ProcessId(pid, 0), node, device
                return {"event": "loading", "detail": f"starting on {node}"}
            case {"event": "exited", "returncode": int(returncode)}:
                self.returncode, self._ended = returncode, True
                return None
            case {"event": "failed", "error": [name, message, data]} if self.node:
                return {"event": "failed", "error": [name, f"On {self.node}: {message}", data]}
        return report

    def _lost(self) -> dict[str, Any]:
        """The channel ended without a word: it was killed from here, or the driver is gone."""
        self._ended, self.returncode = True, -signal.SIGKILL
        last = tail(self._driver.log)
        ending = f" Its log {self._driver.log} ends with:\n{last}" if last else ""
        error = WorkerDied(f"The pool has lost the Ray cluster.{ending}")
        return {"event": "failed", "error": error.to_wire()}

    def terminate(self) -> None:
        """Ask it to end."""
        self._ask({"do": "terminate"})

    def dump_stacks(self) -> None:
        """Ask it to write its threads' stacks into its log."""
        self._ask({"do": "dump_stacks"})

    def let_in(self, keys: str) -> None:
        """Tell it the text of the file of known keys."""
        self._ask({"do": "let_in", "keys": keys})

    def _ask(self, what: Mapping[str, str]) -> None:
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(what).encode() + b"\n")

    def kill(self) -> None:
        """End it at once, or take it as ended: whatever is left of it there, the driver sees to."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        if not self._ended:
            self._ended, self.returncode = True, -signal.SIGKILL

    def exited(self) -> bool:
        """Whether it has ended; ``returncode`` (negative: the signal that ended it) is known then."""
        return self._ended

    def reap(self) -> None:
        """Let go of it."""
        self._channel.close()
