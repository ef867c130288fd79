"""The row sampler: every parameter against transformers' own processors, many rows of different kinds at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from samplerpool.config.sampling import SamplingParams, resolve, sampling_params
from samplerpool.engine.logits_processors import process
from samplerpool.engine.row_sampler import LOWEST_LOGPROB, RowSampler, SamplingRow
from samplerpool.errors import UnsupportedParameter

VOCABULARY = 500
EOS = frozenset({2, 7})
PROMPT = [11, 12, 13, 11, 12, 40, 41]
GENERATED = [11, 12, 50, 50, 51, 11, 12]

PROCESSED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 4},
    {"no_repeat_ngram_size": 90},
    {"logit_bias": {3: 5.0, 11: -2.5, 499: 100}},
    {"bad_words": [[5], [12, 60], [11, 12, 61], [12, 12, 62], [2], [7, 2]]},
    {"bad_words": [[8] * 60]},
    {"min_new_tokens": 8},
    {"min_new_tokens": 7},
    {"min_new_tokens": 50, "stop_token_ids": [30, 31]},
    {
        "logit_bias": {11: 8.0, 50: -3.0},
        "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3,
        "bad_words": [[5], [12, 60]],
        "min_new_tokens": 20,
    },
]
DRAWN: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_k": 30},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"temperature": 1.4, "top_k": 200, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.8},
]


def resolved(**values: Any) -> SamplingParams:
    return resolve(sampling_params({"seed": 1, **values}))


def row_of(*, generated: int = len(GENERATED), **values: Any) -> SamplingRow:
    return SamplingRow(resolved(**values), [*PROMPT, *GENERATED[:generated]], len(PROMPT))


def logits_of(rows: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


def by_transformers(logits: torch.Tensor, row: SamplingRow) -> torch.Tensor:
    """What the library's own processors make of one row's logits, in the order in which ``generate`` applies them."""
    params = row.params
    ends = sorted(EOS) if not params.ignore_eos else []
    own = LogitsProcessorList()
    if params.logit_bias:
        own.append(SequenceBiasLogitsProcessor({(token_id,): bias for token_id, bias in params.logit_bias}))
    if params.repetition_penalty != 1:
        own.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.no_repeat_ngram_size:
        own.append(NoRepeatNGramLogitsProcessor(params.no_repeat_ngram_size))
    if params.bad_words:
        own.append(NoBadWordsLogitsProcessor([list(word) for word in params.bad_words], sorted(EOS)))
    if params.min_new_tokens:
        end_ids = [*ends, *(params.stop_token_ids or ())]
        own.append(MinNewTokensLengthLogitsProcessor(row.prompt_tokens, params.min_new_tokens, end_ids))
    if not params.greedy:
        own.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            own.append(TopKLogitsWarper(params.top_k))
        if (params.top_p or 1) < 1:
            own.append(TopPLogitsWarper(params.top_p))
        if params.min_p:
            own.append(MinPLogitsWarper(params.min_p))
        if (params.typical_p or 1) < 1:
            own.append(TypicalLogitsWarper(params.typical_p))
    return own(torch.tensor([row.tokens]), logits.unsqueeze(0))[0]


@pytest.fixture
def sampler() -> RowSampler:
    return RowSampler(VOCABULARY, EOS)


# ---- processors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", PROCESSED, ids=str)
def test_processors_are_those_of_transformers(values: dict[str, Any]) -> None:
    row, logits = row_of(**values), logits_of(1)
    expected = by_transformers(logits[0].clone(), row)
    process(logits, [row], EOS)
    torch.testing.assert_close(logits[0], expected)


def test_processors_of_many_rows_together_are_those_of_each() -> None:
    rows = [row_of(**values) for values in ({}, *PROCESSED, {"presence_penalty": 1.0})]
    logits = logits_of(len(rows))
    alone = logits.clone()
    for at, row in enumerate(rows):
        process(alone[at : at + 1], [row], EOS)
    process(logits, [row_of(**values) for values in ({}, *PROCESSED, {"presence_penalty": 1.0})], EOS)
    assert torch.equal(logits, alone)


@pytest.mark.parametrize("values", PROCESSED, ids=str)
def test_a_growing_row_keeps_up_with_its_text(values: dict[str, Any]) -> None:
    growing = row_of(generated=0, **values)
    for count, token_id in enumerate(GENERATED):
        logits = logits_of(1, seed=count)
        expected = by_transformers(logits[0].clone(), row_of(generated=count, **values))
        process(logits, [growing], EOS)
        torch.testing.assert_close(logits[0], expected)
        growing.tokens.append(token_id)


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    logits = logits_of(1)
    expected = logits[0].clone()
    for token_id in set(GENERATED):
        expected[token_id] -= 0.5 + 0.25 * GENERATED.count(token_id)
    process(logits, [row_of(presence_penalty=0.5, frequency_penalty=0.25)], EOS)
    torch.testing.assert_close(logits[0], expected)


def test_ends_that_are_ignored_may_come_early() -> None:
    logits = logits_of(1)
    process(logits, [row_of(min_new_tokens=50, ignore_eos=True, stop_token_ids=[30, 10_000])], EOS)
    assert [token_id for token_id in (2, 7, 30) if logits[0, token_id].isneginf()] == [30]


def test_an_empty_text_has_nothing_to_look_back_at() -> None:
    params = resolved(
        repetition_penalty=2.0, presence_penalty=1.0, no_repeat_ngram_size=2, bad_words=[[3, 4]], logit_bias={}
    )
    logits = logits_of(1)
    expected = logits.clone()
    process(logits, [SamplingRow(params, [], 0)], EOS)
    assert torch.equal(logits, expected)


# ---- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, *PROCESSED], ids=str)
def test_greedy_rows_take_the_largest_after_the_processors(sampler: RowSampler, values: dict[str, Any]) -> None:
    row, logits = row_of(**values), logits_of(1)
    expected = by_transformers(logits[0].clone(), row).argmax().item()
    assert sampler.sample(logits, [row]).token_ids == [expected]


@pytest.mark.parametrize("processed", [{}, PROCESSED[-1]], ids=str)
@pytest.mark.parametrize("drawn", DRAWN, ids=str)
def test_draws_follow_the_distribution_of_transformers(
    sampler: RowSampler, processed: dict[str, Any], drawn: dict[str, Any]
) -> None:
    """Chi-squared over the tokens, for one row at many seeds; the noise is fixed, so the outcome is as well."""
    count = 6000
    values = {"temperature": 1.0, **drawn, **processed}
    logits = logits_of(1)
    expected = by_transformers(logits[0].clone(), row_of(**values)).softmax(-1).double() * count
    tokens: list[int] = []
    for start in range(0, count, 1000):
        rows = [row_of(**values, seed=seed) for seed in range(start, start + 1000)]
        tokens += sampler.sample(logits.expand(1000, -1).clone(), rows).token_ids
    observed = torch.tensor(tokens).bincount(minlength=VOCABULARY).double()
    assert observed[expected == 0].sum() == 0
    large = expected >= 5
    observed = torch.cat((observed[large], observed[~large].sum().view(1)))
    expected = torch.cat((expected[large], expected[~large].sum().view(1)))
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    chi_squared = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_squared <= freedom + 4 * (2 * freedom) ** 0.5


def test_a_row_gets_the_same_token_in_any_company(sampler: RowSampler) -> None:
    settings = [{**d, **p, "temperature": 1.0, "seed": i} for i, d in enumerate(DRAWN) for p in ({}, *PROCESSED)]
    settings += [{}, {"logprobs": 3}, *PROCESSED]
    logits = logits_of(len(settings))
    together = sampler.sample(logits.clone(), [row_of(**values) for values in settings]).token_ids
    for at, values in enumerate(settings):
        assert sampler.sample(logits[at : at + 1].clone(), [row_of(**values)]).token_ids == [together[at]], values
    order = torch.randperm(len(settings), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = sampler.sample(logits[order].clone(), [row_of(**settings[at]) for at in order]).token_ids
    assert shuffled == [together[at] for at in order]


def test_seed_and_position_decide_the_noise(sampler: RowSampler) -> None:
    logits = logits_of(1, scale=0.5).expand(50, -1)
    seeds = sampler.sample(logits.clone(), [row_of(temperature=1.0, seed=seed) for seed in range(50)]).token_ids
    places = sampler.sample(
        logits[: len(GENERATED)].clone(), [row_of(temperature=1.0, generated=n) for n in range(len(GENERATED))]
    ).token_ids
    assert len(set(seeds)) > 10
    assert len(set(places)) > 3


def test_rows_and_logits_must_fit(sampler: RowSampler) -> None:
    with pytest.raises(ValueError, match="2 rows of 500"):
        sampler.sample(logits_of(1), [row_of(), row_of()])


def test_a_row_whose_tokens_are_all_banned_still_gets_one(sampler: RowSampler) -> None:
    every = [[token_id] for token_id in range(VOCABULARY) if token_id not in EOS]
    for values in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}):
        row = row_of(bad_words=every, min_new_tokens=100, **values)
        (token_id,) = sampler.sample(logits_of(1), [row]).token_ids
        assert 0 <= token_id < VOCABULARY


# ---- logprobs ------------------------------------------------------------------------------------------------------


def test_logprobs_are_the_models_own(sampler: RowSampler) -> None:
    logits = logits_of(4)
    expected = logits.double().log_softmax(-1)
    rows = [
        row_of(logprobs=5, temperature=0.3, top_k=3, repetition_penalty=1.7, logit_bias={3: 90}),
        row_of(),
        row_of(logprobs=0),
        row_of(logprobs=20, temperature=1.0),
    ]
    sampled = sampler.sample(logits, rows)
    assert sampled.logprobs is not None
    assert sampled.of(1) is None
    for at, count in ((0, 5), (2, 0), (3, 20)):
        (entry,) = sampled.of(at) or ()
        assert entry.token_id == sampled.token_ids[at]
        assert entry.logprob == pytest.approx(expected[at, entry.token_id].item(), abs=1e-4)
        best = expected[at].topk(count)
        assert [token_id for token_id, _ in entry.top] == best.indices.tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert sampled.token_ids[0] == 3


def test_nobody_pays_for_logprobs_that_nobody_asks_for(sampler: RowSampler) -> None:
    assert sampler.sample(logits_of(2), [row_of(), row_of(temperature=1.0)]).logprobs is None


def test_impossible_tokens_have_the_lowest_logprob(sampler: RowSampler) -> None:
    logits = torch.full((1, VOCABULARY), float("-inf"))
    logits[0, 9] = 1.0
    (entry,) = sampler.sample(logits, [row_of(logprobs=2)]).of(0) or ()
    assert (entry.token_id, entry.logprob, entry.top[0]) == (9, 0.0, (9, 0.0))
    assert entry.top[1][1] == LOWEST_LOGPROB


# ---- checks --------------------------------------------------------------------------------------------------------


def test_tokens_beyond_the_vocabulary_are_refused(sampler: RowSampler) -> None:
    sampler.check(resolved(logit_bias={499: 1.0}, bad_words=[[499]], stop_token_ids=[500]))
    for values in ({"logit_bias": {500: 1.0}}, {"bad_words": [[1, 500]]}):
        with pytest.raises(UnsupportedParameter, match=r"names the token 500; this model's token ids go from 0 to 499"):
            sampler.check(resolved(**values))
