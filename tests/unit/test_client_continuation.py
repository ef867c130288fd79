"""An answer over several workers: what each is sent, what it adds up to, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.client.continuation import MAX_DEATHS, MAX_FRUITLESS, ContinuedAnswer
from samplerpool.client.response import Call
from samplerpool.client.routing import WorkerView
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.engine.scripted import ByteCodec
from samplerpool.errors import (
    EngineBroken,
    LeaseExpired,
    PromptTooLong,
    QueueFull,
    RequestLost,
    SamplerPoolError,
    TransportError,
    WorkerDied,
    WorkerDraining,
)
from samplerpool.types import TokenLogprobs
from samplerpool.wire.messages import Accepted, ChatPrompt, Finished, TextPrompt, TokenPrompt, Tokens

PROMPT = ChatPrompt([{"role": "user", "content": [{"type": "text", "value": "x"}]}])


def view(index: int = 0, *, up: bool = True, coming: bool = False, incarnation: str = "i") -> WorkerView:
    return WorkerView(index, up, 0, 0, "" if up else "gone", coming, incarnation)


class Driver:
    """Plays the workers to a continued answer."""

    def __init__(self, asked: ChatPrompt = PROMPT, **params: Any) -> None:
        self.answer = ContinuedAnswer(asked, params)
        self.call: Call

    def begin(self, worker: int = 0) -> tuple[Any, dict[str, Any]]:
        prompt, params = self.answer.next_prompt()
        self.call = Call(prompt, params)
        self.call.worker = worker
        self.answer.begun(self.call)
        return prompt, dict(params)

    def die(self, error: SamplerPoolError, incarnation: str = "i") -> None:
        self.call.fail(error)
        self.answer.ended(self.call, incarnation)


def test_undisturbed_it_is_its_call() -> None:
    driver = Driver(max_new_tokens=9)
    assert driver.begin() == (PROMPT, {"max_new_tokens": 9})
    for frame in (Accepted(0, [1, 2], 5), Tokens(0, 0, [3], "a"), Tokens(0, 1, [4], "")):
        driver.call.feed(frame)
    answer = driver.answer
    assert (answer.text, answer.token_ids, answer.done) == ("a", [3, 4], False)
    driver.call.feed(Finished(0, "stop", 2, 2))
    answer.ended(driver.call)
    assert (answer.done, answer.error, answer.finish_reason) == (True, None, "stop")
    assert (answer.seed, answer.prompt_tokens, answer.completion_tokens, answer.calls) == (5, 2, 2, 1)


def test_another_worker_goes_on_behind_the_tokens_with_the_seed_that_was_drawn() -> None:
    driver = Driver(temperature=1.0)
    driver.begin(0)
    entries = [TokenLogprobs(token_id, -0.5, []) for token_id in (3, 4, 5)]
    driver.call.feed(Accepted(0, [1, 2], 5))
    driver.call.feed(Tokens(0, 0, [3, 4], "aé", entries[:2]))
    driver.die(WorkerDied("gone"))
    assert not driver.answer.done
    assert driver.begin(1) == (TokenPrompt([1, 2], [3, 4], 2), {"temperature": 1.0, "seed": 5})
    driver.call.feed(Accepted(0, [1, 2], 5))
    driver.call.feed(Tokens(0, 2, [5], "b", entries[2:]))
    driver.call.feed(Finished(0, "length", 2, 3))
    driver.answer.ended(driver.call)
    answer = driver.answer
    assert (answer.text, answer.token_ids, answer.logprobs) == ("aéb", [3, 4, 5], entries)
    assert (answer.completion_tokens, answer.seed, answer.worker, answer.calls) == (3, 5, 1, 2)
    assert [answer.logprobs_behind(count) for count in range(5)] == [entries[count:] for count in range(5)]


def test_images_go_along_with_the_tokens_which_do_not_hold_them() -> None:
    image: Any = [{"role": "user", "content": [{"type": "image_url", "value": "data:,x"}]}]
    prompt = ChatPrompt(image, "[]", {"style": "x"})
    driver = Driver(prompt, seed=3)
    driver.begin()
    driver.call.feed(Accepted(0, [1, 2], 3))
    driver.call.feed(Tokens(0, 0, [3], "a"))
    driver.die(WorkerDied("gone"))
    assert driver.begin() == (TokenPrompt([1, 2], [3], 1, prompt), {"seed": 3})


def test_the_beginning_of_an_answer_goes_along_and_is_not_its_text() -> None:
    prompt = ChatPrompt(PROMPT.messages, None, {}, "Sure,")
    driver = Driver(prompt)
    driver.begin()
    driver.call.feed(Accepted(0, [1, 2], 3, True))
    assert driver.answer.reasoning_open  # known before the first text
    driver.call.feed(Tokens(0, 0, [3], " a"))
    driver.die(WorkerDied("gone"))
    assert driver.answer.reasoning_open
    assert driver.begin()[0] == TokenPrompt([1, 2], [3], 2, None, "Sure,")


def test_a_text_that_is_gone_on_with_stays_one() -> None:
    driver = Driver(TextPrompt("Once"))
    assert driver.begin()[0] == TextPrompt("Once")
    driver.call.feed(Accepted(0, [1, 2], 3))
    driver.call.feed(Tokens(0, 0, [3], " a"))
    driver.die(WorkerDied("gone"))
    assert driver.begin() == (TokenPrompt([1, 2], [3], 2, goes_on=True), {"seed": 3})
    driver = Driver(TokenPrompt([1, 2], [3], 2, goes_on=True))
    driver.begin()
    driver.call.feed(Accepted(0, [1, 2], 3))
    driver.call.feed(Tokens(0, 1, [4], "bc"))
    driver.die(WorkerDied("gone"))
    assert driver.begin()[0] == TokenPrompt([1, 2], [3, 4], 4, goes_on=True)


def test_whoever_stops_it_keeps_what_was_taken_and_nothing_is_added() -> None:
    driver = Driver()
    driver.begin(1)
    driver.call.feed(Accepted(0, [1, 2], 3))
    driver.call.feed(Tokens(0, 0, [3, 4], "ab"))
    driver.answer.stopped(driver.call, "a")
    driver.call.feed(Tokens(0, 2, [5], "c"))
    answer = driver.answer
    assert (answer.text, answer.token_ids, answer.done, answer.finish_reason) == ("a", [3, 4], True, "aborted")
    assert (answer.completion_tokens, answer.prompt_tokens, answer.worker, answer.setback) == (2, 2, 1, "")


def test_an_answer_goes_on_from_all_its_tokens_and_tells_its_text_anew() -> None:
    driver = Driver(seed=3, max_new_tokens=2)
    driver.begin(1)
    entries = [TokenLogprobs(token_id, -0.5, []) for token_id in (3, 4, 5)]
    driver.call.feed(Accepted(0, [1, 2], 3, True))
    driver.call.feed(Tokens(0, 0, [3, 4], "a\ufffd", entries[:2]))
    driver.call.feed(Finished(0, "length", 2, 2))
    driver.answer.ended(driver.call)
    more = Driver()
    more.answer = ContinuedAnswer.going_on(driver.answer, {"max_new_tokens": 5})
    assert (more.answer.home, more.answer.reasoning_open, more.answer.setback) == (1, True, "")
    assert more.begin() == (TokenPrompt([1, 2], [3, 4], 0), {"max_new_tokens": 5, "seed": 3})
    more.call.feed(Accepted(0, [1, 2], 3, True))
    more.call.feed(Tokens(0, 2, [5], "aé", entries[2:]))
    more.die(WorkerDied("gone"))
    assert more.begin() == (TokenPrompt([1, 2], [3, 4, 5], 2), {"max_new_tokens": 5, "seed": 3})
    more.call.feed(Accepted(0, [1, 2], 3, True))
    more.call.feed(Finished(0, "stop", 2, 3))
    more.answer.ended(more.call)
    answer = more.answer
    assert (answer.text, answer.token_ids, answer.logprobs, answer.completion_tokens) == ("aé", [3, 4, 5], entries, 3)
    assert (driver.answer.text, driver.answer.token_ids) == ("a\ufffd", [3, 4])


def test_an_answer_that_was_stopped_before_it_began_begins() -> None:
    driver = Driver()
    driver.begin()
    driver.answer.stopped(driver.call, "")
    again = ContinuedAnswer.going_on(driver.answer, {"max_new_tokens": 5})
    assert again.next_prompt() == (PROMPT, {"max_new_tokens": 5})
    driver = Driver()
    driver.begin()
    driver.call.feed(Accepted(0, [1, 2], 7))
    driver.answer.stopped(driver.call, "")
    again = ContinuedAnswer.going_on(driver.answer, {"max_new_tokens": 5})
    assert again.next_prompt() == (PROMPT, {"max_new_tokens": 5, "seed": 7})  # its noise stays, too


def test_from_here_on_another_seed_may_be_asked_for() -> None:
    driver = Driver()
    driver.begin()
    driver.call.feed(Accepted(0, [1, 2], 3))
    driver.call.feed(Tokens(0, 0, [3], "a"))
    driver.answer.stopped(driver.call, "a")
    again = ContinuedAnswer.going_on(driver.answer, {"max_new_tokens": 5, "seed": 9})
    assert again.next_prompt()[1]["seed"] == 9


def test_what_was_not_accepted_is_sent_as_it_was() -> None:
    driver = Driver(seed=3)
    driver.begin()
    driver.die(RequestLost("lost"))
    assert driver.begin() == (PROMPT, {"seed": 3})


@pytest.mark.parametrize("kind", [WorkerDied, EngineBroken])
def test_a_request_that_ends_several_workers_is_given_up_with_what_came(kind: type[SamplerPoolError]) -> None:
    driver = Driver()
    for death in range(MAX_DEATHS):
        assert not driver.answer.done
        driver.begin()
        driver.call.feed(Accepted(0, [1], 5))
        driver.call.feed(Tokens(0, death, [3], "a"))
        driver.die(kind("It broke."))
    error = driver.answer.error
    assert type(error) is kind
    assert error.message == "It broke. That happened 3 times under this request; it is not sent again."
    assert error.data["text"] == "a" * MAX_DEATHS
    assert driver.answer.finish_reason == "error"


def test_ends_that_were_asked_for_are_not_held_against_it() -> None:
    driver = Driver()
    for _ in range(MAX_DEATHS + 2):
        driver.begin()
        driver.die(WorkerDied("gone", requested=True))
    assert not driver.answer.done


def test_without_any_progress_it_ends() -> None:
    driver = Driver()
    for _ in range(MAX_FRUITLESS):
        assert not driver.answer.done
        driver.begin()
        driver.die(LeaseExpired("late"))
    assert isinstance(driver.answer.error, LeaseExpired)


@pytest.mark.parametrize("error", [PromptTooLong("long"), TransportError("the connection failed")])
def test_its_own_faults_end_it_at_once(error: SamplerPoolError) -> None:
    driver = Driver()
    driver.begin()
    driver.die(error)
    assert driver.answer.error is error


def test_a_process_that_refuses_is_avoided_and_its_successor_is_not() -> None:
    driver = Driver()
    driver.begin()
    driver.die(WorkerDraining("stopping"), "first")
    assert driver.answer.avoids(view(incarnation="first"))
    assert not driver.answer.avoids(view(incarnation="second"))
    assert driver.answer.hopeful([view(incarnation="first")])  # it will be known soon what comes after it


def test_there_is_hope_while_a_worker_is_coming() -> None:
    answer = Driver().answer
    assert answer.hopeful([view(up=False, coming=True), view(1, up=False)])
    assert not answer.hopeful([view(up=False), view(1, up=False)])


def test_when_nobody_is_left_the_error_says_so_and_what_came() -> None:
    driver = Driver()
    driver.begin()
    driver.call.feed(Accepted(0, [1], 5))
    driver.call.feed(Tokens(0, 0, [3], "a"))
    driver.die(WorkerDied("Worker 0 died."))
    driver.answer.nobody_left("Worker 0 has failed.")
    error = driver.answer.error
    assert isinstance(error, WorkerDied)
    assert error.message == "Worker 0 died. No worker of the pool is left. Worker 0 has failed."
    assert error.data["text"] == "a"


def test_when_all_are_full_that_is_the_error() -> None:
    driver = Driver()
    driver.begin()
    driver.die(QueueFull("full"))
    assert not driver.answer.hopeful([view()])
    driver.answer.nobody_left("")
    assert isinstance(driver.answer.error, QueueFull)


@given(
    st.text(st.sampled_from("aé👋\n\ufffdEND"), max_size=40),
    st.lists(st.integers(0, 120), max_size=4),
    st.lists(st.sampled_from(["END", "\n\n", "é", "👋E"]), max_size=2),
)
@settings(max_examples=300, deadline=None)
def test_wherever_workers_die_the_text_is_the_undisturbed_one(text: str, deaths: list[int], stop: list[str]) -> None:
    """Each call gets its tokens through a detokenizer of its own, as in a worker."""
    data = list(text.encode("utf-8", "replace"))
    whole = Detokenizer(ByteCodec(), stop)
    expected = "".join(whole.add([token]) for token in data) + whole.finish()
    driver = Driver()
    for death in [*sorted(deaths), None]:
        prompt, _ = driver.begin()
        before = list(prompt.generated_ids) if isinstance(prompt, TokenPrompt) else []
        delivered = prompt.delivered_chars if isinstance(prompt, TokenPrompt) else 0
        worker = Detokenizer(ByteCodec(), stop, generated_ids=before, delivered_chars=delivered)
        driver.call.feed(Accepted(0, [1], 5))
        for at in range(len(before), len(data) if death is None else min(death, len(data))):
            if worker.stopped:
                break
            driver.call.feed(Tokens(0, at, [data[at]], worker.add([data[at]])))
        if death is None:
            driver.call.feed(Tokens(0, len(driver.answer.token_ids), [], worker.finish()))
            driver.call.feed(Finished(0, "stop", 1, len(driver.answer.token_ids)))
            driver.answer.ended(driver.call)
        else:
            driver.answer._deaths = 0
            driver.die(WorkerDied("gone"))
    assert driver.answer.text == expected
