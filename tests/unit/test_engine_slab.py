"""The padded engine's pure part: who has which place in the slab, and that all tokens are where they should be."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.config.sampling import resolve, sampling_params
from samplerpool.engine.arena import MIN_CAPACITY, Region
from samplerpool.engine.base import BATCH, INTERACTIVE, EngineRequest
from samplerpool.engine.schedule import MAX_KEPT, Copy, Plan, Row
from samplerpool.engine.slab import SlabScheduler, Swap, passes, whole_place

HEADS = 2


def row(number: int, prompt: list[int] | int, tokens: int = 10, priority: int = BATCH, longest: int = 10_000) -> Row:
    ids = [1000 + number] * prompt if isinstance(prompt, int) else prompt
    params = resolve(sampling_params({"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True}))
    return Row(EngineRequest((1, number), tuple(ids), params, priority), frozenset(), longest)


class Memory:
    """Holds a token where an engine holds its keys and values: of each head, in a region one head after the other."""

    def __init__(self, scheduler: SlabScheduler) -> None:
        self.scheduler = scheduler
        self.cells = [0] * (scheduler.total_tokens * HEADS)

    def cells_of(self, region: Region, length: int) -> list[int]:
        assert 0 <= region.offset <= region.offset + region.capacity <= self.scheduler.total_tokens
        assert length <= region.capacity
        starts = [region.offset * HEADS + head * region.capacity for head in range(HEADS)]
        return [start + i for start in starts for i in range(length)]

    def read(self, region: Region, length: int) -> list[int]:
        return [self.cells[at] for at in self.cells_of(region, length)]

    def write(self, region: Region, length: int, values: list[int]) -> None:
        for at, value in zip(self.cells_of(region, length), values, strict=True):
            self.cells[at] = value

    def put(self, r: Row, start: int, end: int) -> None:
        """Compute these tokens of a row."""
        assert r.region is not None
        assert end <= r.region.capacity
        for head in range(HEADS):
            first = r.region.offset * HEADS + head * r.region.capacity
            self.cells[first + start : first + end] = r.tokens[start:end]

    def carry_out(self, copies: list[Copy]) -> None:
        for copy in copies:
            values, there = self.read(copy.source, copy.length), self.read(copy.target, copy.length)
            self.write(copy.target, copy.length, values)
            if isinstance(copy, Swap):
                assert copy.source.capacity == copy.target.capacity
                self.write(copy.source, copy.length, there)

    def compute(self, plan: Plan, token: int = 7) -> list[int]:
        """Do what the engine does with a plan; the numbers of the rows that gained a token."""
        if not plan.decodes and not plan.chunks:
            return []
        self.carry_out(plan.copies)
        self.check()
        if plan.decodes:  # all rows up to the last of them are computed, also those in prefill
            for r in self.scheduler.rows[: self.scheduler.place_of(plan.decodes[-1]) + 1]:
                self.put(r, r.computed, r.computed + 1)
        for r, count in plan.chunks:
            self.put(r, r.computed, r.computed + count)
        gained = list(plan.decodes) + [r for r, count in plan.chunks if count == r.pending]
        self.scheduler.done(plan)
        for r in gained:
            r.tokens.append(token)
            if r.finish_reason():
                self.scheduler.remove(r.request.request_id)
        return [r.request.request_id[1] for r in gained]

    def check(self) -> None:
        """Every row and every kept prefix has its place, and finds its own tokens there."""
        scheduler = self.scheduler
        assert sorted(scheduler.running) == sorted(r.request.request_id for r in scheduler.rows)
        kept = scheduler._kept_at
        assert scheduler.kept == len(kept)
        assert all(len(scheduler.rows) <= place < scheduler.places for place in kept)
        assert len(scheduler.rows) <= scheduler.places
        for place, r in enumerate(scheduler.rows):
            assert r.region == scheduler.region(place)
            assert r.limit <= scheduler.capacity
            assert r.prefix is not None
            assert (r.prefix.region, r.prefix.computed) == (r.region, r.computed)
            assert self.read(r.region, r.computed) == r.tokens[: r.computed] * HEADS
        for place, prefix in kept.items():
            assert prefix.region == scheduler.region(place)
            assert self.read(prefix.region, prefix.computed) == list(prefix.tokens[: prefix.computed]) * HEADS


def step(memory: Memory, token: int = 7) -> list[int]:
    return memory.compute(memory.scheduler.plan(), token)


def numbers(scheduler: SlabScheduler) -> list[int]:
    """Of the running rows, in the order of their places."""
    return [r.request.request_id[1] for r in scheduler.rows]


def filled(scheduler: SlabScheduler, *rows: Row) -> Memory:
    """A memory with these rows, computed."""
    memory = Memory(scheduler)
    for r in rows:
        scheduler.add(r)
    step(memory)
    return memory


# ---- places -------------------------------------------------------------------------------------------------------


def test_with_enough_memory_a_place_holds_the_longest_row() -> None:
    scheduler = SlabScheduler(20 * 1000, 8, 1000)
    assert (whole_place(1000), scheduler.longest_row, scheduler.capacity, scheduler.places) == (1024, 1024, 1024, 19)


def test_with_less_the_places_are_smaller_and_no_row_is_longer_than_the_slab() -> None:
    scheduler = SlabScheduler(2048, 8, 1000)
    assert (scheduler.longest_row, scheduler.capacity, scheduler.places) == (1024, 256, 8)
    tiny = SlabScheduler(5 * MIN_CAPACITY + 3, 8, 1000)
    assert (tiny.longest_row, tiny.capacity, tiny.places) == (5 * MIN_CAPACITY, MIN_CAPACITY, 5)


def test_the_last_row_follows_one_that_leaves_whose_prefix_is_kept_behind() -> None:
    scheduler = SlabScheduler(8 * 64, 4, 64)
    memory = filled(scheduler, *(row(number, 10 + number) for number in range(4)))
    scheduler.remove((1, 1))
    assert numbers(scheduler) == [0, 3, 2]
    plan = scheduler.plan()
    assert plan.copies == [Swap(scheduler.region(3), scheduler.region(1), 13)]
    assert [r.request.request_id[1] for r in plan.decodes] == [0, 3, 2]
    memory.compute(plan)
    assert {place: prefix.tokens for place, prefix in scheduler._kept_at.items()} == {3: [1001] * 11}
    scheduler.remove((1, 2))
    assert scheduler.plan().copies == []


def test_without_reuse_nothing_is_kept() -> None:
    scheduler = SlabScheduler(8 * 64, 4, 64, reuse=False)
    filled(scheduler, *(row(number, 10) for number in range(3)))
    scheduler.remove((1, 0))
    assert scheduler.plan().copies == [Copy(scheduler.region(2), scheduler.region(0), 10)]
    assert (scheduler.kept, scheduler.used_tokens) == (0, 128)


def test_a_kept_prefix_makes_way_for_a_row_and_the_oldest_is_dropped_for_it() -> None:
    scheduler = SlabScheduler(3 * 64, 2, 64)
    memory = filled(scheduler, row(0, 10), row(1, 11))
    scheduler.remove((1, 0))  # is kept at place 1, which the next row gets
    scheduler.add(row(2, 12))
    plan = scheduler.plan()
    assert plan.copies == [
        Swap(scheduler.region(1), scheduler.region(0), 11),
        Copy(scheduler.region(1), scheduler.region(2), 10),
    ]
    memory.compute(plan)
    scheduler.remove((1, 2))
    scheduler.add(row(3, 13))
    step(memory)
    assert {place: prefix.tokens for place, prefix in scheduler._kept_at.items()} == {2: [1002] * 12}


def test_a_prefix_without_another_place_is_used_where_it_is() -> None:
    scheduler = SlabScheduler(64, 1, 64)
    memory = filled(scheduler, row(0, [5] * 20))
    step(memory)
    scheduler.remove((1, 0))
    scheduler.add(row(1, [5] * 18 + [6, 6]))
    plan = scheduler.plan()
    assert plan.copies == [Copy(Region(0, 64), Region(0, 64), 18)]
    assert scheduler.kept == 0
    assert memory.compute(plan) == [1]


def test_copies_are_kept_for_a_step_that_computes_something() -> None:
    scheduler = SlabScheduler(8 * 64, 4, 64)
    memory = filled(scheduler, row(0, [5] * 20), row(1, [6] * 20))
    scheduler.remove((1, 0))
    scheduler.remove((1, 1))
    idle = scheduler.plan()
    assert (idle.decodes, idle.chunks) == ([], [])  # an engine goes no further
    scheduler.add(row(2, [5] * 21))
    plan = scheduler.plan()
    assert isinstance(plan.copies[0], Swap)
    assert plan.chunks == []
    memory.compute(plan)
    assert scheduler.prefix_tokens == 20


# ---- the size of places -------------------------------------------------------------------------------------------


def test_places_grow_for_a_long_row_and_shrink_when_more_rows_want_in() -> None:
    scheduler = SlabScheduler(512, 8, 512)
    memory = filled(scheduler, row(0, 20, tokens=30), row(1, 20, tokens=30))
    assert scheduler.capacity == 64
    scheduler.add(row(2, 100, tokens=50))
    step(memory)
    assert (scheduler.capacity, numbers(scheduler)) == (64, [0, 1])  # it has to wait for one of them to end
    scheduler.remove((1, 0))
    step(memory)
    assert (scheduler.capacity, numbers(scheduler)) == (256, [1, 2])
    for number in range(3, 7):
        scheduler.add(row(number, 20, tokens=30))
    step(memory)
    assert (scheduler.capacity, numbers(scheduler)) == (256, [1, 2])
    scheduler.remove((1, 2))
    step(memory)
    assert (scheduler.capacity, numbers(scheduler)) == (64, [1, 3, 4, 5, 6])


def test_an_interactive_row_that_needs_larger_places_has_batch_rows_put_back() -> None:
    scheduler = SlabScheduler(512, 8, 512)
    memory = filled(scheduler, *(row(number, 20, tokens=30) for number in range(8)))
    assert len(scheduler.rows) == 8
    scheduler.add(row(9, 100, tokens=100, priority=INTERACTIVE))
    step(memory)
    assert (scheduler.capacity, numbers(scheduler)) == (256, [0, 9])
    assert (scheduler.preemptions, scheduler.queued) == (7, 7)


def test_a_prefix_that_is_to_be_copied_survives_the_growth_of_places() -> None:
    scheduler = SlabScheduler(1024, 4, 512)
    memory = filled(scheduler, row(0, [5] * 200, tokens=50), row(1, 20), row(2, 20))
    assert scheduler.capacity == 256
    scheduler.remove((1, 0))
    scheduler.remove((1, 2))
    assert scheduler.kept == 2
    scheduler.add(row(3, [5] * 300, tokens=50))
    plan = scheduler.plan()
    assert (scheduler.capacity, scheduler.prefix_tokens, plan.chunks[0][1]) == (512, 200, 100)
    assert scheduler.kept == 0
    memory.compute(plan)


def test_no_more_prefixes_are_kept_than_is_good() -> None:
    scheduler = SlabScheduler(200 * 64, 100, 64, step_tokens=1000)
    filled(scheduler, *(row(number, 10) for number in range(100)))
    for number in range(100):
        scheduler.remove((1, number))
    scheduler.plan()
    assert scheduler.kept == MAX_KEPT


# ---- passes -------------------------------------------------------------------------------------------------------


def test_a_long_row_is_decoded_apart_where_that_is_worth_a_pass() -> None:
    assert passes([100] * 8, 50) == [(0, 8)]
    assert passes([100] * 4 + [900] + [100] * 3, 700) == [(0, 4), (4, 5), (5, 8)]
    assert passes([100] * 4 + [900] + [100] * 3, 3000) == [(0, 4), (4, 8)]
    assert passes([100] * 4 + [900] + [100] * 3, 6000) == [(0, 8)]
    assert passes([7], 0) == [(0, 1)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(0, 60))
@settings(deadline=None)
def test_the_cuts_are_the_cheapest(lengths: list[int], price: int) -> None:
    def cost(cuts: list[tuple[int, int]]) -> int:
        return sum(price + (end - first) * max(lengths[first:end]) for first, end in cuts)

    inner = range(1, len(lengths))
    ways = (cut for count in range(len(lengths)) for cut in itertools.combinations(inner, count))
    least = min(cost(list(itertools.pairwise((0, *cut, len(lengths))))) for cut in ways)
    assert cost(passes(lengths, price)) == least


# ---- anything that may happen -------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_every_row_finds_its_own_tokens(seed: int) -> None:
    dice = random.Random(seed)
    pieces, max_batch, longest = dice.randint(1, 40), dice.randint(1, 6), dice.choice((64, 100, 200, 512))
    reuse, step_tokens = dice.random() < 0.8, dice.choice((3, 20, 512))
    scheduler = SlabScheduler(pieces * MIN_CAPACITY, max_batch, longest, reuse=reuse, step_tokens=step_tokens)
    memory = Memory(scheduler)
    earlier: list[Row] = []
    for _ in range(60):
        for _ in range(dice.choice((0, 0, 1, 3))):
            earlier.append(_random_row(dice, earlier, scheduler.longest_row))
            scheduler.add(earlier[-1])
        if scheduler.running and dice.random() < 0.15:
            scheduler.remove(dice.choice(list(scheduler.running)))
        if dice.random() < 0.1:
            run_out_of_memory(memory, dice)
        step(memory, token=dice.randint(1, 2))
    steps = 0
    while scheduler.running or scheduler.queued:
        few = step_tokens < 512 or scheduler.budget.lowered  # before the step, which may raise the budget again
        assert step(memory, token=dice.randint(1, 2)) or few or scheduler.budget.lowered
        steps += 1
        assert steps < 100_000
    scheduler.clear()
    assert scheduler.used_tokens == 0


def run_out_of_memory(memory: Memory, dice: random.Random) -> None:
    """A step whose copies are done in part or whose tokens are written in part, and count for nothing."""
    scheduler = memory.scheduler
    plan = scheduler.plan()
    if not plan.tokens:
        return
    copied = dice.random() < 0.6
    memory.carry_out(plan.copies if copied else plan.copies[: dice.randint(0, len(plan.copies))])
    for r in (*plan.decodes, *(r for r, _ in plan.chunks)) if copied else ():
        assert r.region is not None
        first = r.region.offset * HEADS
        memory.cells[first + r.computed] = -1
    scheduler.shed(plan, copied=copied)
    if not scheduler._copies:  # else it holds once they are carried out, which the next step checks
        memory.check()


def _random_row(dice: random.Random, earlier: list[Row], longest: int) -> Row:
    """Many go on from an earlier one, and many are short."""
    prompt = list(dice.choice(earlier).tokens) if earlier and dice.random() < 0.6 else []
    length = dice.choice((dice.randint(1, 12), dice.randint(1, longest - 1)))
    prompt = [*prompt, *(dice.randint(1, 2) for _ in range(length))][: longest - 1]
    tokens = dice.choice((1, 5, dice.randint(1, longest)))
    return row(len(earlier), prompt, tokens, dice.choice((BATCH, BATCH, INTERACTIVE)), longest)
