"""The same seeded request gives the same tokens, whatever the engine does beside it, before it and to it."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.base import BATCH, INTERACTIVE, EngineRequest, RequestId
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.loop import Admitted, EngineLoop, RequestEvent
from samplerpool.engine.sampling import SamplingRows, draw_grouped
from samplerpool.samplers.intake import Intake, Job
from samplerpool.wire.messages import TokenPrompt
from tests.engine_contract import Answer, drive, params
from tests.letters import LetterRenderer
from tests.model_zoo import build, prompt_of
from tests.near_ties import assert_same_tokens, gap_between

NAME, VOCABULARY = "qwen3", 600
TOKENS = 70
TIMEOUT_S = 60.0
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "repetition_penalty": 1.3},
    {"temperature": 1.3, "min_p": 0.02, "presence_penalty": 0.5},
    {"temperature": 1.0, "typical_p": 0.8, "no_repeat_ngram_size": 2},
]
HEADER = tuple(prompt_of(24, 77))
SUBJECTS = [
    EngineRequest(
        (1, number),
        (*HEADER[: 6 * number], *prompt_of(9, number)),
        params(max_new_tokens=TOKENS, seed=100 + number, **values),
        BATCH,
    )
    for number, values in enumerate(SETTINGS)
]
"""With beginnings in common, so that there is something to reuse."""


def others(count: int = 40) -> list[EngineRequest]:
    """Requests of many lengths and settings; some begin as the subjects do."""
    return [
        EngineRequest(
            (2, number),
            (*HEADER[: number % 25], *prompt_of(3 + number % 17, 50 + number)),
            params(max_new_tokens=4 + number % 23, seed=number, **SETTINGS[number % len(SETTINGS)]),
            BATCH if number % 3 else INTERACTIVE,
        )
        for number in range(count)
    ]


@pytest.fixture
def make() -> Iterator[Callable[..., DenseEngine]]:
    """Builds engines, each with a model of its own as in a worker of its own, and closes them in the end."""
    engines: list[DenseEngine] = []

    def build_one(max_batch: int = 64, cache_gib: float = 0.02, **options: Any) -> DenseEngine:
        config = EngineConfig(engine="dense", max_batch=max_batch, options={"cache_gib": cache_gib, **options})
        model = build(NAME, vocab_size=VOCABULARY)
        engines.append(DenseEngine(model, config, eos_token_ids=frozenset(), max_model_len=256))
        return engines[-1]

    yield build_one
    for engine in engines:
        engine.close()


@functools.cache
def alone() -> list[list[int]]:
    """What the subjects are answered one after the other, each by an engine that never did anything else."""
    answers = []
    for subject in SUBJECTS:
        config = EngineConfig(engine="dense", max_batch=1, options={"cache_gib": 0.02})
        model = build(NAME, vocab_size=VOCABULARY)
        engine = DenseEngine(model, config, eos_token_ids=frozenset(), max_model_len=256)
        answers.append(drive(engine, [subject])[subject.request_id].token_ids)
        engine.close()
    return answers


@functools.cache
def plain_model() -> Any:
    return build(NAME, vocab_size=VOCABULARY)


@torch.no_grad()
def logits_after(request: EngineRequest, tokens: list[int]) -> Tensor:
    logits: Tensor = plain_model()(torch.tensor([[*request.prompt_ids, *tokens]])).logits[0, -1]
    return logits


def assert_same(answers: dict[RequestId, Answer], subjects: Sequence[EngineRequest] = SUBJECTS) -> None:
    """The answers to the subjects are those that each gets alone."""
    for subject in subjects:
        found, wanted = answers[subject.request_id].token_ids, alone()[subject.request_id[1]]
        assert len(found) == TOKENS
        assert_same_tokens(found, wanted, subject, functools.partial(logits_after, subject))


# ---- whatever surrounds it -----------------------------------------------------------------------------------------


def test_the_answers_are_worth_comparing() -> None:
    assert len({tuple(answer) for answer in alone()}) == len(SUBJECTS)
    assert all(len(set(answer)) > TOKENS / 2 for answer in alone())


def test_one_after_the_other_in_one_engine(make: Callable[..., DenseEngine]) -> None:
    engine = make()
    for _ in range(2):
        assert_same({key: answer for subject in SUBJECTS for key, answer in drive(engine, [subject]).items()})


def test_in_a_batch_of_40_others(make: Callable[..., DenseEngine]) -> None:
    crowd = others()
    assert_same(drive(make(), [*crowd[:13], *SUBJECTS[:3], *crowd[13:27], *SUBJECTS[3:], *crowd[27:]]))


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_in_another_order_of_arrival(make: Callable[..., DenseEngine], first: bool) -> None:
    """Some at a time, the rest when those are on their way."""
    groups = [list(reversed(SUBJECTS[:3])), others()[:20], list(reversed(SUBJECTS[3:])), others()[20:]]
    engine, answers = make(max_batch=12), dict[RequestId, Answer]()
    for group in groups if first else reversed(groups):
        steps = iter(range(7))
        drive(engine, group, answers, until=lambda _, steps=steps: next(steps, None) is None)
    drive(engine, answers=answers)
    assert_same(answers)


WAYS: list[dict[str, Any]] = [
    {"step_tokens": 3},
    {"step_tokens": 17},
    {"prefill_chunk": 1},
    {"prefill_chunk": 6, "step_tokens": 9},
    {"kernel": False},
    {"packed_linears": False},
]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
def test_in_other_chunks_and_by_other_code(make: Callable[..., DenseEngine], options: dict[str, Any]) -> None:
    assert_same(drive(make(**options), [*others()[:8], *SUBJECTS]))


@pytest.mark.parametrize("reuse", [True, False], ids=["with-reuse", "without-reuse"])
def test_with_and_without_reuse_of_prefixes(make: Callable[..., DenseEngine], reuse: bool) -> None:
    engine = make(prefix_cache=reuse)
    drive(engine, others())
    before = engine.stats().details["prefix_hits"]
    assert_same(drive(engine, SUBJECTS))
    hits = engine.stats().details["prefix_hits"] - before
    assert hits >= 4 if reuse else hits == before == 0


# ---- whatever happens to it ----------------------------------------------------------------------------------------


def gib(tokens: int) -> float:
    """What so many tokens take in the cache: of layers, keys and values, heads, dimensions, bytes."""
    return tokens * 2 * 2 * 2 * 8 * 4 / 2**30


@pytest.mark.parametrize(
    "room", [{"max_batch": len(SUBJECTS)}, {"cache_gib": gib(1024)}], ids=["of-places", "of-memory"]
)
def test_after_making_room_for_interactive_requests(make: Callable[..., DenseEngine], room: dict[str, Any]) -> None:
    engine = make(**room)
    answers = drive(engine, SUBJECTS, until=lambda a: len(a) == len(SUBJECTS))
    assert engine.stats().details["preemptions"] == 0
    for round_ in range(3):
        watched = [EngineRequest((3, 10 * round_ + n), HEADER[n:] * 4, params(max_new_tokens=3)) for n in range(5)]
        drive(engine, watched, answers, until=lambda a, keys=watched: all(k.request_id in a for k in keys))
    drive(engine, answers=answers)
    assert_same(answers)
    assert engine.stats().details["preemptions"] >= 5


def test_after_memory_ran_out(make: Callable[..., DenseEngine]) -> None:
    engine = make(cache_gib=gib(256))
    assert_same(drive(engine, [*others()[:6], *SUBJECTS]))
    assert engine.stats().details["preemptions"] > 0


@pytest.mark.parametrize("done", [1, 13, TOKENS - 1])
def test_continued_by_another_worker(make: Callable[..., DenseEngine], done: int) -> None:
    continued = [
        EngineRequest(s.request_id, s.prompt_ids, s.params, s.priority, tuple(begun[:done]))
        for s, begun in zip(SUBJECTS, alone(), strict=True)
    ]
    answers = drive(make(), [*others()[:5], *continued])
    for subject in SUBJECTS:
        rest = answers[subject.request_id]
        rest.token_ids = [*alone()[subject.request_id[1]][:done], *rest.token_ids]
    assert_same(answers)


# ---- seeds that nobody gave ----------------------------------------------------------------------------------------


def test_a_seed_that_was_drawn_is_reported_and_gives_the_answer_again(make: Callable[..., DenseEngine]) -> None:
    loop = EngineLoop(make(), LetterRenderer())
    intake = Intake(loop, LetterRenderer(), tuple)
    try:
        wanted = {"temperature": 1.0, "max_new_tokens": TOKENS}
        drawn = [ask(intake, number, wanted) for number in range(2)]
        assert drawn[0][0] != drawn[1][0]
        assert drawn[0][1] != drawn[1][1]
        for number, (seed, tokens) in enumerate(drawn):
            assert ask(intake, 10 + number, {**wanted, "seed": seed}) == (seed, tokens)
    finally:
        intake.close()
        loop.close()


def ask(intake: Intake, number: int, values: dict[str, Any]) -> tuple[int, list[int]]:
    """The seed that was reported, and the tokens."""
    events: queue.SimpleQueue[RequestEvent] = queue.SimpleQueue()

    def listener(new: Sequence[RequestEvent]) -> None:
        for event in new:
            events.put(event)

    intake.submit([Job((0, number), TokenPrompt(prompt_of(9)), values, INTERACTIVE, listener)])
    admitted, tokens = events.get(timeout=TIMEOUT_S), list[int]()
    assert isinstance(admitted, Admitted)
    while True:
        event = events.get(timeout=TIMEOUT_S)
        assert not isinstance(event, Admitted)
        assert event.error is None
        tokens += event.token_ids
        if event.finish_reason is not None:
            return admitted.seed, tokens


# ---- the measure itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"top_k": 50}, {"top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_the_drawn_token_is_ahead_of_all_others(values: dict[str, Any]) -> None:
    """So the gaps by which near-ties are told are those of the race that the engines run."""
    chosen = resolve(sampling_params({"temperature": 0.8, "seed": 4, **values}))
    logits = torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    tokens = draw_grouped(logits, SamplingRows.of([chosen] * 20, range(20))).tolist()
    for position, token in enumerate(tokens):
        kept = logits[position].topk(50 if values.get("top_k") else 20).indices.tolist()
        assert all(gap_between(logits[position], chosen, position, token, other) >= 0 for other in kept)


def test_a_near_tie_passes_and_another_token_does_not() -> None:
    request = EngineRequest((0, 0), (5, 6), params(temperature=1.0, seed=3))
    logits = torch.zeros(VOCABULARY)
    first, second = 7, 9
    logits[second] = gap_between(logits, request.params, 0, first, second)  # level
    assert_same_tokens([second, 1], [first, 2], request, lambda _: logits)
    logits[second] += 0.01
    with pytest.raises(AssertionError, match="token 0 is 9 instead of 7"):
        assert_same_tokens([second, 1], [first, 2], request, lambda _: logits)
    with pytest.raises(AssertionError):
        assert_same_tokens([first], [first, 2], request, lambda _: logits)
