"""What every engine does, as tests. Subclass ``EngineContract`` and say how to build the engine and what to ask it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from samplerpool.config.sampling import SamplingParams, resolve, sampling_params
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, EngineRequest, RequestId
from samplerpool.errors import PromptTooLong, SamplerPoolError, UnsupportedParameter
from samplerpool.types import TokenLogprobs

DEADLINE_S = 60.0

SHAPING_HISTORY = [
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "bad_words",
    "min_new_tokens",
]
SHAPING: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "presence_penalty": 1.5,
    "frequency_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "logit_bias": {3: 5.0},
    "bad_words": [[5], [6, 7]],
    "min_new_tokens": 5,
    "typical_p": 0.9,
    "min_p": 0.1,
    "top_k": 5,
    "top_p": 0.9,
    "logprobs": 3,
}
"""Parameters that an engine may not have, each with a value that changes something."""


@dataclass
class Answer:
    """All that an engine returned for one request."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: SamplerPoolError | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)


def params(**values: Any) -> SamplingParams:
    """Resolved parameters; greedy and going on after the end of the sequence unless said otherwise."""
    return resolve(sampling_params({"temperature": 0.0, "ignore_eos": True, "seed": 0, **values}))


def drive(
    engine: Engine,
    requests: Sequence[EngineRequest] = (),
    answers: dict[RequestId, Answer] | None = None,
    until: Callable[[dict[RequestId, Answer]], bool] = lambda _: False,
) -> dict[RequestId, Answer]:
    """Check and add the requests, then step until nothing is left to do or ``until`` holds.

    Fails if anything is returned for a request after its end, or a step returns nothing for too long.
    """
    answers = {} if answers is None else answers
    for request in requests:
        engine.check(request)
        engine.add(request)
    deadline = time.monotonic() + DEADLINE_S
    while engine.has_work() and not until(answers):
        for output in engine.step():
            answer = answers.setdefault(output.request_id, Answer())
            assert answer.finish_reason is None, "an output after the last one"
            assert output.token_ids or output.finish_reason, "an empty output"
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs or ()
            answer.finish_reason, answer.error = output.finish_reason, output.error
            assert (output.error is not None) == (output.finish_reason == "error")
        assert time.monotonic() < deadline, f"no end in sight; so far: {answers}"
    return answers


def answer_of(engine: Engine, prompt_ids: tuple[int, ...], generated: Sequence[int] = (), **values: Any) -> Answer:
    """One request by itself."""
    request = EngineRequest((0, 0), prompt_ids, params(**values), generated_ids=tuple(generated))
    return drive(engine, [request])[0, 0]


