"""However a request on the paged engine ends, it ends once, and nothing of it is left in the library."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.base import BATCH, INTERACTIVE, EngineRequest, RequestId
from samplerpool.engine.budget import FIRST_PATIENCE
from samplerpool.engine.loop import Admitted, EngineLoop, RequestEvent, RequestOutput
from samplerpool.engine.paged import PagedEngine
from samplerpool.engine.paged_manager import CancelSafeScheduler
from samplerpool.engine.paged_processors import SETTINGS_KEY
from samplerpool.errors import EngineBroken, EngineError
from tests.engine_contract import Answer, drive, params
from tests.letters import LetterRenderer
from tests.model_zoo import build, prompt_of

TIMEOUT_S = 60.0
LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 8


@functools.cache
def model() -> Any:
    return build("llama")


@pytest.fixture
def make() -> Iterator[Callable[..., PagedEngine]]:
    engines: list[PagedEngine] = []

    def build_one(max_batch: int = 3, cache_tokens: int = 0) -> PagedEngine:
        per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
        options = {"cache_gib": cache_tokens * per_token / 2**30} if cache_tokens else {}
        config = EngineConfig(engine="paged", max_batch=max_batch, options=options)
        engines.append(PagedEngine(model(), config, eos_token_ids=frozenset(), max_model_len=256))
        return engines[-1]

    yield build_one
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make: Callable[..., PagedEngine]) -> PagedEngine:
    return make()


def request(number: int, tokens: int = 20, priority: int = BATCH, **values: Any) -> EngineRequest:
    wanted = params(max_new_tokens=tokens, temperature=1.0, seed=number, **values)
    return EngineRequest((1, number), tuple(prompt_of(8, number)), wanted, priority)


def library(engine: PagedEngine) -> Any:
    """The library's own loop body, with its scheduler and its cache."""
    return engine._manager._manager.batch_processor


def assert_nothing_left(engine: PagedEngine) -> None:
    """Not here, and not in the library, which learns of a cancellation before its next step."""
    assert not engine.has_work()
    assert (engine.stats().running, engine.stats().queued) == (0, 0)
    assert not engine._running
    inside = library(engine)
    assert not inside.scheduler.active_requests
    assert not inside.scheduler.waiting_requests
    assert not engine._manager.router.result_handlers
    assert engine._manager.router.output_queue.empty()
    assert all(not allocator.block_table for allocator in inside.cache.cache_allocators.values())


# ---- one request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [False, True], ids=["running", "queued"])
def test_a_cancelled_request_leaves_nothing(engine: PagedEngine, queued: bool) -> None:
    answers = drive(engine, [request(n, tokens=200) for n in range(6)], until=lambda a: len(a) == 3)
    order = [3, 4, 5, 0, 1, 2] if queued else [0, 1, 2, 3, 4, 5]
    for number in order:
        engine.abort((1, number))
    assert not any(answer.finish_reason for answer in answers.values())
    steps = engine._manager._manager.current_batch
    assert len(drive(engine, [request(9, tokens=3)])[1, 9].token_ids) == 3
    assert engine._manager._manager.current_batch < steps + 20  # so the library did not go on with them
    assert_nothing_left(engine)


def test_a_request_that_the_library_refuses_fails_alone(engine: PagedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(n) for n in range(5)]
    alone = [drive(engine, [each])[each.request_id] for each in requests]

    def refuse(kwargs: dict[str, Any]) -> None:
        if kwargs[SETTINGS_KEY].params.seed == 1:
            raise ValueError("no such thing")

    monkeypatch.setattr(engine._manager._manager.logit_processor, "check_kwargs", refuse)
    answers = drive(engine, requests)
    refused = answers.pop((1, 1))
    assert (refused.finish_reason, refused.token_ids) == ("error", [])
    assert isinstance(refused.error, EngineError)
    assert "no such thing" in refused.error.message
    assert answers == {(1, n): alone[n] for n in (0, 2, 3, 4)}
    assert_nothing_left(engine)


