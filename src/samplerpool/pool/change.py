"""Changing a running pool from outside: its workers replaced, added or removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from samplerpool.client.supervisor import ANSWER_TIMEOUT_S, ask_supervisor
from samplerpool.errors import StartFailed
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.messages import Describe, Restart, Scale

_POLL_S = 0.1

Progress = Callable[[str], None]


def restart_workers(
    connection: ConnectionFile, worker: int | None, timeout_s: float, on_progress: Progress
) -> list[int]:
    """Replace one worker, or all, one after the other, by new processes; returns when the new ones are ready.

    Args:
        timeout_s: how long each may take to finish what it runs.
        on_progress: gets a line each time that a worker's state changes.

    Returns:
        The workers that were replaced.

    Raises:
        UsageError: there is no such worker, or the pool is not running.
        StartFailed: one did not come back; the others were left as they were.
        TransportError: the supervisor does not answer.
    """
    before = ask_supervisor(connection, Restart(1, worker, timeout_s), ANSWER_TIMEOUT_S)
    old = {each["index"]: each["incarnation"] for each in before["workers"] if worker in (None, each["index"])}
    told = _wait(connection, before, on_progress, lambda pool: not set(old) & set(pool["replacing"]))
    new = {each["index"]: each for each in told["workers"]}
    _check_ready([new[index] for index in old if index in new])
    return [index for index in old if index in new and new[index]["incarnation"] != old[index]]


def scale_workers(connection: ConnectionFile, workers: int, timeout_s: float, on_progress: Progress) -> tuple[int, int]:
    """Have so many workers; returns when the new ones are ready and the old ones are gone.

    Args:
        timeout_s: how long those that go may take to finish what they run.

    Returns:
        How many there were, and are.

    Raises:
        UsageError: a number that cannot be, or the pool is not running.
        StartFailed: a new one does not become ready.
        TransportError: the supervisor does not answer.
    """
    before = ask_supervisor(connection, Scale(1, workers, timeout_s), ANSWER_TIMEOUT_S)
    known = {each["index"] for each in before["workers"]}

    def done(pool: dict[str, Any]) -> bool:
        added = [each for each in pool["workers"] if each["index"] not in known]
        coming = any(each["state"] in ("starting", "loading") for each in added)
        return len(pool["workers"]) == workers and not coming

    told = _wait(connection, before, on_progress, done)
    _check_ready([each for each in told["workers"] if each["index"] not in known])
    return len(known), len(told["workers"])


def _wait(
    connection: ConnectionFile,
    before: dict[str, Any],
    on_progress: Progress,
    done: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Ask until it is done; every wait on the way has its own limit in the supervisor."""
    shown = {each["index"]: each["state"] for each in before["workers"]}
    while True:
        pool = ask_supervisor(connection, Describe(1), ANSWER_TIMEOUT_S)
        for each in pool["workers"]:
            if shown.get(each["index"]) != each["state"]:
                on_progress(f"worker {each['index']}: {each['state']}")
            shown[each["index"]] = each["state"]
        if done(pool):
            return pool
        time.sleep(_POLL_S)


def _check_ready(workers: Sequence[dict[str, Any]]) -> None:
    for each in workers:
        if each["state"] != "ready":
            what = f"Worker {each['index']} did not become ready ({each['state']}: {each['detail']})"
            raise StartFailed(f"{what}. Its log: {each['log']}", worker=each["index"])
