"""The systems that are measured: each loaded in processes of its own, doing nothing while another one is measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from _workloads import Requests

from samplerpool import SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.data.rows import Row

HERE = Path(__file__).resolve().parent
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Args:
        seconds: from the first prompt handed over to the last answer received.
        texts: of the answers, in the prompts' order, without special tokens.
        tokens: in the answers, end-of-sequence tokens included.
    """

    seconds: float
    texts: Sequence[str]
    tokens: int


class System(Protocol):
    """Something that samples."""

    name: str
    title: str
    versions: dict[str, str]

    def run(self, requests: Requests) -> Outcome:
        """Answer the requests, greedily."""

    def processes(self) -> list[psutil.Process]:
        """All of its processes."""

    def close(self) -> None:
        """End it."""


class Pool:
    """This project: a private pool of workers, used over its sockets.

    Args:
        workers: that share the machine's cores.
        max_batch: most requests that one worker works on at a time; None for the default.
    """

    def __init__(
        self, name: str, title: str, *, model: str | None, workers: int, engine: str, max_batch: int | None
    ) -> None:
        self.name, self.title = name, title
        self.versions: dict[str, str] = {}
        options: dict[str, Any] = {} if max_batch is None else {"max_batch": max_batch}
        before = {child.pid for child in psutil.Process().children()}
        self._sampler = SyncSampler.launch(model, workers, devices="cpu", engine=engine, **options)
        self._children = [child for child in psutil.Process().children() if child.pid not in before]
        self.description = self._sampler.connection.describe(0, timeout_s=10.0)

    def run(self, requests: Requests) -> Outcome:
        """See ``System``. Rendering and tokenizing happen in the workers and are part of the time."""
        return self._together(requests) if requests.together else self._in_turn(requests)

    def _together(self, requests: Requests) -> Outcome:
        texts: list[str] = []
        tokens: list[int] = []

        def take(result: Any) -> None:
            if result.error is not None:
                raise result.error
            texts.append(result.answer.text)
            tokens.append(result.answer.completion_tokens)

        rows = [Row(number, messages=list(messages)) for number, messages in enumerate(requests.conversations)]
        params = {"temperature": 0.0, "max_new_tokens": requests.max_new_tokens}
        start = time.perf_counter()
        run_batch(self._sampler.connection, rows, params=params, on_result=take)
        return Outcome(time.perf_counter() - start, texts, sum(tokens))

    def _in_turn(self, requests: Requests) -> Outcome:
        texts: list[str] = []
        tokens = 0
        start = time.perf_counter()
        for messages in requests.conversations:
            answer = self._sampler.generate(messages, temperature=0.0, max_new_tokens=requests.max_new_tokens)
            texts.append("".join(answer))
            assert self._sampler.last is not None
            tokens += self._sampler.last.completion_tokens
        return Outcome(time.perf_counter() - start, texts, tokens)

    def processes(self) -> list[psutil.Process]:
        """See ``System``."""
        return [process for child in self._children for process in (child, *child.children(recursive=True))]

    def close(self) -> None:
        """See ``System``."""
        self._sampler.close()


class Rival:
    """Another way to sample, in a child process (``_rival.py``), stopped by SIGSTOP while it is not used.

    Args:
        kind: one of ``_rival.KINDS``.
        python: the interpreter that has its packages.
        folder: of the checkpoint.
        batch: most prompts in a batch.
        decode: from token ids to text.
    """

    def __init__(
        self, kind: str, title: str, *, python: str, folder: Path, batch: int, decode: Callable[[list[int]], str]
    ) -> None:
        self.name, self.title = kind, title
        self._decode = decode
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the child
        command = [python, str(HERE / "_rival.py"), kind, str(folder), "--batch", str(batch)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        try:
            self.versions: dict[str, str] = self._reply()["ready"]
        except BaseException:
            self.close()
            raise
        self._process = psutil.Process(self._child.pid)
        self._pause()

    def run(self, requests: Requests) -> Outcome:
        """See ``System``. The time is the child's own: sampling alone, without the way to it."""
        reply = self.ask(requests.prompts, requests.max_new_tokens, requests.together)
        outputs: list[list[int]] = reply["outputs"]
        return Outcome(reply["seconds"], [self._decode(output) for output in outputs], sum(map(len, outputs)))

    def ask(self, prompts: Sequence[list[int]], max_new_tokens: int = 1, together: bool = True) -> dict[str, Any]:
        """One request to the child, in its own words."""
        with self._awake():
            assert self._child.stdin is not None
            document = {"prompts": list(prompts), "max_new_tokens": max_new_tokens, "together": together}
            print(json.dumps(document), file=self._child.stdin, flush=True)
            return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.title} ended: {self._log.read()[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        os.killpg(self._child.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self._pause()

    def _pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGSTOP)

    def processes(self) -> list[psutil.Process]:
        """See ``System``."""
        return [self._process, *self._process.children(recursive=True)]

    def close(self) -> None:
        """See ``System``."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait(STOP_TIMEOUT_S)
        for stream in (self._child.stdin, self._child.stdout, self._log):
            if stream is not None:
                stream.close()
