"""Answers that go on, begin as their user wants, and are told of while they wait; prompts as tokens; facts."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from samplerpool import SyncSampler
from samplerpool.errors import InvalidParameter, PromptTooLong, RenderError, UsageError, WorkerDied
from tests.process.conftest import DEADLINE_S, eventually
from tests.process.pools import stopped
from tests.process.test_streams_survive import entry, kill, latest, pool, told, view

SPLIT = "a 👋🏽 STOP is no STOPPED, but STOPPE is. Then: é ENDS"


def test_an_answer_begins_as_its_user_wants(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say: 2, 3]]", prefill="1,")) == " 2, 3"
    last = latest(sampler)
    assert (last.text, last.reasoning_open) == (" 2, 3", False)
    assert last.message == {"role": "assistant", "content": [{"type": "text", "value": "1, 2, 3"}]}
    assert bytes(last.prompt_ids).endswith(b"<assistant>1,")
    with pytest.raises(RenderError):
        list(sampler.generate("x", prefill="\ud800"))


def test_an_answer_tells_at_its_first_text_that_it_is_reasoning(sampler: SyncSampler) -> None:
    stream = sampler.generate("[[say:hm</think>Yes.]]", template_options={"enable_thinking": True})
    next(stream)
    assert latest(sampler).reasoning_open
    list(stream)
    blocks = latest(sampler).message["content"]
    assert [(block["type"], block["value"]) for block in blocks] == [("reasoning", "hm"), ("text", "Yes.")]
    assert "".join(sampler.generate("[[say:a</think>b]]", prefill="<think>")) == "a</think>b"
    assert latest(sampler).reasoning_open
    assert [block["value"] for block in latest(sampler).message["content"]] == ["a", "b"]


def test_another_worker_goes_on_behind_the_same_beginning_and_says_so() -> None:
    heard: list[str] = []
    with pool() as sampler:
        whole = "".join(sampler.generate("[[say:one two three]][[pace:0.02]]", prefill="é: ", seed=3))
        before = told(sampler)
        assert before[-1]["content"][0]["value"] == "é: one two three"
        stream = sampler.generate("[[say:one two three]][[pace:0.02]]", prefill="é: ", seed=3, on_wait=heard.append)
        first = next(stream)
        worker = latest(sampler).worker
        kill(sampler, worker)
        assert first + "".join(stream) == whole
        assert told(sampler) == before
    (said,) = heard
    assert said.startswith(f"worker {worker} died")
    assert said.endswith(f"; worker {1 - worker} goes on")


def test_whoever_waits_for_the_only_worker_is_told_once_for_what() -> None:
    heard: list[str] = []
    with pool(1) as sampler:
        stream = sampler.generate("[[say:one two three]][[pace:0.02]]", on_wait=heard.append)
        first = next(stream)
        kill(sampler, 0)
        assert first + "".join(stream) == "one two three"
    assert [text.rpartition("; ")[2] for text in heard] == ["waiting for it to come back", "it goes on"]
    assert all(text.startswith("worker 0 died") for text in heard)


def test_only_the_worker_that_is_meant_answers_and_is_waited_for() -> None:
    heard: list[str] = []
    with pool() as sampler:
        for worker in (1, 0, 1):
            list(sampler.generate("[[say:x]]", worker=worker))
            assert latest(sampler).worker == worker
        stream = sampler.generate("[[say:one two three]][[pace:0.02]]", worker=1, on_wait=heard.append)
        first = next(stream)
        kill(sampler, 1)
        assert first + "".join(stream) == "one two three"
        assert latest(sampler).worker == 1
        assert heard[0].endswith("; waiting for it to come back")
        with pytest.raises(UsageError, match="has no worker 7; it has: 0, 1"):
            sampler.generate("x", worker=7)


@pytest.mark.parametrize("params", [{}, {"stop": ["STOPPED!", "STOPPE i", "NEVER"]}])
def test_wherever_an_answer_was_cut_off_it_goes_on_as_if_it_had_not_been(
    sampler: SyncSampler, params: dict[str, Any]
) -> None:
    """Cut between the bytes of a character, in what may become a stop string, and everywhere else."""
    prompt = f"[[say:{SPLIT}]]"
    whole = "".join(sampler.generate(prompt, seed=7, logprobs=1, **params))
    expected = told(sampler)
    for limit in range(1, len(expected[1])):
        shown = "".join(sampler.generate(prompt, seed=7, logprobs=1, max_new_tokens=limit, **params))
        cut = latest(sampler)
        assert cut.finish_reason == "length"
        more = "".join(sampler.go_on(cut, 1000))
        assert told(sampler) == expected
        while not whole.startswith(shown):  # half a character, or half a stop string
            shown = shown[:-1]
        assert shown + more == whole


def test_an_answer_that_was_stopped_goes_on_where_its_reader_left_it(sampler: SyncSampler) -> None:
    prompt = "[[random:60]][[pace:0.003]]"
    stream = sampler.generate(prompt)
    shown = next(stream) + next(stream)
    stream.close()
    stopped_answer = latest(sampler)
    assert (stopped_answer.text, stopped_answer.finish_reason) == (shown, "aborted")
    more = "".join(sampler.go_on(stopped_answer, 1000))
    whole = "".join(sampler.generate(prompt, seed=stopped_answer.seed))
    assert shown + more == whole
    assert (len(whole), stopped_answer.text) == (60, shown)


def test_an_answer_goes_on_step_by_step_and_over_a_death(two_workers: SyncSampler) -> None:
    sampler = two_workers
    prompt = "[[random:50]][[pace:0.01]]"
    whole = "".join(sampler.generate(prompt, seed=5))
    text = "".join(sampler.generate(prompt, seed=5, max_new_tokens=10, prefill="é "))
    home = latest(sampler).worker
    text += "".join(sampler.go_on(latest(sampler), 10))
    assert (len(text), latest(sampler).worker, latest(sampler).finish_reason) == (20, home, "length")
    stream = sampler.go_on(latest(sampler), 1000)
    text += next(stream)
    kill(sampler, home)
    assert text + "".join(stream) == whole
    assert latest(sampler).message["content"][0]["value"] == f"é {whole}"


def test_what_has_ended_by_itself_has_nothing_to_go_on_with(sampler: SyncSampler) -> None:
    assert "".join(sampler.generate("[[say:abc]]")) == "abc"
    assert list(sampler.go_on(latest(sampler), 10)) == []
    last = latest(sampler)
    assert (last.text, last.finish_reason, last.completion_tokens) == ("abc", "stop", 4)
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(InvalidParameter, match="more_tokens"):
            sampler.go_on(last, wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidParameter, match="more_tokens"):
        sampler.go_on(last, 5, max_new_tokens=5)
    with pytest.raises(InvalidParameter, match="temperature"):
        sampler.go_on(last, 5, temperature=-1)


def test_a_prompt_is_shown_as_the_model_reads_it(sampler: SyncSampler) -> None:
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "Hi"}]
    prompt = sampler.render(messages, prefill="Sure", template_options={"enable_thinking": True})
    assert bytes(prompt.token_ids) == "<system>é\n<user>Hi\n<assistant><think>Sure".encode()
    assert prompt.pieces[8:11] == ["<0xC3>", "<0xA9>", "\n"]
    assert len(prompt.pieces) == len(prompt.token_ids)
    list(sampler.generate("[[say:ab]]"))
    last = latest(sampler)
    assert sampler.pieces(last.token_ids) == ["a", "b", "<eos>"]
    assert sampler.pieces([]) == []
    assert latest(sampler) is last
    with pytest.raises(RenderError, match="token id 300"):
        sampler.pieces([300])
    with pytest.raises(PromptTooLong):
        sampler.render("x" * 40_000)
    with pytest.raises(UsageError, match="no worker 3"):
        sampler.pieces([65], worker=3)


def test_facts_of_all_workers_come_in_one_round_trip_and_a_silent_one_holds_nobody_up() -> None:
    with pool() as sampler:
        first, second = sampler.workers(timeout_s=20.0)
        assert (first.index, second.index) == (0, 1)
        assert all(facts.up and facts.answered for facts in (first, second))
        assert (first.model, first.engine, first.max_model_len, first.running) == ("scripted", "scripted", 32768, 0)
        assert first.answer_tags["think"] == ("<think>", "</think>")
        stream = sampler.generate("[[tokens:30000]][[pace:0.005]]", worker=0, max_new_tokens=30000)
        next(stream)
        assert [facts.running for facts in sampler.workers(timeout_s=20.0)] == [1, 0]
        stream.close()
        number = entry(sampler, 1).process.pid
        os.kill(number, signal.SIGSTOP)
        try:
            eventually(lambda: stopped(number), "it is stopped")
            sampler.workers(timeout_s=0.0)  # asks, and waits for nobody
            told = sampler.workers(timeout_s=0.5)
            eventually(lambda: sampler.workers(timeout_s=0.5)[0].answered, "the other one answers all the same")
            assert (told[1].answered, told[1].up, told[1].model) == (False, True, "scripted")  # as it told before
            waiting = sampler.connection._members.peers[1].descriptions
            assert len(waiting) <= 1  # what nobody waits for any more is forgotten
        finally:
            os.kill(number, signal.SIGCONT)
        kill(sampler, 1)
        eventually(lambda: not view(sampler, 1).up, "the death is noticed")
        facts = sampler.workers()[1]
        assert (facts.up, facts.coming or bool(facts.down_reason), facts.answered) == (False, True, False)


def test_an_answer_begins_while_a_batch_has_all_places_and_the_batch_loses_nothing() -> None:
    rows = [{"messages": f"[[random:120]][[pace:0.01]] {number}"} for number in range(4)]
    ended: list[int] = []
    with pool(1, max_batch=2) as sampler:
        alone = [row["generation"]["text"] for row in sampler.batch_infer(rows, seed=3)]
        with ThreadPoolExecutor(1) as threads:
            batch = threads.submit(sampler.batch_infer, rows, seed=3, on_result=lambda row, _: ended.append(row))
            eventually(lambda: sampler.workers(DEADLINE_S)[0].running == 2, "the batch has all places")
            assert "".join(sampler.generate("[[say:here]]")) == "here"
            assert ended == []
            assert [row["generation"]["text"] for row in batch.result(5 * DEADLINE_S)] == alone


def test_a_wait_for_one_worker_ends(own_folders: Path) -> None:
    with pool(1, engine_options={"load_s": 3.0}) as sampler:
        sampler.worker_timeout_s = 0.2
        kill(sampler, 0)
        eventually(lambda: view(sampler).coming, "the death is noticed")
        for ask in (lambda: sampler.render("x"), lambda: list(sampler.generate("x", worker=0))):
            with pytest.raises(WorkerDied, match="Worker 0 is gone"):
                ask()
