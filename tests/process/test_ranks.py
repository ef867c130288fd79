"""Workers whose model is divided among two processes: one entry for the supervisor, whichever of them ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from samplerpool import SyncSampler
from samplerpool.batch.runner import run_batch
from samplerpool.data.answers import RowResult
from samplerpool.data.rows import rows_from_dataset
from samplerpool.errors import StartFailed
from samplerpool.pool.launcher import describe_pool
from samplerpool.wire.endpoint import find_pool
from tests.process.pools import entry, wait_for_successor, wait_until
from tests.tiny_model import save_tiny_model

PROMPTS = [f"{number}: say something about {number * number}" for number in range(60)]
PARAMS = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says different things to different prompts, without near-ties."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model"))
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(12)
    model.save_pretrained(folder)
    return folder


def launch(checkpoint: Path, **pool: Any) -> SyncSampler:
    return SyncSampler.launch(str(checkpoint), devices="cpu", max_batch=4, max_model_len=128, **pool)


def run(sampler: SyncSampler, on_count: Any = lambda count: None) -> list[RowResult]:
    results: list[RowResult] = []

    def on_result(result: RowResult) -> None:
        results.append(result)
        on_count(len(results))

    run_batch(sampler.connection, rows_from_dataset(PROMPTS), params=PARAMS, on_result=on_result)
    return sorted(results, key=lambda result: result.row.index)


def texts(results: list[RowResult]) -> list[str | None]:
    return [result.answer.text if result.answer else None for result in results]


def rank_pids(pool: str) -> list[int]:
    [worker] = describe_pool(find_pool(pool))["workers"]
    pids: list[int] = worker["details"]["rank_pids"]
    return pids


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_batch_survives_a_rank_and_the_ranks_end_with_their_worker(checkpoint: Path) -> None:
    with launch(checkpoint) as sampler:
        whole = texts(run(sampler))
    assert len(set(whole)) == len(PROMPTS)
    with launch(checkpoint, devices_per_worker=2, pool="p") as sampler:
        first, follower = entry("p"), rank_pids("p")[1]
        [worker] = describe_pool(find_pool("p"))["workers"]
        assert (worker["device"], worker["details"]["split_mode"], worker["engine"]) == ("cpu x2", "tensor", "dense")

        def kill(count: int) -> None:
            if count == 15:
                os.kill(follower, signal.SIGKILL)

        assert texts(run(sampler, kill)) == whole
        [ending] = find_pool("p").endings
        assert f"Rank 1 of 2 (process {follower}) was ended by signal 9" in Path(first.log).read_text()
        assert (ending.index, ending.requested) == (0, False)

        second = entry("p")
        leader, follower = rank_pids("p")
        assert leader == second.process.pid != first.process.pid
        os.kill(leader, signal.SIGKILL)
        wait_until(lambda: not running(follower), "the other rank has ended with its worker")
        third = wait_for_successor(second, "p")
        pids = rank_pids("p")
        assert third.process.pid == pids[0]
    assert not any(map(running, pids))


def test_a_model_that_cannot_be_divided_is_refused_in_a_sentence(checkpoint: Path) -> None:
    with pytest.raises(StartFailed, match="LlamaForCausalLM cannot be divided among 3 processes, because its 4 atten"):
        launch(checkpoint, devices_per_worker=3)
