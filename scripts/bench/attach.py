"""How quickly a chat is there, and what the way through a worker's socket costs: three measurements.

1. **prompt**: from starting `samplerpool chat` in a pseudo-terminal, beside a running pool, until it asks for a line;
   and in turns with that, how long Python alone takes to start and end, which tells how fast the machine is.
2. **first-token**: one engine with the real model answers questions in its own process (`BaseSampler`)
   and to a client in another process, through its socket. Interleaved; each question is asked once.
3. **batch**: the same engine has a batch in all its places. Time to an answer's first token, in engine steps,
   and whether the rows of the batch come out as without questions.

    python scripts/bench/attach.py [--parts prompt,first-token,batch] [--starts 20] [--questions 40] [--model MODEL]

The first one needs `pexpect` (extra `dev`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pexpect
from rich.console import Console
from rich.table import Table

from samplerpool.chat.console import PROMPT
from samplerpool.client.answering import Answering
from samplerpool.client.connection import PoolConnection, WorkerAddress
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.config.arguments import EngineConfig, ModelArguments, PoolArguments, SampleArguments
from samplerpool.data.messages import to_v1
from samplerpool.pool.launcher import launch_pool
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.wire.messages import ChatPrompt
from samplerpool.worker.host import HostedWorker

PARTS = ("prompt", "first-token", "batch")
DEADLINE_S = 120.0
ANSWER_TOKENS = 8
BATCH_ROWS, ROW_TOKENS, PLACES = 24, 96, 8
WANTED_PROMPT_S, WANTED_ADDED_S, WANTED_STEPS = 0.5, 0.002, 3


def question(number: int) -> str:
    """One that was not asked before, of the same length as the others."""
    return f"Question {number:06d}: what is the capital of France?"


# ---- the prompt ----------------------------------------------------------------------------------------------------


def starts(repeats: int) -> dict[str, list[float]]:
    """Seconds from starting the command to its prompt, each time anew, and of Python alone; the first start is left
    out."""
    with tempfile.TemporaryDirectory(prefix="spb-", dir="/tmp") as folder:
        os.environ.update(dict.fromkeys(("SAMPLERPOOL_RUNTIME_DIR", "SAMPLERPOOL_STATE_DIR"), folder))
        pool = PoolArguments(workers=1, engine="scripted", devices="cpu")
        launched = launch_pool(ModelArguments(), SampleArguments(), pool, detached=True, private=False)
        try:
            pairs = [(_start(), _python()) for _ in range(repeats + 1)][1:]
            return {"chat": [chat for chat, _ in pairs], "python": [python for _, python in pairs]}
        finally:
            launched.stop(0.0)


def _start() -> float:
    began = time.perf_counter()
    chat = pexpect.spawn(sys.executable, ["-m", "samplerpool", "chat"], timeout=DEADLINE_S, dimensions=(24, 80))
    chat.expect_exact(PROMPT.strip())
    seconds = time.perf_counter() - began
    chat.sendeof()
    chat.expect(pexpect.EOF)
    chat.close()
    return seconds


def _python() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


# ---- time to first token ---------------------------------------------------------------------------------------------


def _client(endpoint: str, incarnation: str, orders: Connection) -> None:
    """Another process: for each question that it is sent, the seconds to its first text."""
    with PoolConnection([WorkerAddress(0, endpoint, incarnation)]) as connection:
        answering = Answering(connection)
        while (text := orders.recv()) is not None:
            began = time.perf_counter()
            answer = ContinuedAnswer(ChatPrompt(to_v1(text)), {"max_new_tokens": ANSWER_TOKENS, "temperature": 0.0})
            with closing(answering.stream(answer, timeout_s=DEADLINE_S)) as stream:
                next(stream)
                seconds = time.perf_counter() - began
                for _ in stream:
                    pass
            orders.send(seconds)  # not sooner, or the next question would be asked beside the rest of this answer


@contextmanager
def another_process(worker: HostedWorker) -> Iterator[Connection]:
    """A client of the worker's socket, to be sent questions."""
    ours, theirs = multiprocessing.Pipe()
    arguments = (worker.endpoint, worker.incarnation, theirs)
    process = multiprocessing.get_context("spawn").Process(target=_client, args=arguments)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()


async def _in_process(sampler: BaseSampler, text: str) -> float:
    began = time.perf_counter()
    stream = sampler.generate(text, max_new_tokens=ANSWER_TOKENS, temperature=0.0)
    await anext(stream)
    seconds = time.perf_counter() - began
    async for _ in stream:
        pass
    return seconds


def first_tokens(sampler: BaseSampler, worker: HostedWorker, questions: int) -> dict[str, list[float]]:
    """Seconds to the first text, in turns: in the engine's process, and in another one."""
    times: dict[str, list[float]] = {"in_process": [], "socket": []}
    with another_process(worker) as client, asyncio.Runner() as runner:
        for number in range(-2, questions):  # the first ones warm up
            for way in ("in_process", "socket") if number % 2 else ("socket", "in_process"):
                text = question(2 * number + (way == "socket") + 100)
                if way == "socket":
                    client.send(text)
                    seconds = client.recv()
                else:
                    seconds = runner.run(_in_process(sampler, text))
                if number >= 0:
                    times[way].append(seconds)
    return times


# ---- beside a batch --------------------------------------------------------------------------------------------------


