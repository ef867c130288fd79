"""A supervisor as a process of its own: ``python -m samplerpool.pool``, its settings on standard input.

Reports of the launch go to ``report_fd``, one JSON object a line: ``{"event": "progress", "text"}``,
``{"event": "open", "connection"}`` (path of the connection file) or ``{"event": "failed", "error": [name, message,
data]}``. A launcher that has left is no error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from typing import Any

from samplerpool.config.logs import LogFile, open_log
from samplerpool.errors import SamplerPoolError, StartFailed
from samplerpool.pool.logfiles import supervisor_log
from samplerpool.pool.settings import PoolSettings
from samplerpool.pool.supervisor import Outcome, Supervisor
from samplerpool.wire.endpoint import connection_path
from samplerpool.wire.names import name_lock


class Reporter:
    """Writes one JSON object a line into a pipe, for as long as there is a reader."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
            os.set_blocking(descriptor, False)  # a stopped launcher must not stop us

    def report(self, event: str, **values: Any) -> None:
        """Send one report."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps({"event": event, **values}, default=str).encode() + b"\n")

    def close(self) -> None:
        """The launch is over. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def main() -> int:
    """Run one pool. Returns the process's exit code."""
    settings = PoolSettings.from_json(sys.stdin.read())
    reporter = Reporter(settings.report_fd)
    try:
        with name_lock(settings.pool):
            _log_to_file(settings)
            outcome = _run(settings, reporter)
            if not settings.keep_logs and outcome.error is None and not outcome.deaths:
                shutil.rmtree(settings.log_folder, ignore_errors=True)
    except SamplerPoolError as error:
        outcome = Outcome(1, error)
    except OSError as error:
        outcome = Outcome(1, StartFailed(f"The pool cannot be started: {error}."))
    if outcome.error is not None:
        logging.getLogger("samplerpool.pool").error(outcome.error.message)
        reporter.report("failed", error=outcome.error.to_wire())
    reporter.close()
    return outcome.exit_code


def _run(settings: PoolSettings, reporter: Reporter) -> Outcome:
    def opened(_: object) -> None:
        reporter.report("open", connection=str(connection_path(settings.folder, settings.pool)))
        reporter.close()

    return Supervisor(settings, lambda text: reporter.report("progress", text=text), opened).run()


def _log_to_file(settings: PoolSettings) -> None:
    """From here on, output goes to the log; only the holder of the pool's name may replace that."""
    path = supervisor_log(settings.log_folder)
    log = open_log(path)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(null)
    LogFile(path, settings.pool_args.max_log_bytes, "%(asctime)s %(levelname)s %(message)s")


if __name__ == "__main__":
    sys.exit(main())
