"""What a batch's one client can feed, from 1 worker to 10,000, and where the first limit is.

The workers are simulated (``_simulated.py``): only their speed is made up. All that the client would do is the
project's own code and is timed as it runs: the decisions of ``BatchState`` at that number of workers, the codec's work
on messages with as many rows as the decisions put into one, a real ZeroMQ socket's work on a message, among many
sockets, and a row's way from its file and to the journal.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zmq
from _simulated import Machine, Simulation, zipf_lengths

from samplerpool.batch.events import Assign, Event
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import BatchOutput
from samplerpool.client.readiness import Readiness
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.selection import ALL
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry
from samplerpool.wire.messages import ChatPrompt, Completed, Generate
from samplerpool.wire.sockets import MAX_SOCKETS, client_context, open_dealer

PLACES = 16
PACE_S = 0.02
"""Seconds a token of each of a worker's requests: 800 tokens a second from a worker, as of a 7B model on one GPU."""
LONGEST = 1024
ROUNDS = 3
"""Rows for each place, so that the pool is in full swing for most of the run."""
QUESTION, ANSWER = "x" * 400, "y" * 800
SOCKETS = 64
MESSAGES = 20_000
ROWS = 20_000


@dataclass(frozen=True)
class Reach:
    """One number of workers.

    Args:
        rows_per_s: what they answer together, in the middle of the run.
        rows_per_message: that the client sends in one.
        decide_s, codec_s, socket_s, rows_s: of the client's CPU, a row; the last is reading it and putting it on disk.
        file_s: to read the connection file once.
        descriptors: that the client's sockets take.
    """

    workers: int
    rows_per_s: float
    rows_per_message: float
    decide_s: float
    codec_s: float
    socket_s: float
    rows_s: float
    file_s: float
    file_bytes: int
    descriptors: int

    @property
    def row_s(self) -> float:
        """The client's CPU for one row."""
        return self.decide_s + self.codec_s + self.socket_s + self.rows_s

    @property
    def cores(self) -> float:
        """Of the client, to keep all workers busy."""
        return self.row_s * self.rows_per_s


class _TimedSimulation(Simulation):
    """Notes what the decisions cost, and how they are sent."""

    def __init__(self, lengths: Sequence[int], machines: Sequence[Machine]) -> None:
        super().__init__(lengths, machines, known=False)
        self.decided_s, self.messages = 0.0, 0
        decide = self._state.handle

        def timed(*events: Event, now_s: float) -> Any:
            began = time.perf_counter()
            actions = decide(*events, now_s=now_s)
            self.decided_s += time.perf_counter() - began
            self.messages += sum(isinstance(action, Assign) for action in actions)
            return actions

        self._state.handle = timed  # type: ignore[assignment, method-assign]


def reach_of(workers: int, socket_s: float, rows_s: float) -> Reach:
    """One number of workers.

    Args:
        socket_s: a message's cost to the client, both ways.
        rows_s: the cost of a row's way from its file and to the journal.
    """
    count = workers * PLACES * ROUNDS
    lengths = zipf_lengths(count, workers, longest=LONGEST)
    simulation = _TimedSimulation(lengths, [Machine(PLACES, PACE_S)] * workers)
    simulation.run()
    per_message = count / simulation.messages
    file_s, file_bytes = _connection_file(workers)
    return Reach(
        workers,
        workers * PLACES / (PACE_S * sum(lengths) / count),
        per_message,
        simulation.decided_s / count,
        _codec_s(max(1, round(per_message))),
        socket_s / per_message,
        rows_s,
        file_s,
        file_bytes,
        2 * workers,
    )


