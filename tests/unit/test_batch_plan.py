"""How work is shared out and taken over, in which order it waits, and where seeds come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.events import Job, Slot
from samplerpool.batch.plan import Asked, Expected, Speed, Window, hand_out, take_over, window_for
from samplerpool.batch.waiting import Waiting
from samplerpool.data.answers import row_seed
from samplerpool.data.rows import Row


def test_a_window_is_just_larger_than_the_batch():
    assert window_for(64) == Window(batch=64, size=80, refill_at=72)
    assert window_for(1) == Window(batch=1, size=3, refill_at=2)
    for max_batch in range(1, 200):
        window = window_for(max_batch)
        assert max_batch < window.refill_at < window.size <= 1.25 * max_batch + 2


def test_few_rows_are_spread_over_all_workers():
    windows = {0: window_for(64), 1: window_for(64)}
    assert hand_out(32, {0: 0, 1: 0}, windows) == {0: 16, 1: 16}
    assert hand_out(3, {0: 0, 1: 0}, windows) == {0: 2, 1: 1}
    assert hand_out(1, {0: 1, 1: 0}, windows) == {1: 1}


def test_the_emptiest_is_served_first():
    windows = {0: window_for(8), 1: window_for(8), 2: window_for(8)}
    assert hand_out(6, {0: 5, 1: 0, 2: 2}, windows) == {1: 4, 2: 2}
    assert hand_out(2, {0: 5, 1: 0, 2: 2}, windows) == {1: 2}


def test_with_plenty_each_window_is_filled_once_it_is_low():
    windows = {0: window_for(64), 1: window_for(64)}
    assert hand_out(1000, {0: 0, 1: 0}, windows) == {0: 80, 1: 80}
    assert hand_out(1000, {0: 73, 1: 72}, windows) == {1: 8}
    assert hand_out(1000, {0: 73, 1: 80}, windows) == {}
    assert hand_out(1000, {}, {}) == {}


@given(
    available=st.integers(1, 300),
    workers=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_shares_fit_and_nothing_is_held_back(available, workers):
    windows = {i: window_for(batch) for i, (batch, _) in enumerate(workers)}
    outstanding = {i: min(held, windows[i].size) for i, (_, held) in enumerate(workers)}
    shares = hand_out(available, outstanding, windows)
    takers = {i for i in windows if outstanding[i] <= windows[i].refill_at}
    room = {i: windows[i].size - outstanding[i] for i in takers}
    assert all(0 < share <= room[i] for i, share in shares.items())
    assert sum(shares.values()) == min(available, sum(room.values()))
    levels = {i: outstanding[i] + shares.get(i, 0) for i in takers}
    for i in shares:  # nobody got work that somebody emptier had room for
        assert all(levels[i] <= levels[j] + 1 for j in takers if levels[j] < windows[j].size)


def test_seeds_are_fixed_and_differ_by_run_row_and_sample():
    assert row_seed(1, 0, 0) == 142317841524560
    seeds = {row_seed(run, row, sample) for run in range(5) for row in range(200) for sample in range(5)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert row_seed(1, 23, 4) != row_seed(12, 3, 4)


# ---- taking over ---------------------------------------------------------------------------------------------------


def measured(*paces_s, tokens=10):
    speed = Speed()
    for worker, pace_s in enumerate(paces_s):
        speed.note(worker, pace_s * tokens, tokens)
    return speed


def test_pace_follows_what_was_seen_last():
    speed = Speed()
    assert speed.pace_s(0) is None
    speed.note(0, 5.0, 100)
    assert speed.pace_s(0) == pytest.approx(0.05)
    for _ in range(300):
        speed.note(0, 20.0, 100)
    assert speed.pace_s(0) == pytest.approx(0.2, rel=0.01)
    assert speed.pace_s(1) is None


def test_what_is_expected_of_a_request():
    speed = measured(1.0)  # a token a second, ten tokens usually

    def expected(*held, batch=8):
        return [(one.left_s, one.tokens) for one in speed.expect(0, held, batch, now_s=100.0)]

    assert expected(Asked(100.0)) == [(10, 10)]
    assert expected(Asked(94.0)) == [(6, 12)]  # longer than usual already, or half done
    assert expected(Asked(60.0)) == [(40, 80)]
    assert expected(Asked(60.0, most=50)) == [(10, 50)]
    assert expected(Asked(60.0, most=30)) == [(1, 41)]  # it must end any moment
    assert expected(Asked(90.0, tokens=25)) == [(15, 25)]
    assert expected(Asked(90.0, tokens=3)) == [(1, 11)]  # the column was wrong
    assert expected(Asked(100.0), Asked(100.0), Asked(100.0), batch=1) == [(10, 10), (20, 10), (30, 10)]
    assert Speed().expect(0, [Asked(0.0)], 8, now_s=1.0) == []


def test_what_comes_last_is_taken_over_by_the_fastest_that_has_room():
    speed = measured(1.0, 0.1, 0.2)
    held = [Expected(place, 0, left_s, 20) for place, left_s in enumerate((3.0, 30.0, 20.0, 10.0))]
    assert take_over(held, {1: 1, 2: 9}, speed) == [(held[1], 1), (held[2], 2), (held[3], 2)]
    assert take_over(held, {0: 9}, speed) == []  # not by who has it
    assert take_over(held, {3: 9}, speed) == []  # nothing is known of that one
    assert take_over([Expected(0, 1, 2.2, 20)], {2: 1}, speed) == []  # it would not be sooner


def job(index, tokens=None):
    return Job(Slot(Row(index, expected_tokens=tokens)), 0, 0)


def test_returned_rows_wait_least_then_long_ones_then_the_others_in_order():
    waiting = Waiting()
    waiting.add([job(0), job(1, 5), job(2, 50), job(3), job(4, 5)])
    waiting.put_back([job(9), job(10)])
    assert waiting.lengths_known
    assert [one.row.index for one in waiting.take(6)] == [9, 10, 2, 1, 4, 0]
    assert len(waiting) == 1
    assert not waiting.lengths_known
    waiting.clear()
    assert not waiting
