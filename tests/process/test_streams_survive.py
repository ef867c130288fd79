"""Streams whose workers are killed, crash, drain and come back: the text is the one that would have come."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from samplerpool import SyncSampler
from samplerpool.client.connection import PoolConnection, WorkerView
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.errors import TransportError, WorkerDied
from samplerpool.wire.endpoint import ConnectionFile, find_pool
from samplerpool.wire.messages import Restart, Scale
from tests.process.conftest import DEADLINE_S, eventually
from tests.process.pools import launch

ENDLESS = "[[tokens:30000]][[pace:0.005]]"
SPLIT = "a 👋🏽 family: 👨‍👩‍👧 is here. STOP is no STOPPED, but STOPPE is. Then: é ENDS"


def pool(workers: int = 2, **arguments: Any) -> SyncSampler:
    return SyncSampler.launch(engine="scripted", devices="cpu", workers=workers, **arguments)


def view(sampler: SyncSampler, worker: int = 0) -> WorkerView:
    return next(view for view in sampler.connection.workers() if view.index == worker)


def entry(sampler: SyncSampler, worker: int = 0) -> Any:
    assert sampler.connection_file is not None
    return next(w for w in find_pool(sampler.connection_file.pool).workers if w.index == worker)


def kill(sampler: SyncSampler, worker: int) -> None:
    os.kill(entry(sampler, worker).process.pid, signal.SIGKILL)


def latest(sampler: SyncSampler) -> Any:
    assert sampler.last is not None
    return sampler.last


def told(sampler: SyncSampler) -> tuple[Any, ...]:
    """All that is said of the latest answer but which worker it was."""
    last = latest(sampler)
    names = ("text", "token_ids", "logprobs", "seed", "finish_reason", "completion_tokens", "prompt_tokens", "message")
    return tuple(getattr(last, name) for name in names)


# ---- killed, with others left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_after", [0, 4, 13, 50])
def test_another_worker_goes_on_as_if_nothing_had_happened(killed_after: int) -> None:
    """Killed between the bytes of a character, in what may become a stop string, and before anything came."""
    params: dict[str, Any] = {"stop": ["STOPPED!", "STOPPE i", "NEVER"], "seed": 7, "logprobs": 1}
    prompt = f"[[say:{SPLIT}]][[pace:0.02]]"
    with pool() as sampler:
        whole = "".join(sampler.generate(prompt, **params))
        before = told(sampler)
        assert whole == SPLIT[: SPLIT.index("STOPPE i")]
        stream = sampler.generate(prompt, **params)
        first = next(stream)
        eventually(lambda: len(latest(sampler).token_ids) >= killed_after, "so many tokens have come")
        worker = latest(sampler).worker
        kill(sampler, worker)
        assert first + "".join(stream) == whole
        assert told(sampler) == before
        assert (latest(sampler).calls, latest(sampler).worker) == (2, 1 - worker)


def test_a_seed_that_was_drawn_stays_the_answer_s() -> None:
    with pool() as sampler:
        stream = sampler.generate("[[random:60]][[pace:0.01]]")
        next(stream)
        kill(sampler, latest(sampler).worker)
        list(stream)
        last = latest(sampler)
        assert last.calls == 2
        assert "".join(sampler.generate("[[random:60]]", seed=last.seed)) == last.text


def test_a_crowd_survives_the_death_of_one_of_two() -> None:
    with pool() as sampler:
        whole = "".join(sampler.generate("[[tokens:150]]", max_new_tokens=200))
        started = threading.Barrier(17)

        def consume() -> str:
            stream = sampler.generate("[[tokens:150]][[pace:0.01]]", max_new_tokens=200)
            text = next(stream)
            started.wait(DEADLINE_S)
            return text + "".join(stream)

        with ThreadPoolExecutor(16) as threads:
            futures = [threads.submit(consume) for _ in range(16)]
            started.wait(DEADLINE_S)
            kill(sampler, 0)
            assert [future.result(DEADLINE_S) for future in futures] == [whole] * 16


# ---- the only one, which comes back ---------------------------------------------------------------------------------


def test_the_only_worker_goes_on_when_it_is_back() -> None:
    with pool(1) as sampler:
        stream = sampler.generate("[[say:one two three four]][[pace:0.02]]")
        first = next(stream)
        kill(sampler, 0)
        assert first + "".join(stream) == "one two three four"
        assert latest(sampler).calls == 2
        assert "".join(sampler.generate("again")) == "again"


def test_a_question_waits_for_a_worker_that_is_loading() -> None:
    with pool(1, engine_options={"load_s": 1.0}) as sampler:
        kill(sampler, 0)
        eventually(lambda: view(sampler).coming, "the death is noticed, and that it is not the end")
        assert "".join(sampler.generate("hello")) == "hello"


def test_it_is_not_waited_for_longer_than_wanted() -> None:
    with pool(1, engine_options={"load_s": 3.0}) as sampler:
        sampler.worker_timeout_s = 0.2
        kill(sampler, 0)
        eventually(lambda: view(sampler).coming, "the death is noticed")
        with pytest.raises(WorkerDied, match="Worker 0 is gone"):
            list(sampler.generate("hello"))


def test_a_request_that_ends_every_worker_is_given_up_and_the_pool_serves_on() -> None:
    with pool() as sampler:
        with pytest.raises(WorkerDied, match=r"exited with code 70.*happened 3 times") as caught:
            list(sampler.generate("[[say:abc]][[crash:2]][[pace:0.2]]"))
        assert "ab".startswith(caught.value.data["text"])
        assert "".join(sampler.generate("still here")) == "still here"


# ---- nobody left ----------------------------------------------------------------------------------------------------


def test_with_nobody_left_the_error_holds_what_came() -> None:
    with pool(1, max_restarts=0) as sampler:
        stream = sampler.generate(ENDLESS, max_new_tokens=30000)
        received = next(stream)
        kill(sampler, 0)
        rest: list[str] = []
        with pytest.raises(WorkerDied, match=r"Worker 0 died.*No worker of the pool is left") as caught:
            rest.extend(stream)
        assert caught.value.data["text"] == latest(sampler).text == received + "".join(rest)
        with pytest.raises(WorkerDied, match="No worker of the pool is left"):
            list(sampler.generate("anybody?"))


def test_every_thread_of_a_crowd_gets_its_end_when_nobody_is_left() -> None:
    with pool(1, max_restarts=0) as sampler:
        started = threading.Barrier(17)

        def consume() -> str:
            stream = sampler.generate(ENDLESS, max_new_tokens=30000)
            next(stream)
            started.wait(DEADLINE_S)
            try:
                for _ in stream:
                    pass
            except WorkerDied:
                return "died"
            return "ended"

        with ThreadPoolExecutor(16) as threads:
            futures = [threads.submit(consume) for _ in range(16)]
            started.wait(DEADLINE_S)
            kill(sampler, 0)
            assert [future.result(DEADLINE_S) for future in futures] == ["died"] * 16


def test_a_killed_supervisor_is_the_end_of_the_pool() -> None:
    with pool(1) as sampler:
        stream = sampler.generate(ENDLESS, max_new_tokens=30000)
        next(stream)
        assert sampler.connection_file is not None
        os.kill(sampler.connection_file.supervisor.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="No worker of the pool is left"):
            list(stream)


# ---- changes that were asked for ------------------------------------------------------------------------------------


def test_a_rolling_restart_that_drops_what_runs_breaks_no_stream() -> None:
    with pool() as sampler:
        whole = "".join(sampler.generate("[[tokens:300]]", max_new_tokens=400))
        stream = sampler.generate("[[tokens:300]][[pace:0.01]]", max_new_tokens=400)
        first = next(stream)
        assert sampler.connection_file is not None
        ask_supervisor(sampler.connection_file, Restart(1, None, 0.0), DEADLINE_S)
        assert first + "".join(stream) == whole
        assert latest(sampler).calls > 1


def test_workers_that_are_added_serve_and_those_removed_are_forgotten() -> None:
    with pool(1) as sampler:
        assert sampler.connection_file is not None
        ask_supervisor(sampler.connection_file, Scale(1, 3, 5.0), DEADLINE_S)
        eventually(lambda: [v.up for v in sampler.connection.workers()] == [True] * 3, "the new ones are there")
        streams = [sampler.generate("[[tokens:50]][[pace:0.02]]") for _ in range(3)]
        workers = set()
        for stream in streams:
            next(stream)
            workers.add(latest(sampler).worker)
        assert workers == {0, 1, 2}
        ask_supervisor(sampler.connection_file, Scale(1, 1, 0.0), DEADLINE_S)
        assert [len("".join(stream)) for stream in streams] == [49, 49, 49]
        eventually(lambda: [v.index for v in sampler.connection.workers()] == [0], "the others are forgotten")


def test_a_pinned_client_waits_for_its_own_worker() -> None:
    with pool() as sampler:
        assert sampler.connection_file is not None
        with SyncSampler.connect(sampler.connection_file.pool, worker=1) as pinned:
            stream = pinned.generate("[[say:one two three four]][[pace:0.02]]")
            first = next(stream)
            kill(sampler, 1)
            assert first + "".join(stream) == "one two three four"
            assert (latest(pinned).calls, latest(pinned).worker) == (2, 1)


# ---- how the pool is followed ---------------------------------------------------------------------------------------


def test_a_copy_of_the_connection_file_follows_by_asking_the_supervisor(tmp_path: Path) -> None:
    """As from another machine: neither the file nor process numbers are of use."""
    with pool() as sampler:
        assert sampler.connection_file is not None
        copy = tmp_path / "copy.json"
        sampler.connection_file.write(copy)
        text = copy.read_text().replace(f'"boot": "{sampler.connection_file.boot}"', '"boot": "another"')
        copy.write_text(text)
        assert not ConnectionFile.read(copy).local
        with SyncSampler.connect(copy) as remote:
            stream = remote.generate("[[say:one two three four]][[pace:0.05]]")
            first = next(stream)
            victim = view(remote, latest(remote).worker)
            kill(sampler, victim.index)
            assert first + "".join(stream) == "one two three four"
            eventually(lambda: view(remote, victim.index).up, "it is back")
            assert view(remote, victim.index).incarnation != victim.incarnation


def test_attaching_while_the_only_worker_is_away_waits_and_to_a_pool_that_ended_does_not() -> None:
    launched = launch(pool="p")
    stale = find_pool("p")
    os.kill(stale.workers[0].process.pid, signal.SIGKILL)
    with SyncSampler.connect("p") as sampler:
        assert "".join(sampler.generate("hello")) == "hello"
    assert launched.stop(5.0) == "stopped"
    with pytest.raises(TransportError, match="'p' has ended"):
        PoolConnection.attach(stale)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def crowd_of_deaths(deaths: int) -> None:
    """Nothing of the processes that were is left in the client."""
    with pool(1, max_restarts=10_000, restart_window_s=0.0) as sampler:
        list(sampler.generate("warm"))
        before, threads = descriptors(), threading.active_count()
        for _ in range(deaths):
            old = view(sampler)
            os.kill(entry(sampler).process.pid, signal.SIGKILL)
            eventually(lambda old=old: view(sampler).up and view(sampler).incarnation != old.incarnation, "it is back")
            assert "".join(sampler.generate("x")) == "x"
        eventually(lambda: descriptors() <= before, "the old processes' descriptors are closed")
        assert threading.active_count() == threads
        assert len(sampler.connection._members._watched) == 1


def test_nothing_is_left_of_processes_that_were() -> None:
    crowd_of_deaths(3)


@pytest.mark.full
def test_nothing_is_left_of_many_processes_that_were() -> None:
    crowd_of_deaths(100)


# ---- threads, and the end of the interpreter ------------------------------------------------------------------------


def test_many_threads_drop_their_generators_to_the_garbage_collector() -> None:
    with pool(1) as sampler:

        def drop(number: int) -> None:
            for _ in range(5):
                stream = sampler.generate(ENDLESS, max_new_tokens=30000)
                next(stream)
                ring: list[Any] = [stream]
                ring.append(ring)  # only the collector gets rid of it, on whichever thread
                del stream, ring

        with ThreadPoolExecutor(32) as threads:
            list(threads.map(drop, range(32)))

        def idle() -> bool:
            import gc

            gc.collect()
            figures = sampler.connection.describe(0, timeout_s=DEADLINE_S)
            return int(figures["running"] + figures["queued"] + figures["live"]) == 0

        eventually(idle, "all requests are gone from the worker")
        assert "".join(sampler.generate("still here")) == "still here"


@pytest.mark.parametrize("where", ["in mid-stream", "while it waits for a worker"])
def test_the_interpreter_ends_soon_whatever_a_stream_does(where: str) -> None:
    waiting = where == "while it waits for a worker"
    code = (
        "import contextlib, os, signal, threading, time\n"
        "from samplerpool import SyncSampler\n"
        f"s = SyncSampler.launch(engine='scripted', devices='cpu', engine_options={{'load_s': {2.0 * waiting}}})\n"
        f"g = s.generate({ENDLESS!r}, max_new_tokens=30000)\n"
        "next(g)\n"
        f"if {waiting}:\n"
        "    os.kill(s.connection_file.workers[0].process.pid, signal.SIGKILL)\n"
        "    def consume():\n"
        "        with contextlib.suppress(Exception): list(g)\n"
        "    threading.Thread(target=consume, daemon=True).start()\n"
        "    while not s.connection.workers()[0].coming: time.sleep(0.01)\n"
        "print('end', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "end\n"
        begun = time.monotonic()
        _, errors = child.communicate(timeout=DEADLINE_S)
        took_s = time.monotonic() - begun
    assert (child.returncode, errors) == (0, "")
    print(f"the interpreter took {took_s:.2f} s to end")


@pytest.mark.full
@pytest.mark.parametrize("time", range(20))
def test_killed_twenty_times_over(time: int) -> None:
    chance = random.Random(time)
    with pool(3) as sampler:
        question = f"[[say:{SPLIT}]][[pace:0.01]]"
        whole = "".join(sampler.generate(question, stop="STOPPE i", seed=1))
        before = told(sampler)
        stream = sampler.generate(question, stop="STOPPE i", seed=1)
        text = next(stream)
        for _ in range(2):
            eventually(lambda: latest(sampler).worker >= 0, "it is somewhere")
            kill(sampler, latest(sampler).worker)
            for _ in range(chance.randrange(12)):
                text += next(stream, "")
        assert text + "".join(stream) == whole
        assert told(sampler) == before
