"""The handle of one worker process: start, read what it reports, signal, reap. It decides nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import WorkerConfig
from samplerpool.config.logs import open_log
from samplerpool.wire.endpoint import ProcessId

_MAX_STATUS_BYTES = 1 << 20


def spawn_module(
    module: str,
    document: str,
    *,
    environ: Mapping[str, str],
    output: int,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` in a session of its own with a document on its standard input.

    The document travels as a file in memory: it may be of any size, no disk need have room for it, and the child may
    die without our noticing it here. ``-P`` keeps files of the current folder from taking the place of installed
    packages.
    """
    with open(os.memfd_create("samplerpool"), "w+b") as stdin:
        stdin.write(document.encode())
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=stdin,
            stdout=output,
            stderr=output,
            env=dict(environ),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )


class WorkerProcess:
    """One running worker. ``pool.cluster_worker.ClusterWorker`` looks the same, for one on another machine.

    Args:
        config: ``status_fd`` is filled in here; ``death_fd`` must be open in this process.
        environ: the child's whole environment.
        log: file for its output.
        device: as shown to people.
        restarted: its log goes on in the file of the process before, so that none of a row of crashes is lost.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, config: WorkerConfig, environ: Mapping[str, str], log: Path, *, device: str, restarted: bool
    ) -> None:
        self.config = config
        self.log = log
        self.device = device
        self.node = ""
        self.endpoint = "" if config.endpoint.startswith("tcp:") else config.endpoint
        """Where it was bound; of a port, it says so itself when it is ready."""
        output = open_log(log, go_on=restarted)
        if restarted:
            with contextlib.suppress(OSError):  # the disk is full
                os.write(output, f"---- worker {config.index} is started again ----\n".encode())
        self.status_fd, child_end = os.pipe()
        try:
            os.set_blocking(self.status_fd, False)
            self.config = dataclasses.replace(config, status_fd=child_end)
            self._process = spawn_module(
                "samplerpool.worker",
                json.dumps(dataclasses.asdict(self.config)),
                environ=environ,
                output=output,
                pass_fds=[fd for fd in (child_end, config.death_fd) if fd >= 0],
            )
        except BaseException:
            os.close(self.status_fd)
            raise
        finally:
            os.close(child_end)
            os.close(output)
        self.pid = self._process.pid
        self.identity = ProcessId.of(self.pid)
        self.pidfd = os.pidfd_open(self.pid)
        self.returncode = 0
        self._pending = b""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """When one of these can be read, there is a report, or the end."""
        return self.status_fd, self.pidfd

    def read_status(self) -> tuple[list[dict[str, Any]], bool]:
        """Reports that have arrived, and whether the pipe has ended. Lines that are no reports are dropped."""
        ended = False
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.status_fd, 65536):
                self._pending = (self._pending + chunk)[-_MAX_STATUS_BYTES:]
            ended = True
        *lines, self._pending = self._pending.split(b"\n")
        return [report for line in lines if (report := parsed_report(line)) is not None], ended

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Ask it, and the processes among which its model is divided, to write their threads' stacks into its log.

        To be killed afterwards: other children of it may end at once.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """End it and its children at once. Must not be called after ``reap``: the number may be another's by then."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def exited(self) -> bool:
        """Whether it has ended; ``returncode`` (negative: the signal that ended it) is known then."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        self.returncode = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return True

    def reap(self) -> None:
        """Take leave of a process that has ended or was killed; its children end with it."""
        self.kill()  # before its number is free for others
        self._process.wait()
        os.close(self.pidfd)
        os.close(self.status_fd)


def parsed_report(line: bytes) -> dict[str, Any] | None:
    """A line of a status pipe; None if it is no report."""
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) and isinstance(report.get("event"), str) else None
