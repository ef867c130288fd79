"""Thousands of requests later, worker and supervisor hold what they held before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from samplerpool.pool.launcher import LaunchedPool, describe_pool
from samplerpool.wire.messages import Abort, Completed, Failed, Finished, Generate
from tests.process.conftest import eventually
from tests.process.raw_client import RawClient
from tests.process.test_misbehaving_clients import figures_of, pool_with, worker_of

LONG = "[[tokens:1000]][[pace:0.05]]"
PER_ROUND = 500
VANISHING = 20


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    memory_bytes: int
    threads: int
    descriptors: int

    @classmethod
    def by(cls, pid: int) -> Held:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        counts = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("task", "fd"))
        return cls(pages * os.sysconf("SC_PAGESIZE"), *counts)


def one_round(pool: LaunchedPool) -> None:
    """Requests that end well, fail, are aborted, refused or malformed, and some of a client that vanishes."""
    with RawClient.of(worker_of(pool)) as gone:
        gone.send(*(gone.request(LONG) for _ in range(VANISHING)))
        gone.receive()
    with RawClient.of(worker_of(pool)) as client:
        requests = [_request(client, number) for number in range(PER_ROUND - VANISHING)]
        for start in range(0, len(requests), 50):
            part = requests[start : start + 50]
            client.send(*part)
            client.send(*(Abort(request.request_id) for request in part[::10]))
            client.send_raw(b"\x92\x01\x91\x93\x01\x00\x00")
            ends = client.until_ended([request.request_id for request in part])
            assert {type(end) for end in ends.values()} == {Failed, Finished, Completed}
    describe_pool(pool.connection)


def _request(client: RawClient, number: int) -> Generate:
    if number % 10 == 0:
        return client.request(LONG)  # to be aborted
    if number % 10 == 1:
        return client.request("[[fail:2]]")
    if number % 10 == 2:
        return client.request("hello", incarnation="another")
    if number % 10 == 3:
        return client.request("hello", params={"top_k": -5})
    return client.request("[[tokens:5]]", stream=number % 2 == 0, parse=number % 3 == 0)


def check_for_leaks(pool: LaunchedPool, rounds: int) -> None:
    pids = (worker_of(pool).process.pid, pool.connection.supervisor.pid)
    with figures_of(pool) as figures:
        for _ in range(4):  # caches fill, and allocators take what they need
            one_round(pool)
        eventually(lambda: figures()["live"] == 0, "the first requests have ended")
        before = [Held.by(pid) for pid in pids]
        for _ in range(rounds):
            one_round(pool)
        eventually(lambda: figures()["live"] == 0 and figures()["running"] == 0, "all requests have ended")
        assert figures()["queued_bytes"] == 0
        for pid, held in zip(pids, before, strict=True):
            eventually(
                lambda pid=pid, held=held: Held.by(pid).descriptors <= held.descriptors + 2,  # type: ignore[misc]
                "connections are closed",
            )
            now = Held.by(pid)
            assert now.threads <= held.threads, (held, now)
            assert now.memory_bytes < held.memory_bytes + 8 * 2**20, (held, now)


def test_ten_thousand_requests_later_memory_threads_and_descriptors_are_where_they_were() -> None:
    with pool_with() as pool:
        check_for_leaks(pool, rounds=10_000 // PER_ROUND)


@pytest.mark.full
def test_two_hundred_thousand_requests_later_they_still_are() -> None:
    with pool_with() as pool:
        check_for_leaks(pool, rounds=200_000 // PER_ROUND)
