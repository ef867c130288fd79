"""Clients that vanish, stop, do not read, ask for too much or send garbage, beside one that must notice nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from samplerpool import SyncSampler
from samplerpool.client.connection import PoolConnection
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.settings import restored
from samplerpool.engine.scripted import read_script
from samplerpool.pool.launcher import LaunchedPool, describe_pool, launch_pool
from samplerpool.wire.codec import MAX_MESSAGE_BYTES, decode_requests
from samplerpool.wire.endpoint import WorkerEntry
from samplerpool.wire.messages import Abort, Describe, Failed, Finished, Generate, Malformed, Ping
from tests.garbage import Garbage
from tests.process.conftest import eventually
from tests.process.raw_client import DEADLINE_S, RawClient

HARMLESS = (Abort, Describe, Generate, Malformed, Ping)
"""To a supervisor."""
ENDLESS = "[[tokens:1000000]][[pace:0.01]]"


@contextlib.contextmanager
def pool_with(**options: Any) -> Iterator[LaunchedPool]:
    """A private pool of one scripted worker; limits may be lower than a user's."""
    usual = vars(PoolArguments(engine="scripted", devices="cpu", workers=1))
    arguments = restored(PoolArguments, {**usual, **options})
    pool = launch_pool(ModelArguments(), SampleArguments(), arguments, detached=False, private=True)
    try:
        yield pool
    finally:
        pool.stop(0.0)


def worker_of(pool: LaunchedPool) -> WorkerEntry:
    return pool.connection.workers[0]


@contextlib.contextmanager
def figures_of(pool: LaunchedPool) -> Iterator[Callable[[], dict[str, Any]]]:
    """What the worker says of itself."""
    with PoolConnection.attach(pool.connection) as connection:
        yield lambda: connection.describe(0, timeout_s=DEADLINE_S)


@contextlib.contextmanager
def honest_streams(pool: LaunchedPool) -> Iterator[Callable[[], int]]:
    """A client that streams one answer after the other, and checks each; yields their number so far."""
    wanted = read_script("<user>[[tokens:300]]", 0).answer.decode()
    answers: list[str] = []
    ended = threading.Event()

    def run() -> None:
        with SyncSampler.connect(pool.connection.pool) as sampler:
            while not ended.is_set():
                text = "".join(sampler.generate("[[tokens:300]][[pace:0.001]]", max_new_tokens=1000))
                answers.append("right" if text == wanted else text)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: len(answers)
        before = len(answers)
        eventually(lambda: len(answers) > before or not thread.is_alive(), "one more answer")
    finally:
        ended.set()
        thread.join()
    assert set(answers) == {"right"}


# ---- clients that are gone, or stand still --------------------------------------------------------------------------


def test_a_client_that_vanishes_frees_its_places_at_once() -> None:
    with pool_with(max_batch=4) as pool, figures_of(pool) as figures, honest_streams(pool):
        with RawClient.of(worker_of(pool)) as client:
            client.send(*(client.request(ENDLESS) for _ in range(20)))
            eventually(lambda: figures()["live"] >= 20 and figures()["running"] == 4, "they are taken")
        eventually(lambda: figures()["live"] <= 1, "they are gone, long before a lease lapses")
        eventually(lambda: figures()["queued"] == 0, "the engine has forgotten them")


def test_a_client_that_stands_still_for_two_leases_loses_its_request_and_nobody_else_does() -> None:
    lease_s = 3.0
    with (
        pool_with(max_batch=2, lease_s=lease_s) as pool,
        figures_of(pool) as figures,
        RawClient.of(worker_of(pool)) as other,
    ):
        worker = worker_of(pool)
        command = [sys.executable, "-m", "tests.process.raw_client", worker.endpoint, worker.incarnation, ENDLESS]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped:
            assert stopped.stdout is not None
            assert [stopped.stdout.readline().strip() for _ in range(2)] == ["Accepted", "Tokens"]
            wanted = read_script("<user>[[tokens:310]]", 0).answer.decode()
            streamed, waiting = other.request("[[tokens:310]][[pace:0.02]]"), other.request("[[say:at last]]")
            other.send(streamed, waiting)
            os.kill(stopped.pid, signal.SIGSTOP)
            stopped_at, text, ends = time.monotonic(), "", {}
            while len(ends) < 2 or time.monotonic() < stopped_at + 2 * lease_s:
                other.send(Ping(1))
                for reply in other.receive():
                    if isinstance(reply, Failed | Finished):
                        ends[reply.request_id] = reply
                    elif getattr(reply, "request_id", 0) == streamed.request_id:
                        text += getattr(reply, "text", "")
            assert text == wanted
            assert [type(ends[request.request_id]) for request in (streamed, waiting)] == [Finished, Finished]
            assert figures()["live"] == 0
            os.kill(stopped.pid, signal.SIGCONT)
            lines = iter(stopped.stdout.readline, "")
            assert "LeaseExpired" in (line.strip() for line in lines)
            stopped.kill()


