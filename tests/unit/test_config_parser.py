"""Arguments from dicts, strings and files: values, precedence, and one error that names everything."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from samplerpool.config.arguments import DataArguments, ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.parser import Arguments, all_settings, describe_arguments, get_args
from samplerpool.errors import DataFileError, InvalidParameter

GROUPS = (ModelArguments, DataArguments, PoolArguments, SampleArguments)


def parse(*args: object) -> Arguments:
    return get_args(*args, environ={})


def problems(args: object) -> str:
    with pytest.raises(InvalidParameter) as caught:
        get_args(args, environ={})
    return caught.value.message


def test_nothing_given_means_the_defaults() -> None:
    assert parse([]) == parse({}) == Arguments(ModelArguments(), DataArguments(), PoolArguments(), SampleArguments())


def test_a_mapping_is_spread_over_the_groups() -> None:
    model, data, pool, sample = parse(
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
    model, _, _, sample = parse([str(path), "model=other", "--top_k", "9", "temperature=null"])
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
            "engine": "tgi",
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
        "not 'tgi'.",
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
    lines = describe_arguments().splitlines()
    listed = [line.split()[0] for line in lines[::2]]
    assert all(line.strip() for line in lines)
    assert listed == [f"--{name}" for name in names]


# ---- entries of mappings, files as people write them ----------------------------------------------------------------


def test_entries_of_mappings_are_overridden_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("engine_options: {step_s: 1.0, text: hi}\nquant_config: {name: bnb, outer: {inner: 1, kept: 2}}\n")
    arguments = parse(
        [str(path), "engine_options.step_s=0.1", "--quant-config.outer.inner", "[3, x]", "quant_config.new=on"]
    )
    assert arguments.pool.engine_options == {"step_s": 0.1, "text": "hi"}
    assert arguments.model.quant_config == {"name": "bnb", "outer": {"inner": [3, "x"], "kept": 2}, "new": True}
    assert parse({"peft_config.path": "p", "peft_config": '{"name": "lora"}'}).model.peft_config == {
        "name": "lora",
        "path": "p",
    }
    assert parse(["logit_bias.5=-1", "--logit_bias.6", "2"]).sample.logit_bias == ((5, -1.0), (6, 2.0))


def test_entries_leave_the_mapping_that_was_given_as_it_was() -> None:
    options = {"step_s": 1.0}
    assert parse({"engine_options": options, "engine_options.step_s": 2.0}).pool.engine_options == {"step_s": 2.0}
    assert options == {"step_s": 1.0}


def test_wrong_entries_are_named_with_the_rest() -> None:
    message = problems(["enigne_options.step_s=1", "temperature.x=1", "engine_options={a: 1}", "engine_options.a.b=1"])
    for part in (
        "Unknown argument 'enigne_options.step_s'; did you mean 'engine_options.step_s'?",
        "temperature has no entries, so temperature.x means nothing; it takes a number at least 0 and at most 100.",
        "engine_options.a is 1 and no mapping, so it has no entry 'b'.",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["init_config", "peft_config", "kernel_config", "quant_config"])
def test_plugins_are_mappings_or_json_with_a_name(name: str) -> None:
    wanted = {"name": "x", "bits": 4}
    for given in (wanted, json.dumps(wanted)):
        assert getattr(parse({name: given}).model, name) == wanted
    assert getattr(parse([f"--{name}", json.dumps(wanted)]).model, name) == wanted
    for wrong in ({"bits": 4}, {"name": ""}, {"name": 3}, "bnb", "[1]", 3):
        assert f"{name} must be a mapping with a name, like {{name: ...}}, not" in problems({name: wrong})
        assert "JSON" not in problems({name: wrong})
    cut = ('{"name": "x"', "which is broken JSON (Expecting ',' delimiter: line 1 column 13 (char 12))")
    assert cut[1] in problems({name: cut[0]})
    assert cut[1] in problems([f"--{name}", cut[0]])


def test_numbers_with_an_exponent_are_numbers_in_every_form(tmp_path: Path) -> None:
    for suffix, content in ((".yaml", "top_p: 5e-1\nengine_options: {a: 1e3}"), (".json", '{\n\t"top_p": 5e-1\n}')):
        path = tmp_path / f"config{suffix}"
        path.write_text(content)
        assert parse([str(path)]).sample.top_p == 0.5
    assert parse(["top_p=5e-1", "engine_options.a=1e3"]).pool.engine_options == {"a": 1000.0}


@pytest.mark.parametrize("name", ["c.json", "c.yaml"])
def test_a_name_that_stands_twice_in_a_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"top_k": 1, "seed": 2, "top_k": 3}')
    with pytest.raises(DataFileError, match="'top_k' stands there twice"):
        parse([str(tmp_path / name)])


def test_strings_stand_in_a_list() -> None:
    assert parse(["--temperature", 0.5]).sample.temperature == 0.5
    for wrong in ("config.yaml", Path("config.yaml"), b"x"):
        assert "a list of strings like [" in problems(wrong)


def test_every_argument_is_reachable_from_every_entry(tmp_path: Path) -> None:
    """Dict, JSON, YAML and command line read each of them to the same value."""
    for name, value in values_of_every_argument().items():
        expected = parse({name: value})
        assert expected != parse({}), name
        path = tmp_path / "one.json"
        path.write_text(json.dumps({name: value}))
        for form in ([str(path)], [f"--{name}", value if isinstance(value, str) else json.dumps(value)]):
            assert parse(form) == expected, (name, form)
        path.with_suffix(".yaml").write_text(path.read_text())
        assert parse([str(path.with_suffix(".yaml"))]) == expected, name


def values_of_every_argument() -> dict[str, object]:
    """One value for each, not its default."""
    made: dict[str, object] = {}
    for name, each in all_settings().items():
        if each.spec is not None:
            made[name] = SAMPLING_VALUES.get(each.spec.kind, "text")
        elif each.choices and each.low is None:
            made[name] = next(choice for choice in each.choices if choice != each.default)
        elif bool in each.types:
            made[name] = not each.default
        elif int in each.types or float in each.types:
            made[name] = 77_777
        else:
            made[name] = {"name": "n"} if dict in each.types else "text"
    return made


SAMPLING_VALUES: dict[str, object] = {
    "int": 3,
    "float": 0.5,
    "bool": True,
    "name": "a",
    "strings": ["A", "B"],
    "ints": [3, 4],
    "words": ["A", [1, 2]],
    "biases": {"5": -1.0},
}


# ---- the groups themselves ------------------------------------------------------------------------------------------


def test_a_group_checks_its_own_names_types_and_ranges_together() -> None:
    with pytest.raises(InvalidParameter) as caught:
        PoolArguments(engin="scripted", workers=0, max_batch="many")  # type: ignore[call-arg, arg-type]
    assert caught.value.message == (
        "Unknown argument 'engin'; did you mean 'engine'? workers must be an integer of at least 1 or auto, not 0. "
        "max_batch must be an integer of at least 1, not 'many'."
    )
    with pytest.raises(InvalidParameter, match=r"temperature must be at least 0.*sample_backend must be hf"):
        SampleArguments(temperature=-1, sample_backend="sglang")
    with pytest.raises(InvalidParameter, match="flash_attn must be eager, sdpa or flash_attention_2, not 'fast'"):
        ModelArguments(flash_attn="fast")
    with pytest.raises(InvalidParameter, match="Unknown argument 'train_datset'; did you mean 'train_dataset'"):
        DataArguments(train_datset="x")  # type: ignore[call-arg]


def test_a_group_brings_values_to_their_form() -> None:
    sample = SampleArguments(stop="END", logit_bias={5: 1}, temperature=None, n=2)  # type: ignore[arg-type, call-arg]
    assert (sample.stop, sample.logit_bias, sample.temperature) == (("END",), ((5, 1.0),), None)
    assert (sample.num_return_sequences, sample.n) == (2, 2)  # type: ignore[attr-defined]
    assert ModelArguments(model_name_or_path=Path("a/b")).model_name_or_path == "a/b"  # type: ignore[arg-type]


def test_the_later_name_of_the_model_is_the_same_field() -> None:
    arguments = ModelArguments(model="m")  # type: ignore[call-arg]
    assert arguments == ModelArguments(model_name_or_path="m")
    assert arguments.model == "m"  # type: ignore[attr-defined]
    assert replace(arguments, model_name_or_path="other").model == "other"  # type: ignore[attr-defined]
    with pytest.raises(InvalidParameter, match="model_name_or_path is given twice, once as model"):
        ModelArguments(model="m", model_name_or_path="n")  # type: ignore[call-arg]
