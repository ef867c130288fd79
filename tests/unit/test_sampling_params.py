"""Sampling parameters: checks, and which layer decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplerpool.config.sampling import (
    ALIASES,
    MAX_SEED,
    PARAMS,
    SamplingParams,
    field_values,
    resolve,
    sampling_params,
)
from samplerpool.errors import InvalidParameter


def refused(**values: object) -> str:
    with pytest.raises(InvalidParameter) as caught:
        sampling_params(values)
    return caught.value.message


def test_what_is_given_is_kept_and_nothing_else() -> None:
    params = sampling_params({"max_tokens": 5, "stop": ["a", "b"], "seed": None}, temperature=1)
    assert params.given() == {"max_new_tokens": 5, "temperature": 1.0, "stop": ["a", "b"]}


def test_single_values_become_lists() -> None:
    params = sampling_params(stop="END", stop_token_ids=3)
    assert (params.stop, params.stop_token_ids) == (("END",), (3,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2**31),
        ("max_new_tokens", 1.0),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 10**400),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("repetition_penalty", 10**400),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a", "\ud800"]),
        ("bad_words", "\ud800"),
        ("adapter", "\ud800"),
        ("stop", 3),
        ("stop_token_ids", [1, -1]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", "1"),
        ("do_sample", 1),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("num_return_sequences", 0),
        ("logprobs", -1),
        ("logprobs", 21),
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.1),
        ("no_repeat_ngram_size", -1),
        ("min_new_tokens", -1),
        ("logit_bias", 5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {2**31: 1}),
        ("logit_bias", {1.5: 1}),
        ("logit_bias", {True: 1}),
        ("bad_words", 5),
        ("bad_words", ""),
        ("bad_words", [5]),
        ("bad_words", [[]]),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    message = refused(**{name: value})
    assert message.startswith(name)
    assert repr(value) in message or name.startswith("stop")


def test_bounds_themselves_are_taken() -> None:
    values = {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "seed": MAX_SEED}
    assert sampling_params(values).given() == values


def test_all_problems_come_at_once() -> None:
    message = refused(top_q=0.5, top_k="3", temperature=-1)
    assert "Unknown sampling parameter 'top_q'; did you mean 'top_" in message
    assert "top_k must be an integer, not '3'." in message
    assert "temperature must be at least 0 and at most 100, not -1." in message


def test_a_parameter_and_its_alias_together_are_refused() -> None:
    assert "num_return_sequences is given twice" in refused(n=2, num_return_sequences=3)


def test_aliases_lead_to_parameters() -> None:
    assert set(ALIASES.values()) <= set(PARAMS)


@pytest.mark.parametrize(
    ("layers", "greedy"),
    [
        ([{}], True),
        ([{"temperature": 0.7}], False),
        ([{"temperature": 0}], True),
        ([{"do_sample": True}], False),
        ([{}, {"do_sample": True, "temperature": 0.6}], False),
        ([{"temperature": 0.7}, {"do_sample": False}], False),
        ([{}, {"temperature": 0.7}, {"do_sample": False}], False),
        ([{"temperature": 0}, {"do_sample": True, "temperature": 0.6}], True),
        ([{"do_sample": False}, {"temperature": 0.7}], True),
        ([{"top_p": 0.9}, {"do_sample": False, "temperature": 0.7}], True),
    ],
)
def test_the_first_layer_with_a_word_decides_on_sampling(layers: list[dict[str, object]], greedy: bool) -> None:
    resolved = resolve(*(sampling_params(layer) for layer in layers))
    assert resolved.greedy is greedy
    assert resolved.do_sample is not None


def test_gaps_are_filled_layer_by_layer_then_from_the_defaults() -> None:
    resolved = resolve(sampling_params(top_k=5), sampling_params(top_k=7, max_new_tokens=9))
    assert (resolved.top_k, resolved.max_new_tokens, resolved.top_p) == (5, 9, 1.0)
    assert [name for name in PARAMS if getattr(resolved, name) is None] == ["logprobs"]


def test_a_seed_that_nobody_gave_is_drawn() -> None:
    seeds = {resolve(SamplingParams()).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(seed is not None and 0 <= seed <= MAX_SEED for seed in seeds)
    assert resolve(SamplingParams(), SamplingParams(seed=3)).seed == 3


def test_biases_are_taken_in_every_form_that_formats_have() -> None:
    for value in ({5: -1, "17": 2.5}, {"17": 2.5, "5": -1}, [[5, -1], [17, 2.5]]):
        params = sampling_params(logit_bias=value)
        assert params.logit_bias == ((5, -1.0), (17, 2.5))
        assert params.given() == {"logit_bias": {"5": -1.0, "17": 2.5}}
    message = refused(logit_bias={5: -101})
    assert message == "logit_bias must be at least -100 and at most 100, not -101."


def test_bad_words_are_texts_or_token_ids() -> None:
    assert sampling_params(bad_words="x").bad_words == ("x",)
    params = sampling_params(bad_words=["x", [1, 2]])
    assert params.bad_words == ("x", (1, 2))
    assert params.given() == {"bad_words": ["x", [1, 2]]}
    assert "bad_words must be an integer, not 'a'" in refused(bad_words=[["a"]])


def test_more_tokens_asked_for_than_allowed_are_refused() -> None:
    message = refused(min_new_tokens=9, max_new_tokens=8)
    assert message == "min_new_tokens must be at most max_new_tokens, 8, not 9."
    assert sampling_params(min_new_tokens=8, max_tokens=8).min_new_tokens == 8


def test_plain_values_become_fields_again() -> None:
    values = {"logit_bias": {"5": 1.0}, "bad_words": ["a", [1]], "stop": ["x"], "seed": 1}
    fields = field_values({**values, "top_k": None})
    assert fields == {"logit_bias": ((5, 1.0),), "bad_words": ("a", (1,)), "stop": ("x",), "seed": 1}
    assert SamplingParams(**fields).given() == values


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(1, 2**31 - 1),
            "temperature": st.floats(0, 100),
            "stop": st.lists(st.text(min_size=1)),
            "stop_token_ids": st.lists(st.integers(0, 2**31 - 1)),
            "seed": st.integers(0, MAX_SEED),
            "logit_bias": st.dictionaries(st.integers(0, 2**31 - 1).map(str), st.floats(-100, 100)),
            "bad_words": st.lists(st.text(min_size=1) | st.lists(st.integers(0, 2**31 - 1), min_size=1)),
            "do_sample": st.booleans(),
        },
    )
)
def test_given_and_sampling_params_are_inverse(values: dict[str, object]) -> None:
    params = sampling_params(values)
    assert params.given() == values
    assert sampling_params(params.given()) == params
