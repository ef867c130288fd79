"""The dense engine's pure parts: memory regions, shared prefixes, what happens in a step."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.arena import MIN_CAPACITY, Buddies, Region, capacity_for
from samplerpool.engine.base import BATCH, INTERACTIVE, EngineRequest
from samplerpool.engine.prefix import Prefix, PrefixIndex, common_length
from samplerpool.engine.schedule import Plan, Row, Scheduler

EOS = frozenset({0})


def row(number: int, prompt: list[int] | int, tokens: int = 10, priority: int = BATCH, **params: Any) -> Row:
    ids = [1000 + number] * prompt if isinstance(prompt, int) else prompt
    resolved = resolve(sampling_params({"max_new_tokens": tokens, "temperature": 0.0, **params}))
    return Row(EngineRequest((1, number), tuple(ids), resolved, priority), EOS, 10_000)


def compute(scheduler: Scheduler, plan: Plan, token: int = 7) -> list[int]:
    """Do what the engine does with a plan; the numbers of the rows that gained a token."""
    gained = list(plan.decodes) + [r for r, count in plan.chunks if count == r.pending]
    scheduler.done(plan)
    for r in gained:
        r.tokens.append(token)
        if r.finish_reason():
            scheduler.remove(r.request.request_id)
    return [r.request.request_id[1] for r in gained]


# ---- regions ------------------------------------------------------------------------------------------------------


def test_regions_are_the_lowest_that_fit_and_join_again() -> None:
    buddies = Buddies(1024)
    first, second, third = (buddies.take(n) for n in (64, 100, 64))
    assert (first, second, third) == (Region(0, 64), Region(128, 128), Region(64, 64))
    assert buddies.take(1024) is None
    for region in (first, second, third):
        assert region is not None
        buddies.give(region)
    assert buddies.take(1024) == Region(0, 1024)
    assert buddies.take(1) is None


def test_a_line_of_any_length_is_used_as_a_whole() -> None:
    buddies = Buddies(64 * 11 + 5)
    assert (buddies.free_tokens, buddies.largest) == (64 * 11, 512)
    assert [capacity_for(n) for n in (1, 64, 65, 1000)] == [64, 64, 128, 1024]


@given(st.randoms(use_true_random=False), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_regions_never_overlap(dice: random.Random, pieces: int) -> None:
    buddies = Buddies(pieces * MIN_CAPACITY)
    held: list[Region] = []
    for _ in range(80):
        if held and dice.random() < 0.45:
            region = held.pop(dice.randrange(len(held)))
            buddies.give(region)
            if dice.random() < 0.3:
                buddies.claim(region)
                held.append(region)
        elif (taken := buddies.take(dice.randint(1, 600))) is not None:
            held.append(taken)
        spans = sorted((r.offset, r.offset + r.capacity) for r in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert buddies.free_tokens == pieces * MIN_CAPACITY - sum(r.capacity for r in held)
    for region in held:
        buddies.give(region)
    assert buddies.take(buddies.largest) is not None


# ---- prefixes -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_length(first: list[int], second: list[int]) -> None:
    expected = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    assert common_length(first, second) == (min(len(first), len(second)) if expected is None else expected)


def test_the_longest_computed_prefix_is_found_and_what_is_under_way_is_told() -> None:
    index = PrefixIndex()
    done = Prefix("done", [*range(20), 99, 98], Region(0, 64), 22)
    under_way = Prefix("under way", list(range(40)), Region(64, 64), 12)
    index.add(done)
    index.add(under_way)
    assert index.find([*range(30), 77], 30) == (done, 20, 30)
    assert index.find(list(range(10)), 9) == (under_way, 9, 9)
    assert index.find([5] * 20, 19) == (None, 0, 0)
    index.remove(done)
    assert index.find([*range(30), 77], 30) == (under_way, 12, 30)


# ---- steps --------------------------------------------------------------------------------------------------------


def test_a_row_is_prefilled_decoded_and_gone() -> None:
    scheduler = Scheduler(4096, 4)
    scheduler.add(row(1, 20, tokens=3))
    plan = scheduler.plan()
    assert [(r.request.request_id[1], count) for r, count in plan.chunks] == [(1, 20)]
    assert compute(scheduler, plan) == [1]
    for _ in range(2):
        plan = scheduler.plan()
        assert (len(plan.decodes), plan.chunks) == (1, [])
        compute(scheduler, plan)
    assert not scheduler.running
    assert scheduler.plan() == Plan()


def test_a_new_row_joins_at_the_next_step_and_a_finished_one_leaves_at_once() -> None:
    scheduler = Scheduler(4096, 2)
    for number in (1, 2, 3):
        scheduler.add(row(number, 5, tokens=2 if number == 1 else 9))
    compute(scheduler, scheduler.plan())
    assert set(scheduler.running) == {(1, 1), (1, 2)}
    compute(scheduler, scheduler.plan())
    plan = scheduler.plan()
    assert set(scheduler.running) == {(1, 2), (1, 3)}
    assert [r.request.request_id[1] for r in plan.decodes] == [2]


def test_long_prompts_go_in_chunks_that_are_small_beside_an_interactive_stream() -> None:
    scheduler = Scheduler(16384, 4, reuse=False)
    scheduler.add(row(1, 4, tokens=50, priority=INTERACTIVE))
    compute(scheduler, scheduler.plan())
    scheduler.add(row(2, 2000))
    counts = []
    while any(r.pending > 1 for r in scheduler.running.values()) or not counts:
        plan = scheduler.plan()
        assert [r.request.request_id[1] for r in plan.decodes if r.interactive] == [1]
        counts += [count for _, count in plan.chunks]
        compute(scheduler, plan)
        if len(counts) > 20:
            break
    assert max(counts) <= 40
    alone = Scheduler(16384, 4, step_tokens=512)
    alone.add(row(2, 2000))
    assert alone.plan().chunks[0][1] == 512


def test_chunks_beside_a_stream_become_smaller_where_there_are_more_keys_to_read() -> None:
    def chunks(**options: Any) -> list[int]:
        scheduler = Scheduler(16384, 4, reuse=False, **options)
        scheduler.add(row(1, 4, tokens=500, priority=INTERACTIVE))
        compute(scheduler, scheduler.plan())
        scheduler.add(row(2, 2000))
        counts = []
        while sum(counts) < 2000:
            plan = scheduler.plan()
            counts.append(plan.chunks[0][1])
            compute(scheduler, plan)
        return counts

    assert set(chunks()[:-1]) == {30}
    assert set(chunks(keys_per_token=1000, prefill_chunk=40)[:-1]) == {40}, "what was asked for is kept to"
    weighted = chunks(keys_per_token=1000)
    assert weighted[0] == 30
    assert weighted[-2] == 10
    assert weighted[:-1] == sorted(weighted[:-1], reverse=True)


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = Scheduler(16384, 8)
    header = list(range(100, 130))
    for number in range(4):
        scheduler.add(row(number, [*header, 500 + number, 600 + number]))
    first = scheduler.plan()
    assert [(r.request.request_id[1], count) for r, count in first.chunks] == [(0, 32)]
    compute(scheduler, first)
    second = scheduler.plan()
    assert [(r.request.request_id[1], count) for r, count in second.chunks] == [(1, 2), (2, 2), (3, 2)]
    assert [copy.length for copy in second.copies] == [30, 30, 30]
    assert (scheduler.prefix_hits, scheduler.prefix_tokens) == (3, 90)


def test_a_finished_row_is_kept_for_the_next_turn_until_its_memory_is_needed() -> None:
    scheduler = Scheduler(256, 4)
    scheduler.add(row(1, 20, tokens=2))
    compute(scheduler, scheduler.plan())
    compute(scheduler, scheduler.plan())
    assert scheduler.kept == 1
    scheduler.add(row(2, [*[1001] * 20, 7, 5, 5], tokens=2))
    plan = scheduler.plan()
    assert [copy.length for copy in plan.copies] == [21]
    compute(scheduler, plan)
    scheduler.remove((1, 2))
    scheduler.add(row(3, 200, tokens=30))
    scheduler.plan()
    assert (1, 3) in scheduler.running
    assert scheduler.kept == 0


def test_an_interactive_request_takes_the_youngest_batch_rows_place() -> None:
    scheduler = Scheduler(4096, 2)
    scheduler.add(row(1, 9))
    scheduler.add(row(2, 9))
    compute(scheduler, scheduler.plan())
    scheduler.add(row(3, 9, priority=INTERACTIVE))
    plan = scheduler.plan()
    assert set(scheduler.running) == {(1, 1), (1, 3)}
    assert [r.request.request_id[1] for r in plan.decodes] == [1]
    compute(scheduler, plan)
    scheduler.remove((1, 3))
    plan = scheduler.plan()
    assert set(scheduler.running) == {(1, 1), (1, 2)}
    assert scheduler.preemptions == 1
    resumed = scheduler.running[1, 2]
    assert resumed.generated == 1
    assert resumed.reused == 9  # its own keys were kept


def test_an_interactive_request_takes_memory_from_the_youngest_batch_rows_and_from_nobody_else() -> None:
    scheduler = Scheduler(256, 8, reuse=False)
    scheduler.add(row(1, 20, tokens=30, priority=INTERACTIVE))
    for number in (2, 3, 4):
        scheduler.add(row(number, 20, tokens=30))
    compute(scheduler, scheduler.plan())
    scheduler.add(row(5, 20))
    compute(scheduler, scheduler.plan())
    assert set(scheduler.running) == {(1, 1), (1, 2), (1, 3), (1, 4)}  # a batch request waits
    scheduler.add(row(6, 90, priority=INTERACTIVE))
    compute(scheduler, scheduler.plan())
    assert set(scheduler.running) == {(1, 1), (1, 2), (1, 6)}
    assert scheduler.preemptions == 2
    scheduler.add(row(7, 200, priority=INTERACTIVE))
    compute(scheduler, scheduler.plan())
    assert {(1, 1), (1, 6)} <= set(scheduler.running)  # an interactive request waits for its like
    assert (1, 7) not in scheduler.running
    for number in (1, 6):
        scheduler.remove((1, number))
    compute(scheduler, scheduler.plan())
    assert set(scheduler.running) == {(1, 7)}


def test_interactive_requests_are_admitted_first() -> None:
    scheduler = Scheduler(4096, 1)
    scheduler.add(row(1, 5))
    scheduler.add(row(2, 5, priority=INTERACTIVE))
    scheduler.plan()
    assert set(scheduler.running) == {(1, 2)}


def test_rows_outgrow_their_regions_and_make_room_for_the_older_when_memory_ends() -> None:
    scheduler = Scheduler(256, 4, reuse=False)
    for number in range(4):
        scheduler.add(row(number, 20, tokens=150))
    most, ended = 0, 0
    for _ in range(2000):
        plan = scheduler.plan()
        if not plan.decodes and not plan.chunks:
            break
        regions = sorted((r.region.offset, r.region.capacity) for r in scheduler.running.values() if r.region)
        assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(regions))
        for r in (*plan.decodes, *(r for r, _ in plan.chunks)):
            assert r.region is not None
            assert len(r.tokens) <= r.region.capacity
        most = max(most, len(scheduler.running))
        before = len(scheduler.running)
        compute(scheduler, plan)
        ended += before - len(scheduler.running)
    assert (most, ended, scheduler.queued) == (4, 4, 0)
    assert scheduler.preemptions > 0
    assert scheduler.used_tokens == 0


# ---- steps that run out of memory ---------------------------------------------------------------------------------


def running(scheduler: Scheduler) -> list[int]:
    return [number for _, number in scheduler.running]


def test_the_youngest_are_put_back_when_a_step_ran_out_of_memory_and_those_of_a_batch_first() -> None:
    scheduler = Scheduler(4096, 8)
    for number, priority in enumerate((BATCH, INTERACTIVE, BATCH, INTERACTIVE, BATCH)):
        scheduler.add(row(number, 20, priority=priority))
    compute(scheduler, scheduler.plan())
    assert scheduler.shed(scheduler.plan(), copied=True) is None
    assert running(scheduler) == [1, 3]
    assert (scheduler.budget.rows, scheduler.queued) == (2, 3)
    compute(scheduler, scheduler.plan())
    assert running(scheduler) == [1, 3]
    for number in (1, 3):
        scheduler.remove((1, number))
    scheduler.plan()
    assert running(scheduler) == [0, 2]  # they come back in the order in which they came first


def test_a_step_of_one_row_is_made_smaller_until_that_row_must_go() -> None:
    scheduler = Scheduler(4096, 8)
    scheduler.add(row(1, 500))
    scheduler.add(row(2, 500))
    sizes = []
    while (found := scheduler.shed(plan := scheduler.plan(), copied=True)) is None:
        sizes.append(plan.tokens)
    assert sizes == [512, 256, 128, 64, 32, 16, 16]
    assert (found.request.request_id, scheduler.used_tokens) == ((1, 1), 0)
    assert compute(scheduler, scheduler.plan()) == []
    assert running(scheduler) == [2]


def test_after_copies_that_ran_out_of_memory_all_rows_begin_anew() -> None:
    scheduler = Scheduler(4096, 8)
    for number in range(4):
        scheduler.add(row(number, 60, tokens=200))
    for _ in range(40):
        compute(scheduler, scheduler.plan())
    scheduler.remove((1, 0))
    plan = scheduler.plan()
    assert (scheduler.kept, scheduler.shed(plan, copied=False)) == (1, None)
    assert (running(scheduler), scheduler.kept, scheduler.used_tokens) == ([], 0, 0)
    again = scheduler.plan()
    assert again.copies == []
    assert [(r.request.request_id[1], count) for r, count in again.chunks] == [(1, 100)]
    assert scheduler.budget.rows == 1


@pytest.mark.parametrize("reuse", [True, False])
def test_random_traffic_ends_and_leaks_nothing(reuse: bool) -> None:
    dice = random.Random(5)
    scheduler = Scheduler(1024, 5, reuse=reuse)
    rows = [
        row(n, [dice.randint(1, 2) for _ in range(dice.randint(1, 300))], dice.randint(1, 200), dice.randint(0, 1))
        for n in range(60)
    ]
    waiting, steps = list(rows), 0
    while waiting or scheduler.running or scheduler.queued:
        if waiting and dice.random() < 0.3:
            scheduler.add(waiting.pop())
        if scheduler.running and dice.random() < 0.01:
            scheduler.remove(dice.choice(list(scheduler.running)))
        plan = scheduler.plan()
        if plan.tokens and dice.random() < 0.02:
            scheduler.shed(plan, copied=dice.random() < 0.7)
        else:
            compute(scheduler, plan, token=dice.randint(1, 2))
        steps += 1
        assert steps < 20_000
    scheduler.clear()
    assert scheduler.used_tokens == 0