def _codec_s(rows: int) -> float:
    """Seconds a row to encode requests of so many rows a message, and to decode as many answers."""
    message: Any = [{"role": "user", "content": [{"type": "text", "value": QUESTION}]}]
    params = {"temperature": 0.7, "max_new_tokens": LONGEST, "seed": 2**31}
    requests = [Generate(n, "i" * 16, ChatPrompt(message), params, 1, False, True) for n in range(1, rows + 1)]
    answers = encode([Completed(n, "stop", 120, 160, 2**31, ANSWER) for n in range(1, rows + 1)])
    times = max(20, 2000 // rows)
    began = time.perf_counter()
    for _ in range(times):
        encode(requests)
        decode_replies(answers)
    return (time.perf_counter() - began) / times / rows


def rows_s() -> float:
    """The client's CPU to read a row from a file of JSON Lines, and to write its answer to the journal."""
    question = [{"role": "user", "content": QUESTION}]
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text((json.dumps({"messages": question}) + "\n") * ROWS)
        with ALL.open(str(source)) as data, BatchOutput(output, 1) as file:
            file.begin(Manifest(str(source), None, **ALL.settings(), params={}, model={}, version="0", run_seed=0))
            began = time.process_time()
            for row in ALL.rows(data):
                file.write(RowResult(row, 0, 0, Answer(ANSWER, "stop", 120, 160, 0, None)))
            return (time.process_time() - began) / ROWS


def _connection_file(workers: int) -> tuple[float, int]:
    """Seconds to read it, and its bytes."""
    process = ProcessId(12345, 67890)
    entries = [
        WorkerEntry(
            n,
            f"ipc:///run/user/1000/samplerpool/pool-12345-w{n}-0123456789ab.sock",
            "0" * 12,
            "cuda:0",
            "ready",
            process,
        )
        for n in range(workers)
    ]
    file = ConnectionFile("pool", "model", "dense", "running", process, "ipc:///run/pool.sock", tuple(entries))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.json"
        file.write(path)
        began = time.perf_counter()
        ConnectionFile.read(path)
        return time.perf_counter() - began, path.stat().st_size


# ---- a message's cost -----------------------------------------------------------------------------------------------


def _echo(endpoints: Sequence[str], ready: Connection) -> None:
    """Another process: as many workers' sockets, which send back what comes."""
    context = zmq.Context()
    poller = zmq.Poller()
    with ExitStack() as stack:
        for endpoint in endpoints:
            router = stack.enter_context(context.socket(zmq.ROUTER))
            router.bind(endpoint)
            poller.register(router, zmq.POLLIN)
        ready.send(True)
        while True:
            for router, _ in poller.poll():
                while True:
                    try:
                        parts = router.recv_multipart(zmq.DONTWAIT)
                    except zmq.Again:
                        break
                    if parts[1] == b"end":
                        return
                    router.send_multipart(parts)


@contextmanager
def _echoes(count: int) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix="sp") as folder:
        endpoints = [f"ipc://{folder}/{number}" for number in range(count)]
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_echo, args=(endpoints, theirs))
        process.start()
        ours.recv()
        yield endpoints
        process.join()


def message_s() -> float:
    """The client's CPU for one message to a worker and one back, as its I/O thread sends and receives them."""
    with _echoes(SOCKETS) as endpoints, client_context() as context:
        sockets = [open_dealer(context, endpoint) for endpoint in endpoints]
        readiness = Readiness()
        for number, socket in enumerate(sockets):
            readiness.watch(number, socket)
        sent = received = 0
        turns = itertools.cycle(range(SOCKETS))
        began = time.process_time()
        while received < MESSAGES:
            while sent < MESSAGES and sent - received < SOCKETS:
                number = next(turns)
                sockets[number].send(b"x" * 1000, zmq.DONTWAIT)
                readiness.touched(number, sockets[number])
                sent += 1
            for name in readiness.wait(1.0):
                assert isinstance(name, int)
                while True:
                    try:
                        sockets[name].recv(zmq.DONTWAIT)
                    except zmq.Again:
                        break
                    received += 1
        spent = time.process_time() - began
        sockets[0].send(b"end")
        readiness.close()
        for socket in sockets:
            socket.close()
    return spent / MESSAGES


# ---- where it ends --------------------------------------------------------------------------------------------------


def first_limits(reaches: Sequence[Reach]) -> list[tuple[float, str]]:
    """What ends it, the nearest first: the number of workers and what is used up there."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    largest = reaches[-1]
    limits = [
        (MAX_SOCKETS, "sockets of one ZeroMQ context (wire.sockets.MAX_SOCKETS)"),
        (
            hard / (largest.descriptors / largest.workers),
            f"descriptors of one process (the hard limit here is {hard:,})",
        ),
    ]
    for before, after in itertools.pairwise(reaches):
        if before.cores < 1.0 <= after.cores:
            share = (1.0 - before.cores) / (after.cores - before.cores)
            limits.append((before.workers + share * (after.workers - before.workers), "one core of the client"))
    return sorted(limits)
