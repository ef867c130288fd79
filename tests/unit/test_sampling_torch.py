"""The sampling maths: counter-based noise, filters, and the distribution that comes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from samplerpool.config.sampling import MAX_SEED, resolve, sampling_params
from samplerpool.engine.gumbel import _mix, _mix_int, _signed, gumbel_noise, row_key
from samplerpool.engine.paged_processors import RequestSettings, _decode, _encode
from samplerpool.engine.sampling import BLOCK, CANDIDATES, SamplingRows, argmax, draw, draw_grouped, log_total

VOCABULARY = 3000


def rows_of(count: int, *, first_position: int = 0, **values: Any) -> SamplingRows:
    """The same parameters for successive positions."""
    params = resolve(sampling_params({"seed": 11, "temperature": 1.0, **values}))
    return SamplingRows.of([params] * count, range(first_position, first_position + count))


def logits_of(rows: int, vocabulary: int = VOCABULARY, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def kept_by_transformers(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float = 1.0
) -> Any:
    """Which tokens the library's own warpers leave, in its order."""
    scores, ids = logits / temperature, torch.zeros(len(logits), 1, dtype=torch.long)
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    if typical_p < 1:
        scores = TypicalLogitsWarper(typical_p)(ids, scores)
    return scores


# ---- noise ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1))
def test_tensors_and_integers_mix_alike(value: int) -> None:
    assert _mix(torch.tensor([_signed(value)])).item() == _signed(_mix_int(value))


def test_the_hash_is_splitmix64() -> None:
    """The published first outputs for state 1234567, so that the noise never changes unnoticed."""
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in (1, 2, 3)]
    assert [_mix_int(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_depends_on_key_and_counter_only() -> None:
    keys = torch.tensor([row_key(seed, 3) for seed in range(50)])
    counters = torch.arange(200)
    together = gumbel_noise(keys.unsqueeze(-1), counters)
    assert torch.equal(together[7, 20:30], gumbel_noise(keys[7], counters[20:30]))
    assert together.unique().numel() > 0.999 * together.numel()


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(torch.tensor(row_key(1, 2)), torch.arange(400_000)).double()
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.577216, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    ordered = noise.sort().values
    empirical = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert (empirical - torch.exp(-torch.exp(-ordered))).abs().max() < 0.003  # Kolmogorov-Smirnov, p about 0.001


def test_keys_of_seeds_and_positions_differ() -> None:
    keys = {row_key(seed, position) for seed in (0, 1, 2, MAX_SEED) for position in range(1000)}
    assert len(keys) == 4000
    assert all(-(2**63) <= key < 2**63 for key in keys)


# ---- filters -------------------------------------------------------------------------------------------------------

FILTERS = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2000},
    {"top_k": 10**6},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 60, "top_p": 0.8, "min_p": 0.02},
    {"top_k": 1500, "top_p": 0.9},
]
TYPICAL = [
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"typical_p": 0.9, "top_k": 50},
    {"typical_p": 0.5, "top_k": 500, "top_p": 0.9, "min_p": 0.01},
]
"""With the filter that is not for a device."""


@pytest.mark.parametrize("values", [*FILTERS, *TYPICAL], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_only_tokens_that_pass_the_filters_are_drawn(values: dict[str, Any], temperature: float) -> None:
    logits = logits_of(1).expand(400, -1)
    tokens = draw_grouped(logits, rows_of(400, temperature=temperature, **values))
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **values}
    kept = kept_by_transformers(logits[:1], temperature, **full)[0].isfinite()
    assert kept[tokens].all()
    if kept.sum() > 1:
        assert tokens.unique().numel() > 1


@pytest.mark.parametrize("values", [{}, *FILTERS], ids=str)
def test_both_ways_of_drawing_agree(values: dict[str, Any]) -> None:
    logits, rows = logits_of(60), rows_of(60, **values)
    assert torch.equal(draw(logits, rows), draw_grouped(logits, rows))


def test_a_flat_distribution_does_not_fit_the_candidates_and_is_still_drawn_whole() -> None:
    logits = logits_of(40, 2 * CANDIDATES[-1], scale=0.01)
    for values in ({"top_p": 0.9}, {"typical_p": 0.9}):
        tokens = draw_grouped(logits, rows_of(40, **values))
        rank = (logits > logits.take_along_dim(tokens.unsqueeze(-1), -1)).sum(-1)
        assert rank.max() > CANDIDATES[-1]


