"""The same answers by every way there is to ask for them, side by side: through ``AsyncSampler``, through the HTTP
gateway, from a worker on a Ray cluster, and in a data set of Ray Data.

One model, one worker a pool, the same prompts and seeds, all streams at once; the ways take turns. Workers that are not
asked do nothing, so they do not disturb. The cluster is one node of Ray on this machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from _serve_load import Load
from serve import gateway, load_process

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.pool.launcher import launch_pool

CORES = len(os.sched_getaffinity(0))
"""Ray is told of twice as many, so that both may have all of them: they take turns."""
RAY_DATA = Path(__file__).with_name("_reach_ray_data.py")


@dataclass(frozen=True)
class Turn:
    """One way, once. ``first_token_s`` is the median of all streams; None where nothing is streamed."""

    seconds: float
    tokens: int
    first_token_s: float | None


def measured(model: str | None, streams: int, tokens: int, repeats: int) -> dict[str, list[Turn]]:
    """Turns of each way, but for those that need a package which is not there."""
    prompts = [f"Tell me a story about the number {number}." for number in range(streams)]
    with ExitStack() as stack:
        ways = _opened(stack, model)
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for repeat in range(-1, repeats):  # the first one warms up
            for name, ask in ways.items() if repeat % 2 else reversed(ways.items()):
                turn = ask(prompts, tokens)
                if turn.tokens != streams * tokens:
                    raise RuntimeError(f"{name}: {turn.tokens} tokens came, not {streams * tokens}")
                if repeat >= 0:
                    turns[name].append(turn)
    return turns


Ask = Callable[[list[str], int], Turn]


def _opened(stack: ExitStack, model: str | None) -> dict[str, Ask]:
    name = stack.enter_context(_pool(model, cluster=None))
    _, port = stack.enter_context(gateway(name))
    loader = stack.enter_context(load_process(name, port))
    ways: dict[str, Ask] = {
        "AsyncSampler": lambda prompts, tokens: _streamed(loader, "direct", prompts, tokens),
        "gateway": lambda prompts, tokens: _streamed(loader, "http", prompts, tokens),
    }
    if importlib.util.find_spec("ray") is None:
        return ways
    address = stack.enter_context(_ray_node())
    on_ray = stack.enter_context(load_process(stack.enter_context(_pool(model, cluster=address)), port))
    ways["ray"] = lambda prompts, tokens: _streamed(on_ray, "direct", prompts, tokens)
    data = stack.enter_context(_process(str(RAY_DATA), address, str(CORES), model or ""))
    ways["ray data"] = lambda prompts, tokens: Turn(**_asked(data, {"prompts": prompts, "tokens": tokens}))  # type: ignore[arg-type]
    return ways


def _streamed(loader: subprocess.Popen[str], way: str, prompts: list[str], tokens: int) -> Turn:
    told = _asked(loader, asdict(Load(way, prompts, tokens)))
    return Turn(told["seconds"], int(told["tokens"]), told["first_token_s"])


def _asked(process: subprocess.Popen[str], order: object) -> dict[str, float]:
    """Send a line, and wait for its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} has ended")
    told: dict[str, float] = json.loads(line)
    return told


@contextmanager
def _pool(model: str | None, *, cluster: str | None) -> Iterator[str]:
    """A private pool of one worker; its name."""
    arguments = PoolArguments(workers=1, cluster=cluster, cpus_per_worker=None if cluster is None else CORES)
    launched = launch_pool(
        ModelArguments(model_name_or_path=model), SampleArguments(), arguments, detached=False, private=True
    )
    try:
        yield launched.connection.pool
    finally:
        launched.stop(0.0)


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is asked over its pipes."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def _ray_node() -> Iterator[str]:
    """Ray on this machine, and for it alone; its address. It ends with its process, ``ray start --block``."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", "0"]
    options = [
        "--node-ip-address",
        "127.0.0.1",
        "--include-dashboard",
        "false",
        "--num-cpus",
        "4",
        "--object-store-memory",
        str(100 * 2**20),
    ]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # of all that are to join it, too
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next((m for line in process.stdout if (m := re.search(r"--address='([^']+)'", line))), None)
            if found is None:
                raise RuntimeError("Ray did not start")
            yield found[1]
        finally:
            process.terminate()
