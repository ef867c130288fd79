"""Options, help and exit codes of the command line, without a pool."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from samplerpool.cli.main import COMMANDS, main
from samplerpool.cli.options import arguments_from, model_options, pool_option, sampling_options
from samplerpool.cli.output import bytes_text, duration_text, number_text, plural
from samplerpool.config.sampling import PARAMS
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


def test_every_sampling_parameter_is_an_option() -> None:
    help_text = CliRunner().invoke(main, ["launch", "--help"]).output
    for name in PARAMS:
        assert f"--{name.replace('_', '-')}" in help_text


def test_a_value_out_of_range_is_refused_by_its_one_definition() -> None:
    with pytest.raises(InvalidParameter, match="top_p must be above 0 and at most 1"):
        options_of("--top-p", "1.5")


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