@pytest.mark.parametrize("values", [{"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 70}, {"typical_p": 0.9}], ids=str)
def test_few_candidates_and_all_of_them_give_the_same_tokens(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from peaked to flat, so that each number of candidates is enough for some."""
    scale = torch.linspace(0.1, 12, 80).unsqueeze(-1)
    logits, rows = logits_of(80, 20_000, scale=1.0) * scale, rows_of(80, **values)
    from_few = draw_grouped(logits, rows)
    monkeypatch.setattr("samplerpool.engine.sampling.CANDIDATES", (20_000,))
    assert torch.equal(draw_grouped(logits, rows), from_few)


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, 3 * BLOCK, 3 * BLOCK + 7])
def test_argmax_is_that_of_torch(vocabulary: int) -> None:
    logits = logits_of(40, vocabulary).round()  # with ties
    assert torch.equal(argmax(logits), logits.argmax(-1))
    assert torch.equal(argmax(logits[::2]), logits[::2].argmax(-1))


def test_the_logarithm_of_all_mass() -> None:
    logits = logits_of(20, 5 * BLOCK + 3, scale=30.0) + 1000
    assert torch.allclose(log_total(logits), logits.logsumexp(-1))


def test_ties_with_the_last_kept_token_are_kept() -> None:
    logits = torch.full((300, 8), -5.0)
    logits[:, 2:6] = 1.0
    tokens = draw_grouped(logits, rows_of(300, top_k=2))
    assert set(tokens.tolist()) == {2, 3, 4, 5}


# ---- draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.8},
        {"top_k": 12},
        {"top_p": 0.7},
        {"min_p": 0.15, "temperature": 1.5},
        {"typical_p": 0.6},
    ],
    ids=str,
)
def test_draws_follow_the_filtered_softmax(values: dict[str, Any]) -> None:
    """Chi-squared over the tokens; the noise is fixed, so the outcome is as well."""
    count, vocabulary = 12_000, 300
    logits = logits_of(1, vocabulary)
    rows = rows_of(count, **values)
    tokens = torch.cat(
        [draw_grouped(logits.expand(4000, -1), rows.select(part)) for part in torch.arange(count).split(4000)]
    )
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **values}
    expected = kept_by_transformers(logits, **full)[0].softmax(-1).double() * count
    observed = tokens.bincount(minlength=vocabulary).double()
    assert observed[expected == 0].sum() == 0
    large = expected >= 5
    observed = torch.cat((observed[large], observed[~large].sum().view(1)))
    expected = torch.cat((expected[large], expected[~large].sum().view(1)))
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_squared = ((observed - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5


def test_draws_at_successive_positions_are_independent() -> None:
    """Of a fair coin: how often it repeats."""
    tokens = draw_grouped(torch.zeros(10_000, 2), rows_of(10_000))
    assert (tokens[1:] == tokens[:-1]).double().mean().item() == pytest.approx(0.5, abs=0.02)
    other_seed = draw_grouped(torch.zeros(10_000, 2), rows_of(10_000, seed=12))
    assert (tokens == other_seed).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_row_is_drawn_the_same_in_any_batch() -> None:
    values: list[dict[str, Any]] = [{"temperature": 0.0}, {}, *FILTERS, *TYPICAL]
    params = [resolve(sampling_params({"temperature": 1.0, "seed": i, **v})) for i, v in enumerate(values)]
    rows, logits = SamplingRows.of(params, [5] * len(params)), logits_of(len(params))
    together = draw_grouped(logits, rows)
    for i in range(len(params)):
        index = torch.tensor([i])
        assert draw_grouped(logits[index], rows.select(index)).item() == together[i]
    shuffled = torch.randperm(len(params), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_grouped(logits[shuffled], rows.select(shuffled)), together[shuffled])


def test_greedy_rows_take_the_largest_logit() -> None:
    logits = logits_of(10)
    for values in ({"temperature": 0.0}, {"do_sample": False, "temperature": 1.5}):
        for way in (draw, draw_grouped):
            assert torch.equal(way(logits, rows_of(10, **values)), logits.argmax(-1))


def test_extreme_temperatures_and_logits() -> None:
    logits = logits_of(50) * 1e30
    assert torch.equal(draw_grouped(logits, rows_of(50, temperature=1e-30, top_p=0.9)), logits.argmax(-1))
    assert torch.equal(draw_grouped(logits, rows_of(50, temperature=1e-4)), logits.argmax(-1))
    masked = torch.full((50, 700), float("-inf"))
    masked[:, 650] = 0.0
    for values in ({}, {"top_k": 5}, {"top_p": 0.5}):
        assert (draw_grouped(masked, rows_of(50, **values)) == 650).all()
        assert (draw(masked, rows_of(50, **values)) == 650).all()
    nothing = torch.full((3, 700), float("-inf"))
    for values in ({}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}, {"typical_p": 0.5}):
        assert ((draw_grouped(nothing, rows_of(3, **values)) >= 0) & (draw(nothing, rows_of(3)) < 700)).all()


def test_settings_survive_the_library_storage() -> None:
    params = [
        resolve(sampling_params(temperature=0.7, top_k=2**31 - 1, top_p=0.9, min_p=0.05, seed=MAX_SEED)),
        resolve(sampling_params(temperature=0.0, seed=0)),
    ]
    lines = torch.zeros(6, 40, dtype=torch.int32)
    lines[:, :2] = _encode([RequestSettings.of(p, 10) for p in params], [3, 2**30])
    decoded, expected = _decode(lines[:, :2]), SamplingRows.of(params, [3, 2**30])
    for name in ("temperature", "top_k", "top_p", "min_p", "key"):
        assert torch.equal(getattr(decoded, name), getattr(expected, name)), name