def test_a_client_that_does_not_read_loses_its_requests_when_too_much_waits_for_it() -> None:
    with pool_with(max_unread_bytes=300_000) as pool, figures_of(pool) as figures, honest_streams(pool):
        with RawClient.of(worker_of(pool), receive_high_water=1) as client:
            requests = [client.request("[[tokens:30000]]", params={"max_new_tokens": 30_000}) for _ in range(60)]
            client.send(*requests)
            # Some may have ended before the others are taken; the honest stream makes a thousand tokens a second.
            eventually(lambda: (now := figures())["live"] >= 60 or now["tokens"] > 30_000, "they are taken")
            eventually(lambda: figures()["live"] <= 1, "they have ended")
            ends = client.until_ended([request.request_id for request in requests])
        assert {end.error for end in ends.values() if isinstance(end, Failed)} == {"ClientTooSlow"}
        assert figures()["memory_bytes"] < 400e6


# ---- clients that ask for too much ----------------------------------------------------------------------------------


def test_beyond_the_limits_a_request_is_refused_with_the_numbers_and_may_be_sent_again() -> None:
    limits = {"max_queue_per_client": 5, "max_queue_bytes_per_client": 5_000}
    with pool_with(**limits) as pool, honest_streams(pool), RawClient.of(worker_of(pool)) as client:
        requests = [client.request(ENDLESS) for _ in range(7)]
        client.send(*requests)
        refused = client.until_ended([6, 7])
        assert {(end.error, end.data["limited"], end.data["held"]) for end in refused.values()} == {
            ("QueueFull", "max_queue_per_client", 5)
        }
        client.send(*map(Abort, range(1, 5)))
        client.until_ended([1, 2, 3, 4])
        large = client.request("x" * 4_850)
        client.send(large)
        (end,) = client.until_ended([large.request_id]).values()
        assert isinstance(end, Failed)
        assert end.data["limited"] == "max_queue_bytes_per_client"
        client.send(Abort(5))
        client.until_ended([5])
        again = client.request("x" * 4_000)
        client.send(again)
        assert isinstance(client.until_ended([again.request_id])[again.request_id], Finished)


def test_two_hundred_clients_at_once_are_all_answered() -> None:
    with pool_with() as pool, figures_of(pool) as figures, honest_streams(pool), contextlib.ExitStack() as stack:
        descriptors = len(os.listdir(f"/proc/{worker_of(pool).process.pid}/fd"))
        clients = [stack.enter_context(RawClient.of(worker_of(pool))) for _ in range(200)]
        for client in clients:
            client.send(client.request("[[tokens:50]]"), client.request("[[say:hello]]"))
        for client in clients:
            ends = client.until_ended([1, 2])
            assert [type(end) for end in ends.values()] == [Finished, Finished]
        assert figures()["clients"] >= 200
        stack.pop_all().close()
        eventually(
            lambda: len(os.listdir(f"/proc/{worker_of(pool).process.pid}/fd")) <= descriptors + 2,
            "their connections are closed",
        )


# ---- garbage --------------------------------------------------------------------------------------------------------


def strangers_knock(endpoint: str, dice: random.Random, count: int) -> None:
    """Connections that do not even speak ZeroMQ."""
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as stranger, contextlib.suppress(OSError):
            stranger.connect(endpoint.removeprefix("ipc://"))
            stranger.send(dice.randbytes(dice.randint(1, 200)))


def throw(clients: list[RawClient], garbage: Garbage, count: int, *, harmless: Callable[[bytes], bool]) -> None:
    """Send so many messages from several clients, of which the first one never reads."""
    for number, data in enumerate(garbage.messages(count)):
        if not harmless(data):
            continue
        client = clients[number % len(clients)]
        if number % 1000 == 0:
            client.send_raw(data, data)
        client.send_raw(data)
        if number % 50 < len(clients) - 1:
            clients[1 + number % 50].drain()


def test_a_hundred_thousand_broken_messages_have_no_effect_on_an_honest_stream() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    with pool_with() as pool, figures_of(pool) as figures, honest_streams(pool) as answers:
        worker = worker_of(pool)
        eventually(lambda: answers() > 0, "the honest one is at work")
        memory = figures()["memory_bytes"]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient.of(worker)) for _ in range(5)]
            strangers_knock(worker.endpoint, random.Random(seed), 200)
            throw(clients, Garbage(seed, worker.incarnation), 100_000, harmless=lambda _: True)
            for client in clients:
                client.wait_for_pong(2**40)
            with RawClient.of(worker) as too_large:  # costs its sender the connection
                too_large.send_raw(b"x" * (MAX_MESSAGE_BYTES + 1))
        assert figures()["malformed"] > 30_000
        eventually(lambda: figures()["live"] <= 1, "nothing of theirs is left")
        assert figures()["memory_bytes"] < memory + 150e6
        assert 0 < Path(worker.log).stat().st_size < 100_000


def test_broken_messages_to_the_supervisor_change_nothing() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")

    def harmless(data: bytes) -> bool:
        """Whoever may connect may also stop the pool, if they do it well."""
        return all(isinstance(message, HARMLESS) for message in decode_requests(data))

    with pool_with() as pool, honest_streams(pool) as answers:
        eventually(lambda: answers() > 0, "the honest one is at work")
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient(pool.connection.endpoint)) for _ in range(4)]
            strangers_knock(pool.connection.endpoint, random.Random(seed), 100)
            throw(clients, Garbage(seed), 20_000, harmless=harmless)
            for client in clients:
                client.send(Ping(2**40))
            eventually(lambda: describe_pool(pool.connection)["state"] == "running", "the supervisor answers")
        assert pool.connection.workers[0].process.alive()
