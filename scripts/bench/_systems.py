"""The systems that are measured: each loaded in processes of its own, doing nothing while another one is measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import psutil
from _workloads import Requests

from samplerpool import SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.config.arguments import PoolArguments
from samplerpool.data.rows import Row
from samplerpool.pool.devices import plan_workers, worker_environment

TITLES: Mapping[str, str] = {
    "pool": "samplerpool, 1 worker",
    "pool2": "samplerpool, 2 workers",
    "torch": "samplerpool, without numba",
    "vllm": "vLLM",
    "static": "generate, batches of 32",
    "continuous": "generate_batch",
    "one_by_one": "one after the other",
    "bare": "bare engine",
    "bare2": "2 bare engines",
}
"""Short names, as options have them, to what people read; in the order of the tables."""

HERE = Path(__file__).resolve().parent
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 1_800.0
"""A child that has not loaded, or answered, after this time is taken for dead."""


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
        max_batch: most requests that one worker works on at a time.
        compiled: whether what numba compiles may be used.
    """

    def __init__(
        self, name: str, *, model: str, workers: int, engine: str, max_batch: int, compiled: bool = True
    ) -> None:
        self.name = name
        self.versions: dict[str, str] = {}
        before = {child.pid for child in psutil.Process().children()}
        options = {} if compiled else {"kernel": False}
        self._sampler = SyncSampler.launch(
            model, workers, devices="cpu", engine=engine, max_batch=max_batch, engine_options=options
        )
        self._children = [child for child in psutil.Process().children() if child.pid not in before]

    def run(self, requests: Requests) -> Outcome:
        """See ``System``. Rendering and tokenizing happen in the workers and are part of the time."""
        return self._together(requests) if requests.together else self._in_turn(requests)

    def _together(self, requests: Requests) -> Outcome:
        answers: dict[int, Any] = {}

        def take(result: Any) -> None:
            if result.error is not None:
                raise result.error
            answers[result.row.index] = result.answer

        rows = [Row(number, messages=list(messages)) for number, messages in enumerate(requests.conversations)]
        params = {"temperature": 0.0, "max_new_tokens": requests.max_new_tokens}
        start = time.perf_counter()
        run_batch(self._sampler.connection, rows, params=params, on_result=take)
        elapsed_s = time.perf_counter() - start
        texts = [answers[number].text for number in range(len(rows))]
        return Outcome(elapsed_s, texts, sum(answer.completion_tokens for answer in answers.values()))

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


class Child:
    """A process of ``_rival.py``, stopped by SIGSTOP while it is not used.

    Args:
        kind: one of ``_rival.KINDS``.
        folder: of the checkpoint.
        python: the interpreter that has its packages.
        arguments: further options of ``_rival.py``.
        environ: its whole environment; None for this process's.

    Raises:
        OSError: there is no such interpreter.
        RuntimeError: it could not load.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        python: str = sys.executable,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._kind = kind
        with ExitStack() as on_failure:
            self._log = on_failure.enter_context(tempfile.TemporaryFile("w+"))
            self._process = subprocess.Popen(
                [python, str(HERE / "_rival.py"), kind, str(folder), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=None if environ is None else dict(environ),
                text=True,
                start_new_session=True,
            )
            on_failure.callback(self.close)
            self.versions: dict[str, str] = self.reply()["ready"]
            self._pause()
            on_failure.pop_all()

    def ask(self, prompts: Sequence[list[int]], max_new_tokens: int = 1, together: bool = True) -> dict[str, Any]:
        """One request to it, in its own words, and the reply."""
        with self.awake():
            self.send(prompts, max_new_tokens, together)
            return self.reply()

    def send(self, prompts: Sequence[list[int]], max_new_tokens: int, together: bool) -> None:
        """Only the request; it must be awake."""
        assert self._process.stdin is not None
        document = {"prompts": list(prompts), "max_new_tokens": max_new_tokens, "together": together}
        print(json.dumps(document), file=self._process.stdin, flush=True)

    def reply(self) -> dict[str, Any]:
        """Its next line.

        Raises:
            RuntimeError: it has ended, or was ended because it took too long.
        """
        assert self._process.stdout is not None
        limit = threading.Timer(ANSWER_TIMEOUT_S, self._kill)
        limit.start()
        try:
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
            limit.join()
        if not line:
            self._log.seek(0)
            said = [text for text in self._log.read().splitlines() if text.strip()]
            raise RuntimeError(f"its process ended, or took too long: {said[-1] if said else 'without a word'}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """It runs meanwhile."""
        os.killpg(self._process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self._pause()

    def _pause(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGSTOP)

    def processes(self) -> list[psutil.Process]:
        """It and what it started."""
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it. Idempotent."""
        if self._process.returncode is None:
            self._kill()
            self._process.wait(STOP_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # of a request that it did not live to read
                    stream.close()


class Rival:
    """Another way to sample, in one or more children that share the prompts among them.

    Args:
        decode: from token ids to text.
    """

    def __init__(self, name: str, children: Sequence[Child], decode: Callable[[list[int]], str]) -> None:
        self.name = name
        self.versions = children[0].versions
        self._children = children
        self._decode = decode

    def run(self, requests: Requests) -> Outcome:
        """See ``System``. The time is the slowest child's own: sampling alone, without the way to it."""
        shares = self._shares(requests)
        with ExitStack() as awake:
            for child, _ in shares:
                awake.enter_context(child.awake())
            for child, share in shares:
                child.send(share.prompts, share.max_new_tokens, share.together)
            replies = [child.reply() for child, _ in shares]
        outputs: list[list[int]] = [output for reply in replies for output in reply["outputs"]]
        seconds = max(reply["seconds"] for reply in replies)
        return Outcome(seconds, [self._decode(output) for output in outputs], sum(map(len, outputs)))

    def _shares(self, requests: Requests) -> list[tuple[Child, Requests]]:
        """Halves, as a pool of two workers shares a list out; one request at a time keeps only one child busy."""
        count, total = len(self._children), len(requests.prompts)
        if not requests.together or count == 1:
            return [(self._children[0], requests)]
        ends = [-(-total * number // count) for number in range(count + 1)]
        shares = [requests.only(range(start, end)) for start, end in pairwise(ends)]
        return [(child, share) for child, share in zip(self._children, shares, strict=True) if share.prompts]

    def processes(self) -> list[psutil.Process]:
        """See ``System``."""
        return [process for child in self._children for process in child.processes()]

    def close(self) -> None:
        """See ``System``."""
        for child in self._children:
            child.close()


def bare_engines(count: int, folder: Path, *, engine: str, max_batch: int) -> list[Child]:
    """Engines without a pool, on the cores and with the threads that a pool's workers would get.

    Raises:
        RuntimeError: one could not load.
    """
    children: list[Child] = []
    with ExitStack() as on_failure:
        for plan in plan_workers(PoolArguments(workers=count, devices="cpu", engine=engine), []):
            cores = ",".join(map(str, plan.cores))
            child = Child(
                "bare",
                folder,
                arguments=["--batch", str(max_batch), "--engine", engine, *(["--cores", cores] if cores else [])],
                environ=worker_environment(plan, os.environ),
            )
            on_failure.callback(child.close)
            children.append(child)
        on_failure.pop_all()
    return children