@pytest.mark.parametrize("values", [{}, {"logprobs": 2}, {"repetition_penalty": 1.4}, {"bad_words": [[5], [7, 8]]}])
def test_a_request_that_is_started_over_for_want_of_memory_goes_on(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    requests = [request(n, tokens=50, **values) for n in range(3)]
    tight, starts = make(cache_tokens=96), list[int]()
    manager = library(tight).offloading_manager
    offload = manager.offload_requests
    monkeypatch.setattr(manager, "offload_requests", lambda: starts.append(1) or offload())
    found, wanted = drive(tight, requests), drive(make(), requests)
    assert starts
    for key, answer in wanted.items():
        assert (found[key].token_ids, found[key].finish_reason) == (answer.token_ids, "length")
        scored = [(entry.token_id, entry.logprob) for entry in found[key].logprobs]
        assert scored == [(entry.token_id, pytest.approx(entry.logprob, abs=1e-3)) for entry in answer.logprobs]
    assert_nothing_left(tight)


def test_a_cancellation_that_comes_before_its_request_is_not_lost() -> None:
    """The library empties its queue of requests before that of cancellations, and both may come in between."""
    freed: list[str] = []
    scheduler = CancelSafeScheduler(SimpleNamespace(free_blocks=freed.append), 0.0, 4)
    scheduler.set_request_cancellation("late")
    scheduler.set_request_cancellation("never")
    assert scheduler.clear_cancelled_requests() == []
    late, other = (RequestState(key, [1, 2], max_new_tokens=5) for key in ("late", "other"))
    scheduler.add_waiting_request(late)
    scheduler.add_waiting_request(other)
    assert scheduler.clear_cancelled_requests() == [late]
    assert late.status == RequestStatus.FINISHED
    assert list(scheduler.waiting_requests) == list(scheduler.waiting_requests_order) == ["other"]
    again = RequestState("never", [1, 2], max_new_tokens=5)
    scheduler.add_waiting_request(again)
    assert scheduler.clear_cancelled_requests() == []


# ---- all of them ---------------------------------------------------------------------------------------------------


class Outputs:
    """The events of all requests, and their ends."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()
        self.tokens: dict[RequestId, list[int]] = {}

    def __call__(self, events: Sequence[RequestEvent]) -> None:
        for event in events:
            self._events.put(event)

    def ends(self, count: int) -> dict[RequestId, RequestOutput]:
        """The last outputs of so many requests."""
        ends: dict[RequestId, RequestOutput] = {}
        while len(ends) < count:
            event = self._events.get(timeout=TIMEOUT_S)
            assert event.request_id not in ends
            if isinstance(event, Admitted):
                self.tokens[event.request_id] = []
                continue
            self.tokens[event.request_id] += event.token_ids
            if event.finish_reason is not None:
                ends[event.request_id] = event
        assert self._events.empty()
        return ends


def break_after(engine: PagedEngine, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's thread dies at a later step."""
    inside, left = library(engine), iter(range(steps))
    step = inside._generation_step

    def failing(a_model: Any) -> None:
        if next(left, None) is None:
            raise ValueError("no such product")
        step(a_model)

    monkeypatch.setattr(inside, "_generation_step", failing)


def test_when_its_thread_dies_every_request_ends_once_and_so_do_later_ones(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    engine, outputs = make(max_batch=2), Outputs()
    break_after(engine, 6, monkeypatch)
    inside, router = library(engine), engine._manager.router
    loop = EngineLoop(engine, LetterRenderer())
    try:
        for number in range(5):
            loop.submit(request(number, tokens=200), outputs)
        ends = outputs.ends(5)
        assert all(isinstance(end.error, EngineBroken) for end in ends.values())
        assert all("no such product" in end.error.message for end in ends.values() if end.error)
        assert sum(map(len, outputs.tokens.values())) > 2  # what was there before is not lost
        loop.submit(request(7), outputs)
        (late,) = outputs.ends(1).values()
        assert isinstance(late.error, EngineBroken)
        assert "must be started again" in late.error.message
        assert not engine.has_work()
        assert (engine.stats().running, engine.stats().queued) == (0, 0)
        assert not inside.scheduler.active_requests
        assert not router.result_handlers
    finally:
        loop.close()
    assert set(threading.enumerate()) == before


def test_a_thread_that_dies_while_nobody_asks_is_noticed_by_the_next_who_does(
    engine: PagedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[RequestId, Answer] = drive(engine, [request(1, tokens=3)])
    assert answers[1, 1].finish_reason == "length"
    monkeypatch.setattr(library(engine), "prepare_next_batch", lambda: 1 / 0)
    engine._manager._manager._generation_thread.join(TIMEOUT_S)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        drive(engine, [request(2)])
    assert not engine.has_work()


# ---- no memory ------------------------------------------------------------------------------------------------------


class Shortage:
    """Makes steps of the library run out of memory, after they were computed, which is when they did harm."""

    def __init__(self, engine: PagedEngine, fits: Callable[[Any, int], bool], patch: pytest.MonkeyPatch) -> None:
        inside = library(engine)
        step = inside._generation_step
        self.steps = self.failures = 0

        def failing(a_model: Any) -> None:
            self.steps += 1
            step(a_model)
            if not fits(inside.scheduler, self.steps):
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.5 GiB")

        patch.setattr(inside, "_generation_step", failing)


def crowd() -> list[EngineRequest]:
    """Some with what looks at earlier tokens, and one that is interactive."""
    shaped = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "logprobs": 1}
    return [
        request(n, tokens=20 + 3 * n, priority=INTERACTIVE if n == 4 else BATCH, **(shaped if n % 2 else {}))
        for n in range(6)
    ]


def told(answers: dict[RequestId, Answer]) -> dict[RequestId, tuple[list[int], str | None, int]]:
    return {key: (answer.token_ids, answer.finish_reason, len(answer.logprobs)) for key, answer in answers.items()}


def test_without_memory_the_youngest_wait_and_all_go_on_with_the_same_tokens(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, wanted = make(max_batch=6), told(drive(make(max_batch=6), crowd()))
    shortage = Shortage(engine, lambda scheduler, _: len(scheduler.active_requests) <= 2, monkeypatch)
    assert told(drive(engine, crowd())) == wanted
    details = engine.stats().details
    assert details["out_of_memory"] == shortage.failures >= 2
    assert details["batch_lowered_to"] <= 2
    assert_nothing_left(engine)


@pytest.mark.parametrize("at", [1, 2, 9, 22])
def test_a_shortage_at_any_step_changes_no_token(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    engine, wanted = make(max_batch=6), told(drive(make(max_batch=6), crowd()))
    shortage = Shortage(engine, lambda _, step: step not in (at, at + 1), monkeypatch)
    assert told(drive(engine, crowd())) == wanted
    assert shortage.failures == 2
    assert_nothing_left(engine)


def test_prompts_are_cut_smaller_where_large_steps_do_not_fit(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(max_batch=6)
    shortage = Shortage(engine, lambda scheduler, _: scheduler.step_tokens <= 20, monkeypatch)
    long = EngineRequest((2, 0), tuple(prompt_of(100)), params(max_new_tokens=20, temperature=1.0, seed=2), BATCH)
    wanted = told(drive(make(), [long]))
    assert told(drive(engine, [long])) == wanted
    assert shortage.failures >= 2
    assert engine.stats().details["step_tokens_lowered_to"] <= 20


def test_a_request_that_does_not_fit_by_itself_fails_alone(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, wanted = make(max_batch=6), told(drive(make(max_batch=6), crowd()))

    def fits(scheduler: Any, _: int) -> bool:
        return all(len(state.initial_tokens) < 120 for state in scheduler.active_requests.values())

    Shortage(engine, fits, monkeypatch)
    large = EngineRequest((2, 0), tuple(prompt_of(150)), params(max_new_tokens=20), BATCH)
    first, *rest = crowd()
    answers = drive(engine, [first, large, *rest])
    failed = answers.pop((2, 0))
    assert isinstance(failed.error, EngineError)
    assert failed.error.data == {"tokens": 150}
    assert told(answers) == wanted
    assert_nothing_left(engine)


def test_memory_that_comes_back_is_used_again(
    make: Callable[..., PagedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(max_batch=6)
    Shortage(engine, lambda _, step: step != 1, monkeypatch)
    drive(engine, crowd(), until=bool)
    assert engine.stats().details["batch_lowered_to"] < 6
    drive(engine)
    for number in range(5):  # it depends on the step that ran short how far the batch was lowered
        drive(engine, [request(10 + number, tokens=3 * FIRST_PATIENCE)])
        if "batch_lowered_to" not in engine.stats().details:
            return
    pytest.fail(f"still lowered: {engine.stats().details}")