class EngineContract(ABC):
    """Inherit, implement the abstract methods, and every ``test_*`` holds for the engine."""

    preempts = True
    """Whether an interactive request takes a batch request's place when all are taken."""
    first_token_steps: int | None = None
    """Within how many steps it then has its first token; None where the engine's steps are parts of passes."""

    @abstractmethod
    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        """A new engine; the contract closes it."""

    @abstractmethod
    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        """A prompt of its own for each name, whose answer has at least so many tokens if ends are ignored."""

    @abstractmethod
    def ending_prompt(self) -> tuple[int, ...]:
        """A prompt whose greedy answer ends by itself within 60 tokens."""

    def sampled_prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        """Like ``prompt``, with an answer that depends on the seed."""
        return self.prompt(name, tokens)

    def request(self, number: int, tokens: int = 12, *, priority: int = INTERACTIVE, **values: Any) -> EngineRequest:
        """Request number so-and-so, for so many tokens."""
        prompt_ids = self.prompt(f"request {number}", tokens)
        return EngineRequest((1, number), prompt_ids, params(max_new_tokens=tokens, **values), priority)

    @pytest.fixture
    def make(self) -> Iterator[Callable[..., Engine]]:
        """Builds engines and closes them in the end."""
        engines: list[Engine] = []

        def build(**config: int) -> Engine:
            engines.append(self.build(**config))
            return engines[-1]

        yield build
        for engine in engines:
            engine.close()

    @pytest.fixture
    def engine(self, make: Callable[..., Engine]) -> Engine:
        return make()

    # ---- ends and lengths -----------------------------------------------------------------------------------------

    def test_every_request_ends_once_with_its_tokens(self, engine: Engine) -> None:
        answers = drive(engine, [self.request(i, tokens=3 + 2 * i) for i in range(4)])
        assert {key[1]: (len(a.token_ids), a.finish_reason) for key, a in answers.items()} == {
            i: (3 + 2 * i, "length") for i in range(4)
        }

    def test_its_steps_move_with_what_is_computed(self, engine: Engine) -> None:
        before = engine.steps
        drive(engine, [self.request(0, tokens=12)])
        assert engine.steps >= before + 12

    def test_a_single_token(self, engine: Engine) -> None:
        answer = answer_of(engine, self.prompt("one", 5), max_new_tokens=1)
        assert (len(answer.token_ids), answer.finish_reason) == (1, "length")

    def test_more_requests_than_places(self, make: Callable[..., Engine]) -> None:
        answers = drive(make(max_batch=2), [self.request(i) for i in range(7)])
        assert [(len(answers[1, i].token_ids), answers[1, i].finish_reason) for i in range(7)] == [(12, "length")] * 7

    def test_requests_added_while_others_run(self, engine: Engine) -> None:
        answers = drive(engine, [self.request(0, tokens=20)], until=lambda a: bool(a))
        drive(engine, [self.request(1, tokens=5), self.request(2, tokens=30)], answers)
        assert [len(answers[1, i].token_ids) for i in range(3)] == [20, 5, 30]

    def test_the_same_answer_alone_and_among_others(self, engine: Engine) -> None:
        together = drive(engine, [self.request(i, tokens=10) for i in range(4)])
        for i in range(4):
            assert drive(engine, [self.request(i, tokens=10)])[1, i].token_ids == together[1, i].token_ids

    def test_the_end_of_the_sequence_ends_the_answer_and_is_part_of_it(self, engine: Engine) -> None:
        answer = answer_of(engine, self.ending_prompt(), max_new_tokens=60, ignore_eos=False)
        assert answer.finish_reason == "stop"
        longer = answer_of(engine, self.ending_prompt(), max_new_tokens=60, ignore_eos=False, stop_token_ids=(1 << 20,))
        assert longer.token_ids == answer.token_ids

    def test_ignore_eos_goes_on_after_the_end(self, engine: Engine) -> None:
        ended = answer_of(engine, self.ending_prompt(), max_new_tokens=60, ignore_eos=False)
        going_on = answer_of(engine, self.ending_prompt(), max_new_tokens=60, ignore_eos=True)
        assert (len(going_on.token_ids), going_on.finish_reason) == (60, "length")
        assert going_on.token_ids[: len(ended.token_ids) - 1] == ended.token_ids[:-1]

    def test_a_stop_token_ends_the_answer_at_its_first_place(self, engine: Engine) -> None:
        prompt_ids = self.prompt("stop", 20)
        tokens = answer_of(engine, prompt_ids, max_new_tokens=20).token_ids
        stop = tokens[4]
        stopped = answer_of(engine, prompt_ids, max_new_tokens=20, stop_token_ids=(stop,))
        assert (stopped.token_ids, stopped.finish_reason) == (tokens[: tokens.index(stop) + 1], "stop")

    def test_the_model_length_ends_an_answer(self, make: Callable[..., Engine]) -> None:
        prompt_ids = self.prompt("long", 100)
        engine = make(max_model_len=len(prompt_ids) + 6)
        answer = answer_of(engine, prompt_ids, max_new_tokens=100)
        assert (len(answer.token_ids), answer.finish_reason) == (6, "length")

    # ---- refusals -------------------------------------------------------------------------------------------------

    def test_a_prompt_that_leaves_no_room_is_refused(self, make: Callable[..., Engine]) -> None:
        prompt_ids = self.prompt("long", 100)
        engine = make(max_model_len=len(prompt_ids))
        with pytest.raises(PromptTooLong) as caught:
            engine.check(EngineRequest((0, 0), prompt_ids, params()))
        assert caught.value.data == {"prompt_tokens": len(prompt_ids), "limit": len(prompt_ids)}
        assert not engine.has_work()

    def test_a_parameter_that_cannot_be_honoured_is_refused(self, engine: Engine) -> None:
        for name, value in SHAPING.items():
            request = EngineRequest((0, 0), self.prompt("x", 5), params(**{name: value}))
            if name in engine.supported:
                engine.check(request)
                continue
            with pytest.raises(UnsupportedParameter) as caught:
                engine.check(request)
            assert caught.value.data == {"parameter": name, "engine": engine.name}

    def test_token_ids_that_the_model_does_not_have_are_refused(self, engine: Engine) -> None:
        for name, value in (("logit_bias", {1 << 30: 1.0}), ("bad_words", [[1 << 30]])):
            if name in engine.supported:
                with pytest.raises(UnsupportedParameter, match=f"{name} names the token {1 << 30}"):
                    engine.check(EngineRequest((0, 0), self.prompt("x", 5), params(**{name: value})))

    # ---- parameters that look at earlier tokens -------------------------------------------------------------------

    @pytest.mark.parametrize("name", SHAPING_HISTORY)
    def test_a_continuation_remembers_what_came_before(self, engine: Engine, name: str) -> None:
        if name not in engine.supported:
            pytest.skip(f"the {engine.name} engine has no {name}")
        prompt_ids, values = self.prompt("remembered", 24), {name: SHAPING[name], "max_new_tokens": 24}
        whole = answer_of(engine, prompt_ids, **values).token_ids
        assert answer_of(engine, prompt_ids, whole[:9], **values).token_ids == whole[9:]

    def test_logprobs_are_one_entry_a_token_and_change_nothing(self, engine: Engine) -> None:
        if "logprobs" not in engine.supported:
            pytest.skip(f"the {engine.name} engine has no logprobs")
        prompt_ids, values = self.sampled_prompt("scored", 12), {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
        neighbour = EngineRequest((5, 1), self.prompt("neighbour", 12), params(max_new_tokens=12))
        scored = EngineRequest((5, 0), prompt_ids, params(**values, logprobs=3))
        answers = drive(engine, [scored, neighbour])
        answer = answers[5, 0]
        assert answer.token_ids == answer_of(engine, prompt_ids, **values).token_ids
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        for entry in answer.logprobs:
            assert len({token_id for token_id, _ in entry.top}) == 3
            assert [logprob for _, logprob in entry.top] == sorted((logprob for _, logprob in entry.top), reverse=True)
            assert all(-9999.0 <= logprob <= 0 for logprob in (entry.logprob, *dict(entry.top).values()))
        assert answers[5, 1].logprobs == []
        rest = answer_of(engine, prompt_ids, answer.token_ids[:5], **values, logprobs=3)
        assert [entry.token_id for entry in rest.logprobs] == answer.token_ids[5:]

    # ---- aborts ---------------------------------------------------------------------------------------------------

    def test_an_aborted_request_is_silent_and_frees_its_place(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=1)
        answers = drive(engine, [self.request(0, tokens=200), self.request(1)], until=lambda a: (1, 0) in a)
        engine.abort((1, 0))
        seen = len(answers[1, 0].token_ids)
        drive(engine, answers=answers)
        assert (len(answers[1, 0].token_ids), answers[1, 0].finish_reason) == (seen, None)
        assert (len(answers[1, 1].token_ids), answers[1, 1].finish_reason) == (12, "length")

    def test_an_aborted_requests_place_is_taken_in_the_next_step(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=2)
        drive(engine, [self.request(i, tokens=200) for i in range(4)], until=lambda a: len(a) == 2)
        assert (engine.stats().running, engine.stats().queued) == (2, 2)
        engine.abort((1, 0))
        engine.step()
        assert (engine.stats().running, engine.stats().queued) == (2, 1)
        engine.abort((1, 1))
        engine.step()
        assert (engine.stats().running, engine.stats().queued) == (2, 0)

    def test_aborting_a_queued_request(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=1)
        for i in range(3):
            engine.add(self.request(i))
        engine.abort((1, 1))
        assert set(drive(engine)) == {(1, 0), (1, 2)}

    def test_aborting_everything_leaves_no_work(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=2)
        for i in range(5):
            engine.add(self.request(i, tokens=100))
        for i in range(5):
            engine.abort((1, i))
        assert not engine.has_work()
        stats = engine.stats()
        assert (stats.running, stats.queued) == (0, 0)

    def test_an_aborted_id_may_be_used_again(self, engine: Engine) -> None:
        drive(engine, [self.request(0, tokens=100)], until=lambda a: bool(a))
        engine.abort((1, 0))
        again = EngineRequest((1, 0), self.prompt("another", 10), params(max_new_tokens=10))
        answer = drive(engine, [again])[1, 0]
        assert answer == answer_of(engine, self.prompt("another", 10), max_new_tokens=10)

    def test_aborting_an_unknown_id_does_nothing(self, engine: Engine) -> None:
        engine.abort((9, 9))
        answers = drive(engine, [self.request(0)])
        engine.abort((1, 0))
        assert len(answers[1, 0].token_ids) == 12

    # ---- continuations and seeds ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_a_continuation_gives_the_tokens_of_the_whole(self, engine: Engine, temperature: float) -> None:
        prompt_ids = self.sampled_prompt("continued", 20)
        values = {"max_new_tokens": 20, "temperature": temperature, "seed": 5}
        whole = answer_of(engine, prompt_ids, **values)
        for done in (1, 8, 19):
            rest = answer_of(engine, prompt_ids, whole.token_ids[:done], **values)
            assert (rest.token_ids, rest.finish_reason) == (whole.token_ids[done:], "length")

    def test_a_seed_gives_the_same_tokens_alone_and_among_others(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=3)
        prompt_ids = self.sampled_prompt("seeded", 16)
        requests = [
            EngineRequest((3, i), prompt_ids, params(temperature=1.0, seed=i, max_new_tokens=16)) for i in range(6)
        ]
        together = drive(engine, requests)
        for request in requests:
            assert drive(engine, [request]) == {request.request_id: together[request.request_id]}
        assert len({tuple(answer.token_ids) for answer in together.values()}) > 1, "the seed changes nothing"

    # ---- priorities and figures -----------------------------------------------------------------------------------

    def test_a_queued_interactive_request_goes_before_queued_batch_requests(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=1)
        batch = [self.request(i, tokens=20, priority=BATCH) for i in range(3)]
        finished: list[int] = []

        def note_ends(answers: dict[RequestId, Answer]) -> bool:
            finished.extend(key[1] for key, a in answers.items() if a.finish_reason and key[1] not in finished)
            return False

        drive(engine, [*batch, self.request(7, tokens=3)], until=note_ends)
        assert finished.index(7) < finished.index(1)

    def test_an_interactive_request_takes_the_place_of_the_youngest_batch_request(
        self, make: Callable[..., Engine]
    ) -> None:
        """At once. The other stands still, and later goes on with the same tokens."""
        if not self.preempts:
            pytest.skip("this engine lets batch requests finish first")
        engine = make(max_batch=2)
        batch = [self.request(i, tokens=90, priority=BATCH, temperature=1.0, seed=i) for i in range(3)]
        alone = [drive(engine, [request])[request.request_id] for request in batch]
        answers = drive(engine, batch, until=lambda a: len(a) == 2)
        watched, steps = self.request(7, tokens=8), engine.steps
        drive(engine, [watched], answers, until=lambda a: (1, 7) in a)
        assert self.first_token_steps is None or engine.steps - steps <= self.first_token_steps
        before = len(answers[1, 1].token_ids)
        assert (engine.stats().running, engine.stats().queued) == (2, 2)
        drive(engine, answers=answers, until=lambda a: bool(a[1, 7].finish_reason))
        assert len(answers[1, 1].token_ids) - before <= 1  # it may be back in the step of the other one's end
        assert (1, 2) not in answers
        drive(engine, answers=answers)
        assert [answers[request.request_id] for request in batch] == alone

    def test_stats_count_running_and_queued(self, make: Callable[..., Engine]) -> None:
        engine = make(max_batch=2)
        assert (engine.stats().running, engine.stats().queued) == (0, 0)
        drive(engine, [self.request(i, tokens=50) for i in range(5)], until=lambda a: bool(a))
        assert (engine.stats().running, engine.stats().queued) == (2, 3)
        drive(engine)
        assert (engine.stats().running, engine.stats().queued) == (0, 0)
        assert not engine.has_work()

    def test_close_is_idempotent_and_may_come_in_the_middle(self, make: Callable[..., Engine]) -> None:
        engine = make()
        drive(engine, [self.request(i, tokens=100) for i in range(6)], until=lambda a: bool(a))
        engine.close()
        engine.close()
        assert not engine.has_work()
