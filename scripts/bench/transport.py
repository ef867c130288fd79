"""How much the way from engine to client costs: token frames and messages per second, client CPU, time to first token.

A scripted worker process serves one client over its socket, once with a single stream and once with many at a time. In
the same run, interleaved, the ceiling is measured: two processes that do nothing but send and receive, with plain
ZeroMQ (ROUTER to DEALER, ipc) and msgpack, one frame a message.

A *token frame* is what one engine step yields for one request. Frames that wait for the same client share messages, and
frames of the same request that wait join into one entry; so entries and messages are counted as well.

    python scripts/bench/transport.py [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq
from rich.console import Console
from rich.table import Table

from samplerpool import SyncSampler
from samplerpool.client.connection import Call, PoolConnection
from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import EngineRequest
from samplerpool.engine.scripted import ScriptedEngine
from samplerpool.types import Message
from samplerpool.wire.messages import ChatPrompt

CEILING_FRAMES = 100_000
ONE_STREAM_TOKENS = 60_000
STREAMS = 64
MANY_STREAMS_TOKENS = 2_000
FIRST_TOKEN_SAMPLES = 200


# ---- the ceiling --------------------------------------------------------------------------------------------------


def _send_frames(endpoint: str, frames: int) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.SNDHWM, 0)  # no limit: the ceiling must not wait, and a ROUTER drops what exceeds one
    socket.bind(endpoint)
    identity, _ = socket.recv_multipart()
    for index in range(frames):
        socket.send_multipart((identity, msgpack.packb((1, [(65, 1, index, (index & 255,), "x")]))))
    socket.close()
    context.term()


def ceiling() -> dict[str, float]:
    """Plain ZeroMQ and msgpack between two processes."""
    with tempfile.TemporaryDirectory(prefix="spb-", dir="/tmp") as folder:
        endpoint = f"ipc://{folder}/ceiling.sock"
        sender = multiprocessing.get_context("spawn").Process(target=_send_frames, args=(endpoint, CEILING_FRAMES))
        sender.start()
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(endpoint)
        socket.send(b"go")
        tokens = 0
        start, cpu = 0.0, 0.0
        for number in range(CEILING_FRAMES):
            for entry in msgpack.unpackb(socket.recv())[1]:
                tokens += len(entry[3])
            if number == 0:
                start, cpu = time.perf_counter(), time.process_time()
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        socket.close()
        context.term()
        sender.join()
    return {"frames_per_s": tokens / elapsed, "cpu_us_per_frame": cpu / tokens * 1e6}


# ---- streams through a SyncSampler --------------------------------------------------------------------------------


def prompt(text: str) -> ChatPrompt:
    """One user turn."""
    message: Message = {"role": "user", "content": [{"type": "text", "value": text}]}
    return ChatPrompt([message])


def one_stream(sampler: SyncSampler) -> dict[str, float]:
    """One ``generate`` as fast as it goes."""
    return _measured(sampler, lambda: _consume_one(sampler))


def _consume_one(sampler: SyncSampler) -> tuple[int, int]:
    entries = sum(1 for _ in sampler.generate(f"[[tokens:{ONE_STREAM_TOKENS}]]", max_new_tokens=ONE_STREAM_TOKENS))
    assert sampler.last is not None
    return len(sampler.last.token_ids), entries


def many_streams(sampler: SyncSampler) -> dict[str, float]:
    """Many requests at a time, their text consumed by one thread."""
    return _measured(sampler, lambda: _consume_many(sampler.connection))


def _consume_many(connection: PoolConnection) -> tuple[int, int]:
    deltas: queue.SimpleQueue[Call | str] = queue.SimpleQueue()
    entries = 0

    def on_update(call: Call) -> None:
        nonlocal entries
        entries += bool(call.delta)
        deltas.put(call if call.done else call.delta)

    text, params = prompt(f"[[tokens:{MANY_STREAMS_TOKENS}]]"), {"max_new_tokens": MANY_STREAMS_TOKENS}
    calls = [Call(text, params, on_update=on_update) for _ in range(STREAMS)]
    connection.submit(0, calls)
    left = len(calls)
    while left:
        left -= not isinstance(deltas.get(), str)
    return sum(len(call.token_ids) for call in calls), entries


def _measured(sampler: SyncSampler, run: Callable[[], tuple[int, int]]) -> dict[str, float]:
    messages = sampler.connection.messages_received()
    start, cpu = time.perf_counter(), time.process_time()
    frames, entries = run()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "frames_per_s": frames / elapsed,
        "entries_per_s": entries / elapsed,
        "messages_per_s": (sampler.connection.messages_received() - messages) / elapsed,
        "cpu_us_per_frame": cpu / frames * 1e6,
    }


# ---- time to first token ------------------------------------------------------------------------------------------


def first_token_over_socket(sampler: SyncSampler) -> list[float]:
    """Seconds from the call of ``generate`` to its first text."""
    times = []
    for _ in range(FIRST_TOKEN_SAMPLES):
        start = time.perf_counter()
        stream = sampler.generate("[[tokens:2]]")
        next(stream)
        times.append(time.perf_counter() - start)
        for _ in stream:
            pass
    return times


def first_token_in_process() -> list[float]:
    """Seconds from ``add`` to the first token, called directly on an engine of the same kind."""
    engine = ScriptedEngine(EngineConfig())
    ids = tuple(b"<user>[[tokens:2]]\n")
    times = []
    for number in range(FIRST_TOKEN_SAMPLES):
        start = time.perf_counter()
        engine.add(EngineRequest((0, number), ids, resolve(sampling_params())))
        engine.step()
        times.append(time.perf_counter() - start)
        while engine.has_work():
            engine.step()
    return times


# ---- the run ------------------------------------------------------------------------------------------------------


def run(repeats: int) -> dict[str, Any]:
    """All measurements, interleaved; medians over the repeats."""
    rounds: dict[str, list[dict[str, float]]] = {"ceiling": [], "one_stream": [], "many_streams": []}
    socket_times: list[float] = []
    engine_times: list[float] = []
    with SyncSampler.launch(engine="scripted", devices="cpu", max_batch=STREAMS) as sampler:
        _consume_one(sampler)
        for _ in range(repeats):
            rounds["ceiling"].append(ceiling())
            rounds["one_stream"].append(one_stream(sampler))
            rounds["many_streams"].append(many_streams(sampler))
            engine_times += first_token_in_process()
            socket_times += first_token_over_socket(sampler)
    result: dict[str, Any] = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in rounds.items()
    }
    for name in ("one_stream", "many_streams"):
        result[name]["of_ceiling"] = statistics.median(
            ours["frames_per_s"] / bare["frames_per_s"]
            for ours, bare in zip(rounds[name], rounds["ceiling"], strict=True)
        )
    result["first_token_ms"] = {
        "engine": statistics.median(engine_times) * 1e3,
        "socket": statistics.median(socket_times) * 1e3,
        "added": (statistics.median(socket_times) - statistics.median(engine_times)) * 1e3,
    }
    return {"repeats": repeats, "cores": len(os.sched_getaffinity(0)), **result}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"Transport, medians of {result['repeats']} on {result['cores']} cores")
    for column in ("", "frames/s", "of the ceiling", "entries/s", "messages/s", "client CPU µs/frame"):
        table.add_column(column, justify="left" if not column else "right")
    names = {"ceiling": "ZeroMQ + msgpack alone", "one_stream": "1 stream", "many_streams": f"{STREAMS} streams"}
    for key, name in names.items():
        row = result[key]
        table.add_row(
            name,
            f"{row['frames_per_s']:,.0f}",
            f"{row.get('of_ceiling', 1):.2f}",
            f"{row.get('entries_per_s', row['frames_per_s']):,.0f}",
            f"{row.get('messages_per_s', row['frames_per_s']):,.0f}",
            f"{row['cpu_us_per_frame']:.1f}",
        )
    console = Console()
    console.print(table)
    first = result["first_token_ms"]
    console.print(
        f"time to first token: {first['engine']:.2f} ms in the engine, {first['socket']:.2f} ms through the socket, "
        f"{first['added']:.2f} ms added (medians of {result['repeats'] * FIRST_TOKEN_SAMPLES})"
    )


def main() -> None:
    """Parse the options, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    result = run(options.repeats)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
