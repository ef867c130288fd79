"""How work is shared out, and where seeds come from."""

from hypothesis import given
from hypothesis import strategies as st

from samplerpool.batch.plan import Window, hand_out, window_for
from samplerpool.data.answers import row_seed


def test_a_window_is_just_larger_than_the_batch():
    assert window_for(64) == Window(size=80, refill_at=72)
    assert window_for(1) == Window(size=3, refill_at=2)
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
