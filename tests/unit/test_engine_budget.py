"""How many rows and tokens a step may have, after shortages of memory."""

from __future__ import annotations

from samplerpool.engine.budget import FIRST_PATIENCE, MAX_PATIENCE, MIN_STEP_TOKENS, StepBudget


def now(budget: StepBudget) -> tuple[int, int]:
    return budget.rows, budget.tokens


def quiet_steps_until_a_rise(budget: StepBudget) -> int:
    before, steps = now(budget), 0
    while now(budget) == before:
        budget.quiet()
        steps += 1
    return steps


def test_a_shortage_halves_what_the_step_had_and_not_what_it_might_have_had() -> None:
    budget = StepBudget(128, 512)
    assert budget.lower(20, 300)
    assert (now(budget), budget.lowered, budget.shortages) == ((10, 150), True, 1)
    assert budget.lower(10, 10)
    assert now(budget) == (5, MIN_STEP_TOKENS)


def test_without_prefill_in_the_step_only_rows_are_taken_away() -> None:
    budget = StepBudget(128, 512)
    assert budget.lower(20, 0)
    assert now(budget) == (10, 512)


def test_the_smallest_step_cannot_be_made_smaller() -> None:
    budget = StepBudget(128, 512)
    while now(budget) != (1, MIN_STEP_TOKENS):
        assert budget.lower(budget.rows, budget.tokens)
    assert budget.shortages == 7
    assert [budget.lower(1, 1) for _ in range(4)] == [True, True, False, True]
    assert now(budget) == (1, MIN_STEP_TOKENS)


def test_between_the_last_tries_a_step_that_goes_well_counts() -> None:
    budget = StepBudget(1, MIN_STEP_TOKENS)
    for _ in range(5):
        assert budget.lower(1, 0)
        assert budget.lower(1, 0)
        budget.quiet()


def test_in_quiet_the_budget_doubles_until_it_is_what_it_was() -> None:
    budget = StepBudget(8, 100)
    budget.quiet()
    budget.lower(8, 64)
    assert now(budget) == (4, 32)
    assert quiet_steps_until_a_rise(budget) == FIRST_PATIENCE
    assert now(budget) == (8, 64)
    assert quiet_steps_until_a_rise(budget) == FIRST_PATIENCE
    assert (now(budget), budget.lowered) == ((8, 100), False)


def test_a_rise_that_came_too_early_is_tried_ever_later() -> None:
    budget = StepBudget(8, 512)
    waits = []
    for _ in range(9):
        budget.lower(8, 512)
        waits.append(quiet_steps_until_a_rise(budget))
    assert waits == [min(FIRST_PATIENCE << i, MAX_PATIENCE) for i in range(9)]


def test_shortages_one_after_the_other_count_as_one_rise_that_came_too_early() -> None:
    budget = StepBudget(8, 512)
    for rows in (8, 4, 2):
        budget.lower(rows, 512)
    assert quiet_steps_until_a_rise(budget) == FIRST_PATIENCE
