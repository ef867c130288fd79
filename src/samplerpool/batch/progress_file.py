"""How far a run is, in a file beside its output, for whoever watches from elsewhere.

It is replaced as a whole about once a second, and stays behind with the state in which the run ended. A run that was
killed cannot say so: then ``state`` is still ``running``, and the process that it names is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from samplerpool.batch.tally import Progress
from samplerpool.wire.endpoint import ProcessId

FORMAT = 1
PROGRESS_SUFFIX = ".progress.json"
INTERVAL_S = 1.0

RunState = Literal["running", "stopping", "complete", "interrupted", "failed"]


def progress_path(output: Path) -> Path:
    """Where the file of an output's run is."""
    return output.with_name(output.name + PROGRESS_SUFFIX)


def figures(progress: Progress) -> dict[str, Any]:
    """The fields that tell of the work. Times in seconds; tokens and errors are those of this run alone.

    Answers are counted, of which a row has ``num_return_sequences``; ``done`` and ``total`` include those of earlier
    runs. What is not known is None.
    """
    return {
        "done": progress.done,
        "total": progress.total,
        "errors": progress.errors,
        "prompt_tokens": progress.prompt_tokens,
        "completion_tokens": progress.completion_tokens,
        "prompt_tokens_per_s": round(progress.prompt_tokens_per_s, 1),
        "completion_tokens_per_s": round(progress.tokens_per_s, 1),
        "elapsed_s": round(progress.elapsed_s, 1),
        "left_s": None if progress.left_s is None else round(progress.left_s, 1),
        "worker_deaths": progress.deaths,
        "worker_restarts": progress.restarts,
        "suspected_rows": progress.suspects,
        "workers": [
            {
                "index": worker.index,
                "state": worker.state,
                "rows": worker.rows,
                "completion_tokens": worker.tokens,
                "running": worker.running,
                "utilisation": round(worker.utilisation, 3),
                "restarts": worker.restarts,
            }
            for worker in progress.workers
        ],
    }


class ProgressFile:
    """The file of the run in this process. Writing it never fails a run.

    Args:
        output: the output's path.
        note: gets a sentence, once, when the file cannot be written.
        clock: seconds, for the distance between two writes.

    As a context manager it leaves the state in which the run ended: ``failed``, with the reason, where an exception
    came through; ``interrupted`` where that was KeyboardInterrupt; else what ``state`` is then.
    """

    def __init__(
        self,
        output: Path,
        note: Callable[[str], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = progress_path(output)
        self.state: RunState = "running"
        self._note = note
        self._clock = clock
        self._written_at: float | None = None
        self._figures: dict[str, Any] = {}
        self._error: str | None = None
        own = ProcessId.of(os.getpid())
        self._run = {
            "format": FORMAT,
            "output": str(output),
            "host": socket.gethostname(),
            "pid": own.pid,
            "pid_start_time": own.start_time,
            "began": round(time.time(), 1),
        }

    def update(self, progress: Progress) -> None:
        """Note the figures, and write them if it is time."""
        self._figures = figures(progress)
        now = self._clock()
        if self._written_at is None or now - self._written_at >= INTERVAL_S:
            self._written_at = now
            self.write()

    def write(self) -> None:
        """Write what is known now."""
        content = {**self._run, "updated": round(time.time(), 1), "state": self.state, "error": self._error}
        partial = self.path.with_name(self.path.name + ".new")
        try:
            partial.write_text(json.dumps({**content, **self._figures}, indent=1) + "\n")
            os.replace(partial, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            if self._note is not None:
                self._note(f"{self.path} cannot be written ({error.strerror}); the batch goes on without it.")
                self._note = None

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            interrupted = isinstance(value, KeyboardInterrupt | GeneratorExit)
            self.state = "interrupted" if interrupted else "failed"
            self._error = None if interrupted else f"{type(value).__name__}: {value}"
        self.write()


class ProgressRead:
    """What the file of a run says.

    Args:
        output: the output's path.

    ``fields`` is empty if there is no file, or none that can be read.
    """

    def __init__(self, output: Path) -> None:
        self.fields: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(progress_path(output).read_bytes())
            if isinstance(read, dict) and read.get("format") == FORMAT:
                self.fields = read

    @property
    def process(self) -> ProcessId | None:
        """The run's process, if it is on this machine and still there."""
        if self.fields.get("host") != socket.gethostname():
            return None
        process = ProcessId(self.fields.get("pid", 0), self.fields.get("pid_start_time", 0))
        return process if process.alive() else None

    @property
    def ended(self) -> bool:
        """Whether the run has ended, in whatever way; of another machine's, whether it has said so."""
        if self.fields.get("state") not in ("running", "stopping"):
            return True
        return self.fields.get("host") == socket.gethostname() and self.process is None
