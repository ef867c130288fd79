"""``AsyncSampler`` over real workers: the same texts and rows as ``SyncSampler``, however its callers come and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from samplerpool import AsyncSampler, SyncSampler
from samplerpool.errors import (
    InvalidParameter,
    PoolNotFound,
    ProtocolError,
    RenderError,
    RequestError,
    UsageError,
    WorkerDied,
)
from samplerpool.wire.codec import MAX_ARRAY
from samplerpool.wire.endpoint import ConnectionFile, find_pool, running_pools
from tests.process.conftest import DEADLINE_S

ENDLESS = "[[tokens:30000]][[pace:0.005]]"
SPLIT = "a 👋🏽 family: 👨‍👩‍👧 is here. STOP is no STOPPED, but STOPPE is. Then: é ENDS"
PROMPTS = [f"{number} [[random:8]]" for number in range(60)] + ["[[fail]]"]


@pytest.fixture
async def two() -> AsyncIterator[AsyncSampler]:
    """A private pool of two scripted workers."""
    async with AsyncSampler.launch(engine="scripted", devices="cpu", workers=2) as sampler:
        yield sampler


def file_of(sampler: AsyncSampler) -> ConnectionFile:
    return find_pool(sampler.connection_file.pool)


def kill(sampler: AsyncSampler, worker: int) -> None:
    process = next(entry.process for entry in file_of(sampler).workers if entry.index == worker)
    os.kill(process.pid, signal.SIGKILL)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.01)


async def idle(sampler: AsyncSampler) -> None:
    """Until no worker has anything to do."""
    deadline = time.monotonic() + DEADLINE_S
    while any(facts.running + facts.queued for facts in await sampler.workers()):
        assert time.monotonic() < deadline, "the workers go on with what nobody wants"
        await asyncio.sleep(0.02)


async def test_it_says_what_sync_sampler_says(two: AsyncSampler) -> None:
    params: dict[str, Any] = {"stop": ["STOPPED!"], "seed": 7, "logprobs": 1, "max_new_tokens": 60}
    with SyncSampler.connect(two.connection_file.pool) as sync:
        prompt = f"[[say:{SPLIT}]][[pace:0.005]]"
        expected = "".join(sync.generate(prompt, prefill="é ", **params))
        stream = two.generate(prompt, prefill="é ", **params)
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == expected == stream.answer.text
        assert len(pieces) > 1
        last = sync.last
        assert last is not None
        names = ("token_ids", "logprobs", "seed", "finish_reason", "prompt_ids", "message", "completion_tokens")
        for name in names:
            assert getattr(stream.answer, name) == getattr(last, name), name
        assert await two.render("hello") == sync.render("hello")
        assert await two.pieces([104, 105, 104]) == sync.pieces([104, 105, 104]) == ["h", "i", "h"]
        assert [facts.index for facts in await two.workers()] == [0, 1]


async def test_many_at_a_time_on_all_workers(two: AsyncSampler) -> None:
    async def one(number: int) -> tuple[str, int]:
        stream = two.generate(f"[[say:answer {number}]][[pace:0.002]]")
        return await stream.text(), stream.answer.worker

    told = await asyncio.gather(*(one(number) for number in range(64)))
    assert [text for text, _ in told] == [f"answer {number}" for number in range(64)]
    assert {worker for _, worker in told} == {0, 1}


async def test_whoever_is_cancelled_or_leaves_or_drops_it_stops_the_request(two: AsyncSampler) -> None:
    stream = two.generate(ENDLESS)
    task = asyncio.create_task(stream.text())
    await eventually(lambda: len(stream.answer.text) > 20, "the answer has begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.answer.finish_reason == "aborted"
    await idle(two)

    async with two.generate(ENDLESS) as left:
        seen = await anext(left)
    assert (left.answer.text, left.answer.finish_reason) == (seen, "aborted")
    await idle(two)

    await anext(two.generate(ENDLESS))  # dropped
    await idle(two)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await two.generate("[[hang]]", worker=1).text()


async def test_an_answer_that_was_stopped_goes_on(two: AsyncSampler) -> None:
    prompt = f"[[say:{SPLIT}]]"
    whole = await two.generate(prompt, max_new_tokens=80).text()
    short = two.generate(prompt, max_new_tokens=3)  # in the middle of a character
    assert await short.text() == "a \ufffd"
    rest = two.go_on(short.answer, 77)
    assert "a " + await rest.text() == whole == rest.answer.text
    with pytest.raises(InvalidParameter, match="more_tokens must be an integer, 1 or more, not 0"):
        two.go_on(short.answer, 0)


async def test_a_text_is_gone_on_with_as_it_stands(two: AsyncSampler) -> None:
    prompt = f"[[say:{SPLIT}]][[pace:0.02]]"
    stream = two.complete(prompt, seed=5)
    whole = await stream.text()
    assert bytes(stream.answer.prompt_ids) == prompt.encode()  # no template came around it
    for asked in (prompt, list(prompt.encode())):
        stream = two.complete(asked, seed=5)
        first = await anext(stream)
        kill(two, stream.answer.worker)
        assert first + await stream.text() == whole
        await eventually(lambda: all(view.up for view in two.connection.workers()), "the worker is back")
    begun = two.complete(prompt, seed=5, max_new_tokens=4)
    assert await begun.text() == "a \ufffd"
    assert "a " + await two.go_on(begun.answer, 200).text() == whole
    with pytest.raises(RenderError, match="token id 99999, and the model has"):
        await two.complete([99999]).text()
    with pytest.raises(RenderError, match="a text or a list of token ids"):
        two.complete([1.5])  # type: ignore[list-item]


async def test_another_worker_goes_on_when_one_is_killed(two: AsyncSampler) -> None:
    heard: list[str] = []
    prompt = f"[[say:{SPLIT}]][[pace:0.02]]"
    whole = await two.generate(prompt, seed=5).text()
    stream = two.generate(prompt, seed=5, on_wait=heard.append)
    first = await anext(stream)
    kill(two, worker := stream.answer.worker)
    assert first + await stream.text() == whole
    assert [said.rpartition("; ")[2] for said in heard] == [f"worker {1 - worker} goes on"]


async def test_the_only_worker_is_waited_for_without_blocking_the_loop() -> None:
    async with AsyncSampler.launch(engine="scripted", devices="cpu", workers=1) as sampler:
        stream = sampler.generate("[[say:one two three]][[pace:0.02]]")
        first = await anext(stream)
        kill(sampler, 0)
        turns = count()
        waiting = asyncio.create_task(stream.text())
        while not waiting.done():
            next(turns)
            await asyncio.sleep(0.005)
        assert first + waiting.result() == "one two three"
        assert next(turns) > 10
        sampler.worker_timeout_s = 0.01
        stream = sampler.generate(ENDLESS)
        await anext(stream)
        kill(sampler, 0)
        with pytest.raises(WorkerDied) as died:
            await stream.text()
        assert died.value.data["text"] == stream.answer.text


async def test_a_batch_is_the_one_of_sync_sampler(two: AsyncSampler, tmp_path: Path) -> None:
    seen: dict[int, Any] = {}
    samples = await two.batch_infer(PROMPTS, seed=3, on_result=seen.__setitem__)
    with SyncSampler.connect(two.connection_file.pool) as sync:
        assert samples == sync.batch_infer(PROMPTS, seed=3)
    assert [seen[index] for index in range(len(PROMPTS))] == samples
    output = tmp_path / "answers.jsonl"
    taken = 0
    async with aclosing(two.batch_iter(PROMPTS, output=output, seed=3)) as results:
        async for _ in results:
            taken += 1
            if taken == 5:
                break
    await idle(two)
    assert await two.batch_infer(PROMPTS, output=output, seed=3, resume=True) == samples
    assert [json.loads(line) for line in output.read_text().splitlines()] == samples
    with pytest.raises(InvalidParameter, match="temperature"):
        await two.batch_infer(PROMPTS, temperature=-1)


async def test_a_batch_is_cancelled_at_once(two: AsyncSampler) -> None:
    begun = asyncio.Event()
    prompts = ["[[say:x]]", *[ENDLESS] * 40]
    task = asyncio.create_task(two.batch_infer(prompts, on_result=lambda _index, _sample: begun.set()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await idle(two)


async def test_an_interrupted_launch_leaves_nothing() -> None:
    before = {pool.pool for pool in running_pools()}
    lines: list[str] = []

    async def launch() -> None:
        async with AsyncSampler.launch(engine="scripted", devices="cpu", on_progress=lines.append):
            pytest.fail("it was to be cancelled before")

    task = asyncio.create_task(launch())
    await eventually(lambda: lines, "the launch has begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: {pool.pool for pool in running_pools()} <= before, "the pool was stopped")


async def test_errors_come_where_they_are_made(two: AsyncSampler) -> None:
    with pytest.raises(InvalidParameter, match="temperature"):
        two.generate("x", temperature=-1)
    with pytest.raises(UsageError, match=r"no worker 7; it has: 0, 1"):
        two.generate("x", worker=7)
    with pytest.raises(RequestError):
        await two.generate("[[fail]]").text()
    beside = asyncio.create_task(two.generate("[[tokens:50]][[pace:0.01]]").text())
    with pytest.raises(ProtocolError, match="A worker would not read this"):
        await two.complete([1] * (MAX_ARRAY + 1)).text()
    assert await beside
    with pytest.raises(PoolNotFound):
        await AsyncSampler.connect("there-is-no-such-pool")
    sampler = await AsyncSampler.connect(two.connection_file.pool)
    await sampler.close()
    await sampler.close()
    with pytest.raises(UsageError, match="closed"):
        sampler.generate("x")


def test_one_sampler_in_one_event_loop_after_the_other() -> None:
    sampler = asyncio.run(opened())
    try:
        for _ in range(2):
            assert asyncio.run(sampler.generate("[[say:here]]").text()) == "here"
    finally:
        asyncio.run(sampler.close())


async def opened() -> AsyncSampler:
    return await AsyncSampler.launch(engine="scripted", devices="cpu", workers=1)
