"""Options, help and exit codes of the command line, without a pool."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import click
import pytest
from click.testing import CliRunner

from samplerpool.cli.main import COMMANDS, main
from samplerpool.cli.options import arguments_from, model_options, pool_option, sampling_options
from samplerpool.config.arguments import ModelArguments, PoolArguments
from samplerpool.config.sampling import PARAMS
from samplerpool.config.wording import bytes_text, duration_text, number_text, plural
from samplerpool.errors import EngineError, InvalidParameter, PoolNotFound, PromptTooLong, StartFailed


def options_of(*arguments: str) -> dict[str, Any]:
    """What a command with all the shared options gets."""
    got: dict[str, Any] = {}

    @click.command()
    @pool_option()
    @model_options
    @sampling_options
    def command(**values: Any) -> None:
        got.update(values)

    command.main(list(arguments), standalone_mode=False)
    return got


def test_only_given_sampling_options_reach_the_command() -> None:
    assert options_of()["sampling"] == {}
    given = options_of("--temperature", "0", "--stop", "a", "--stop", "b", "--no-ignore-eos", "--n", "2", "--seed", "7")
    assert given["sampling"] == {
        "temperature": 0.0,
        "stop": ["a", "b"],
        "ignore_eos": False,
        "num_return_sequences": 2,
        "seed": 7,
    }


def test_options_that_take_maps_and_lists() -> None:
    words = ("--bad-words", "A", "--bad-words", "[1, 2]", "--bad-words", "[x")
    given = options_of(*words, "--logit-bias", "5=-100", "--logit-bias", "17=0.5")
    sampling, pool = given.pop("sampling"), given.pop("pool")
    assert sampling == {"bad_words": ["A", [1, 2], "[x"], "logit_bias": {"5": -100.0, "17": 0.5}}
    _, sample_args, _ = arguments_from("m", pool, sampling, given)
    assert sample_args.bad_words == ("A", (1, 2), "[x")
    assert sample_args.logit_bias == ((5, -100.0), (17, 0.5))
    for bad in ("5", "x=1", "5=x", "=1"):
        with pytest.raises(click.BadParameter, match="ID=BIAS"):
            options_of("--logit-bias", bad)


WRITTEN: dict[str, tuple[list[str], Any]] = {
    "int": (["3"], 3),
    "float": (["0.5"], 0.5),
    "strings": (["A", "[B"], ["A", "[B"]),
    "ints": (["3", "4"], [3, 4]),
    "words": (["A", "[1, 2]"], ["A", [1, 2]]),
    "biases": (["5=-1", "6=2"], {"5": -1.0, "6": 2.0}),
}
"""How a value of each kind is typed, and what it is then."""


@pytest.mark.parametrize("name", PARAMS)
def test_every_sampling_parameter_is_an_option(name: str) -> None:
    flag, kind = f"--{name.replace('_', '-')}", PARAMS[name].kind
    if kind == "bool":
        assert options_of(flag)["sampling"] == {name: True}
        assert options_of(f"--no-{flag[2:]}")["sampling"] == {name: False}
        return
    texts, value = WRITTEN.get(kind, (["x"], "x"))
    assert options_of(*(part for text in texts for part in (flag, text)))["sampling"] == {name: value}


@pytest.mark.parametrize("command", ["launch", "batch", "chat"])
def test_commands_take_every_parameter_and_all_of_a_model_s_arguments(command: str) -> None:
    loaded = importlib.import_module(f"samplerpool.cli.{command}").command
    names = {param.name for param in loaded.params}
    assert set(PARAMS) <= names
    assert {each.name for each in fields(ModelArguments)} - {"model_name_or_path"} <= names
    if command == "launch":
        assert {each.name for each in fields(PoolArguments)} <= names


def test_options_of_groups_are_read_by_their_fields() -> None:
    given = options_of("--quant-config", '{"name": "x", "bits": 4}', "--flash-attn", "eager", "--start-timeout", "7")
    model_args, _, pool_args = arguments_from("m", given.pop("pool"), given.pop("sampling"), given)
    assert model_args == ModelArguments(
        model_name_or_path="m", quant_config={"name": "x", "bits": 4}, flash_attn="eager"
    )
    assert pool_args == PoolArguments(start_timeout_s=7.0)


def test_adapters_have_a_short_option() -> None:
    given = options_of("--lora", "x=a/b", "--lora", "y=c", "--adapter", "x")
    model_args, sample_args, _ = arguments_from("m", given.pop("pool"), given.pop("sampling"), given)
    assert model_args.peft_config == {"name": "lora", "adapter_name_or_path": {"x": "a/b", "y": "c"}}
    assert sample_args.adapter == "x"
    given = options_of("--lora", "a", "--peft-config", '{"name": "lora", "adapter_name_or_path": "b"}')
    with pytest.raises(InvalidParameter, match="by --lora or by --peft-config"):
        arguments_from("m", given.pop("pool"), given.pop("sampling"), given)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["chat", "--enigne=scripted", "--top-p", "7", "--top_k", "3", "--stop", "", "--seed", "x"],
            [
                "Unknown option '--enigne'; did you mean '--engine'?",
                "Unknown option '--top_k'; did you mean '--top-k'?",
                "top_p must be above 0 and at most 1, not 7.0.",
                "stop must be a non-empty string",
                "seed must be an integer, not 'x'.",
            ],
        ),
        (
            ["batch", "--temprature", "3", "in.jsonl", "--max-batch", "0", "--engine", "steam", "--limit", "0"],
            [
                "Unknown option '--temprature'; did you mean '--temperature'?",
                "max_batch must be an integer of at least 1, not 0.",
                "'steam' is not one of 'auto'",
                "0 is not in the range x>=1.",
            ],
        ),
        (
            ["launch", "m", "more", "--workers", "0", "--quant-config", "{}"],
            [
                "workers must be an integer of at least 1 or auto, not 0.",
                "quant_config must be a mapping with a name, like {name: ...}, not {}.",
                "Unexpected argument 'more'.",
            ],
        ),
        (["batch", "--top-p", "7"], ["top_p must be", "Missing argument 'INPUT'", "Missing option '--output'"]),
        (["batch", "in.jsonl", "--dry-run", "--rows", "0"], ["0 is not in the range x>=1"]),
        (["chat", "--top-p", "7", "--temperature"], ["'--temperature' requires an argument", "top_p must be"]),
    ],
)
def test_one_error_names_all_that_is_wrong_with_a_command_line(arguments: list[str], parts: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    for part in parts:
        assert part in result.stderr
    assert result.stderr.count("Error: ") == 1
    assert "Missing" not in result.stderr or any("Missing" in part for part in parts)


def test_settings_of_a_private_pool_are_refused_for_a_running_one() -> None:
    for command in (["batch", "x", "--output", "y"], ["chat"]):
        result = CliRunner().invoke(main, [*command, "--dtype", "bfloat16"])
        assert result.exit_code == 2
        assert "--dtype is for a pool that is started here, so it needs --model MODEL." in result.stderr


def test_a_value_out_of_range_is_refused_by_its_one_definition() -> None:
    with pytest.raises(click.BadParameter, match="top_p must be above 0 and at most 1"):
        options_of("--top-p", "1.5")
    with pytest.raises(InvalidParameter, match="min_new_tokens must be at most max_new_tokens"):
        options_of("--min-new-tokens", "9", "--max-new-tokens", "3")


def test_the_groups_of_arguments() -> None:
    given = options_of("--workers", "2", "--engine-option", "step_s=0.5", "--engine-option", "name=x y", "--stop", "a")
    sampling = given.pop("sampling")
    pool = given.pop("pool")
    model_args, sample_args, pool_args = arguments_from("m", pool, sampling, given)
    assert model_args.model_name_or_path == "m"
    assert sample_args.stop == ("a",)
    assert pool_args.workers == 2
    assert pool_args.engine_options == {"step_s": 0.5, "name": "x y"}
    assert pool_args.start_timeout_s == 600.0


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "--workers", "0"],
        ["launch", "--workers", "many"],
        ["launch", "--engine", "steam"],
        ["launch", "--engine-option", "step_s"],
        ["launch", "--pool", "a/b"],
        ["launch", "--temperature", "-1"],
        ["launch", "--max-batch", "0"],
        ["status", "../x"],
        ["stop", "--timeout", "-1"],
        ["stop", "a", "--all"],
        ["dance"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_clear_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output
    assert "Traceback" not in result.output


def test_help_lists_the_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr("importlib.import_module", refuse)
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, text in COMMANDS.items():
        assert name in result.output
        assert text in result.output


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PoolNotFound("No pool."), 2, "Error: No pool.\n"),
        (StartFailed("Died.", log_tail="x"), 1, "Error: Died.\n"),
        (EngineError("Oh.", request="w0.1.2"), 1, "Error: Oh. (request w0.1.2; samplerpool logs may tell more)\n"),
        (PromptTooLong("Long.", request="w0.1.2"), 1, "Error: Long.\n"),
        (FileNotFoundError(2, "No such file", "x.txt"), 1, "Error: [Errno 2] No such file: 'x.txt'\n"),
        (KeyboardInterrupt(), 130, None),
        (ZeroDivisionError("oops"), 1, None),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str | None
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: failing)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == code
    assert "Traceback" not in result.output
    if text is not None:
        assert result.stderr == text


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise StartFailed("Died.")

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: failing)
    result = CliRunner().invoke(main, ["--debug", "status"])
    assert isinstance(result.exception, StartFailed)
    main.debug = False


def test_a_command_s_number_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def with_row_errors() -> int:
        return 3

    monkeypatch.setattr(type(main), "get_command", lambda self, ctx, name: with_row_errors)
    assert CliRunner().invoke(main, ["status"]).exit_code == 3


def test_figures_for_people() -> None:
    assert [bytes_text(n) for n in (None, 0, 1536, 150 * 1024**2, 3 * 1024**4)] == [
        "-",
        "0 B",
        "1.5 KiB",
        "150 MiB",
        "3.0 TiB",
    ]
    assert [duration_text(s) for s in (None, 5.9, 65, 3725, 90000)] == ["-", "5s", "1m 05s", "1h 02m", "1d 01h"]
    assert [number_text(n) for n in (None, 3, 12.34, 1234.5)] == ["-", "3", "12.3", "1,234"]
    assert [plural(n, "worker") for n in (1, 2)] == ["1 worker", "2 workers"]