def beside_a_batch(sampler: BaseSampler, worker: HostedWorker, questions: int) -> dict[str, Any]:
    """Steps and seconds to the first text while a batch has all places, and whether its rows stay the same."""
    rows = [{"messages": f"Row {number}: write a story about a lighthouse."} for number in range(BATCH_ROWS)]
    sampling: dict[str, Any] = {"max_new_tokens": ROW_TOKENS, "temperature": 0.8, "seed": 1, "ignore_eos": True}
    results = [asyncio.run(sampler.batch_infer(rows, **sampling))]
    enough = threading.Event()

    def answer_rows() -> None:
        while not enough.is_set():
            results.append(asyncio.run(sampler.batch_infer(rows, **sampling)))

    batch = threading.Thread(target=answer_rows)
    batch.start()
    steps, seconds = [], []
    try:
        with PoolConnection([WorkerAddress(0, worker.endpoint, worker.incarnation)]) as connection:
            for number in range(questions):
                while sampler.describe()["running"] < PLACES:
                    time.sleep(0.001)
                step, took = _asked(sampler, Answering(connection), question(number + 500_000))
                steps.append(step)
                seconds.append(took)
    finally:
        enough.set()
        batch.join()
    texts = [[row["generation"]["text"] for row in result] for result in results]
    same = statistics.mean(one == other for text in texts[1:] for one, other in zip(texts[0], text, strict=True))
    return {"steps": steps, "seconds": seconds, "rows": sum(map(len, texts[1:])), "same": same}


def _asked(sampler: BaseSampler, answering: Answering, text: str) -> tuple[int, float]:
    """The steps and the seconds to the first text of an answer, which is then read to its end."""
    began, first = time.perf_counter(), sampler.steps
    answer = ContinuedAnswer(ChatPrompt(to_v1(text)), {"max_new_tokens": ANSWER_TOKENS, "temperature": 0.0})
    stream = answering.stream(answer, timeout_s=DEADLINE_S)
    next(stream)
    told = sampler.steps - first, time.perf_counter() - began
    for _ in stream:
        pass
    return told


# ---- the run ---------------------------------------------------------------------------------------------------------


@contextmanager
def hosted(model: str | None) -> Iterator[tuple[BaseSampler, HostedWorker]]:
    """The real model in this process, and a socket to it."""
    from samplerpool.engine.factory import build_engine  # the client's process imports this file, too, and stays light
    from samplerpool.model.model_engine import ModelEngine

    arguments = ModelArguments() if model is None else ModelArguments(model_name_or_path=model)
    loaded = ModelEngine(arguments, device="cpu")
    engine = build_engine(EngineConfig(device="cpu", max_batch=PLACES), loaded.model, loaded.renderer)
    sampler = BaseSampler(SampleArguments(), arguments, loaded.model, loaded.renderer, engine=engine)
    worker = HostedWorker(sampler)
    try:
        yield sampler, worker
    finally:
        worker.close()
        sampler.close()


def run(parts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The measurements that are asked for, each printed when it is there."""
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    if "prompt" in parts:
        result["prompt_s"] = starts(options.starts)
        show("Until the prompt", prompt_rows(result["prompt_s"]))
    if {"first-token", "batch"} & set(parts):
        with hosted(options.model) as (sampler, worker):
            if "first-token" in parts:
                result["first_token_s"] = first_tokens(sampler, worker, options.questions)
                show("First token", first_token_rows(result["first_token_s"]))
            if "batch" in parts:
                result["beside_a_batch"] = beside_a_batch(sampler, worker, options.questions)
                show("Beside a batch", batch_rows(result["beside_a_batch"]))
    return result


Row = tuple[str, str, str, str]
"""What was measured, its median, its highest, and what is wanted."""


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title)
    for column in ("", "median", "highest", "wanted"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def prompt_rows(times: dict[str, list[float]]) -> list[Row]:
    """The start of a chat, and of Python."""
    ratio = statistics.median(times["chat"]) / statistics.median(times["python"])
    return [
        ("samplerpool chat, to its prompt", *_of(times["chat"], "s"), f"< {WANTED_PROMPT_S:g} s"),
        ("python -c pass", *_of(times["python"], "s"), ""),
        ("chat / python", f"{ratio:.1f}", "", ""),
    ]


def first_token_rows(times: dict[str, list[float]]) -> list[Row]:
    """Both ways, and what lies between them."""
    added = statistics.median(times["socket"]) - statistics.median(times["in_process"])
    return [
        ("in the engine's process", *_of([t * 1e3 for t in times["in_process"]], "ms"), ""),
        ("through the socket", *_of([t * 1e3 for t in times["socket"]], "ms"), ""),
        ("added by the socket", f"{added * 1e3:.2f} ms", "", f"< {WANTED_ADDED_S * 1e3:g} ms"),
    ]


def batch_rows(batch: dict[str, Any]) -> list[Row]:
    """Steps, time, and the rows of the batch."""
    return [
        ("engine steps to the first token", *_of(batch["steps"], ""), f"about {WANTED_STEPS}"),
        ("first token", *_of([t * 1e3 for t in batch["seconds"]], "ms"), ""),
        (f"of {batch['rows']} rows the same as without questions", f"{batch['same']:.1%}", "", "100 %"),
    ]


def _of(values: list[float], unit: str) -> tuple[str, str]:
    return f"{statistics.median(values):.2f} {unit}".rstrip(), f"{max(values):.2f} {unit}".rstrip()


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--starts", type=int, default=20, help="of samplerpool chat")
    parser.add_argument("--questions", type=int, default=40, help="of each kind")
    parser.add_argument("--model", help="hub id or path; the package's small one if left out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    result = run(parts, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
