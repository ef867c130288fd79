"""Arguments from dicts, strings and files: values, precedence, and one error that names everything."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from samplerpool.config.arguments import DataArguments, ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.parser import Arguments, describe_arguments, get_args
from samplerpool.errors import DataFileError, InvalidParameter

GROUPS = (ModelArguments, DataArguments, SampleArguments, PoolArguments)


def parse(*args: object) -> Arguments:
    return get_args(*args, environ={})


def problems(args: object) -> str:
    with pytest.raises(InvalidParameter) as caught:
        get_args(args, environ={})
    return caught.value.message


def test_nothing_given_means_the_defaults() -> None:
    assert parse([]) == parse({}) == Arguments(ModelArguments(), DataArguments(), SampleArguments(), PoolArguments())


def test_a_mapping_is_spread_over_the_groups() -> None:
    model, data, sample, pool = parse(
        {"model": "m", "train_dataset": "t.jsonl", "temperature": 1, "stop": "END", "workers": 2, "max_model_len": None}
    )
    assert model == ModelArguments(model_name_or_path="m")
    assert data == DataArguments(train_dataset="t.jsonl")
    assert sample == SampleArguments(temperature=1.0, stop=("END",))
    assert pool == PoolArguments(workers=2)


def test_a_path_is_taken_as_its_text() -> None:
    assert parse({"model": Path("a/b")}).model.model_name_or_path == "a/b"


@pytest.mark.parametrize(
    ("strings", "name", "value"),
    [
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--temperature=2"], "temperature", 2.0),
        (["temperature=0"], "temperature", 0.0),
        (["--max-new-tokens", "7"], "max_new_tokens", 7),
        (["--max_tokens", "7"], "max_new_tokens", 7),
        (["--n=3"], "num_return_sequences", 3),
        (["--do_sample"], "do_sample", True),
        (["--do_sample", "No"], "do_sample", False),
        (["ignore_eos=on"], "ignore_eos", True),
        (["--stop", "A", "B"], "stop", ("A", "B")),
        (["--stop", "a=b"], "stop", ("a=b",)),
        (["stop=[A, '###']"], "stop", ("A", "###")),
        (["--stop=--"], "stop", ("--",)),
        (["stop=123"], "stop", ("123",)),
        (["--stop_token_ids", "1", "2"], "stop_token_ids", (1, 2)),
        (["stop_token_ids=[1, 2]"], "stop_token_ids", (1, 2)),
        (["--seed", "3", "--seed", "4"], "seed", 4),
        (["--seed", "null"], "seed", None),
        (["--logit_bias", "{5: -100, '7': 1}"], "logit_bias", ((5, -100.0), (7, 1.0))),
        (["--bad_words", "A", "B C"], "bad_words", ("A", "B C")),
        (["bad_words=[A, [1, 2]]"], "bad_words", ("A", (1, 2))),
        (["--frequency_penalty", "-1"], "frequency_penalty", -1.0),
    ],
)
def test_command_line_values_follow_the_type_of_their_field(strings: list[str], name: str, value: object) -> None:
    read = getattr(parse(strings).sample, name)
    assert (read, type(read)) == (value, type(value))


def test_pool_settings_from_the_command_line() -> None:
    pool = parse(["--workers", "3", "--engine_options", "{step_s: 0.1, tokens: 5}", "--start-timeout-s", "9"]).pool
    assert pool == PoolArguments(workers=3, engine_options={"step_s": 0.1, "tokens": 5}, start_timeout_s=9.0)
    assert parse(["--workers=auto"]).pool.workers == "auto"


def test_a_flag_does_not_swallow_what_follows() -> None:
    sample = parse(["--do_sample", "top_k=5", "--ignore_eos", "--top_p", "0.5"]).sample
    assert (sample.do_sample, sample.top_k, sample.ignore_eos, sample.top_p) == (True, 5, True, 0.5)


@pytest.mark.parametrize(("suffix", "dump"), [(".json", json.dumps), (".yaml", str), (".yml", json.dumps)])
def test_a_file_comes_first_and_is_overridden(tmp_path: Path, suffix: str, dump: object) -> None:
    path = tmp_path / f"config{suffix}"
    path.write_text(dump({"model_name_or_path": "m", "temperature": 0.3, "top_k": 4, "stop": ["x", "y"]}))  # type: ignore[operator]
    model, _, sample, _ = parse([str(path), "model=other", "--top_k", "9", "temperature=null"])
    assert model.model_name_or_path == "other"
    assert (sample.temperature, sample.top_k, sample.stop) == (None, 9, ("x", "y"))


def test_maps_and_lists_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("logit_bias: {5: -100}\nbad_words: [A, [1, 2]]\nstop_token_ids: [3]\n")
    sample = parse([str(path)]).sample
    assert (sample.logit_bias, sample.bad_words, sample.stop_token_ids) == (((5, -100.0),), ("A", (1, 2)), (3,))
    assert "logit_bias must map token ids" in problems(["--logit_bias", "5"])


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert parse([str(tmp_path / "empty.yaml")]) == parse([])


def test_without_arguments_sys_argv_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--seed", "5"])
    assert get_args(environ={}).sample.seed == 5


@pytest.mark.parametrize("content", ["{", "- a\n- b\n", "just text", "\x00"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(DataFileError, match=r"broken\.yaml"):
        parse([str(path)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"absent\.json cannot be read: No such file"):
        parse([str(tmp_path / "absent.json")])


def test_one_error_names_all_that_is_wrong() -> None:
    message = problems(
        {
            "modell": "m",
            "temprature": 1,
            "top_k": 1.5,
            "temperature": -3,
            "engine": "vllm",
            "sample_backend": "sglang",
            "workers": 0,
            "max_batch": "many",
            "trust_remote_code": "yes",
            "start_timeout_s": float("nan"),
            "template": 7,
        }
    )
    for part in (
        "Unknown argument 'modell'; did you mean 'model'?",
        "Unknown argument 'temprature'; did you mean 'temperature'?",
        "top_k must be an integer, not 1.5.",
        "temperature must be at least 0 and at most 100, not -3.",
        "engine must be auto, ",
        "not 'vllm'.",
        "sample_backend must be hf, ",
        "not 'sglang'.",
        "workers must be an integer of at least 1 or auto, not 0.",
        "max_batch must be an integer of at least 1, not 'many'.",
        "trust_remote_code must be true or false, not 'yes'.",
        "start_timeout_s must be a number of at least 0, not nan.",
        "template must be a string, not 7.",
    ):
        assert part in message


def test_one_error_names_all_that_is_wrong_on_a_command_line() -> None:
    message = problems(["stray", "--modle", "x", "--temperature", "hot", "workers=two", "--pool", "--do_sample=maybe"])
    for part in (
        "Unexpected argument 'stray'",
        "Unknown argument 'modle'; did you mean 'model'?",
        "temperature must be a number, not 'hot'.",
        "workers must be an integer of at least 1 or auto, not 'two'.",
        "pool must be a string, not ''.",
        "do_sample must be true or false, not 'maybe'.",
    ):
        assert part in message


@pytest.mark.parametrize("value", [True, 1.0, "3"])
def test_integers_are_not_guessed_from_other_types(value: object) -> None:
    assert "max_batch must be an integer" in problems({"max_batch": value})


def test_a_name_and_its_alias_together_are_refused() -> None:
    assert "model_name_or_path is given twice" in problems({"model": "a", "model_name_or_path": "b"})
    assert "max_new_tokens is given twice" in problems({"max_tokens": 1, "max_new_tokens": 2})


def test_extra_keys_are_ignored_only_where_the_environment_says_so() -> None:
    args = {"model": "m", "learning_rate": 1e-4}
    assert "'learning_rate'" in problems(args)
    assert get_args(args, environ={"ALLOW_EXTRA_KEYS": "1"}) == parse({"model": "m"})
    assert get_args(["--learning_rate", "1"], environ={"ALLOW_EXTRA_KEYS": "true"}) == parse([])
    with pytest.raises(InvalidParameter):
        get_args(args, environ={"ALLOW_EXTRA_KEYS": "0"})


def test_wrong_values_are_refused_even_where_extra_keys_are_ignored() -> None:
    with pytest.raises(InvalidParameter, match="top_p"):
        get_args({"top_p": 2, "extra": 1}, environ={"ALLOW_EXTRA_KEYS": "1"})


def test_no_name_belongs_to_two_groups_and_help_lists_all() -> None:
    names = [each.name for group in GROUPS for each in fields(group)]
    assert len(names) == len(set(names))
    listed = [line.split()[0] for line in describe_arguments().splitlines()]
    assert listed == [f"--{name}" for name in names]
