"""A command whose first word may be another command."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from samplerpool.cli.command import Command, CommandWithOthers, complete_first


@click.command("run", cls=CommandWithOthers, others={"verify": "Look again.", "tail": "See the end."})
@click.argument("source", metavar="INPUT", shell_complete=complete_first)
@click.option("--output")
def run(source: str, output: str | None) -> None:
    """Run it."""
    click.echo(f"run {source} {output}")


@click.command("verify", cls=Command)
@click.argument("file")
@click.option("--rows", type=int, default=3)
@click.pass_context
def verify(context: click.Context, file: str, rows: int) -> None:
    """Look at it again."""
    click.echo(f"{context.command_path}: {file} {rows}")


@click.group()
def program() -> None:
    """All of it."""


program.add_command(run)


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "samplerpool.cli.run_verify", SimpleNamespace(command=verify))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)


def typed(*words: str) -> Result:
    return CliRunner().invoke(program, ["run", *words], prog_name="program")


def test_the_first_word_chooses_and_all_else_is_the_command_s_own() -> None:
    assert typed("in.jsonl", "--output", "x").output == "run in.jsonl x\n"
    assert typed("verify", "out", "--rows", "5").output == "program run verify: out 5\n"
    assert typed("./verify").output == "run ./verify None\n"
    assert typed("--output", "x", "verify").output == "run verify x\n"


def test_help_names_the_others_without_importing_them() -> None:
    text = typed("--help").output
    assert "Usage: program run [OPTIONS] INPUT" in text
    assert "tail    See the end." in text
    assert text.index("Commands:") < text.index("Options:")
    assert "Usage: program run verify [OPTIONS] FILE" in typed("verify", "--help").output


def test_errors_are_of_the_command_that_was_meant() -> None:
    result = typed("verify", "out", "--rows", "many")
    assert result.exit_code == 2
    assert "program run verify" in result.output
    assert "'many' is not a valid integer" in result.output
    assert "Did you mean program run verify?" in typed("verfiy", "out").output
    assert "Did you mean" not in typed("in.jsonl", "out").output
    Path("verfiy").touch()
    assert "Did you mean" not in typed("verfiy", "out").output


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        ((), "", ["verify", "tail", ""]),
        ((), "ve", ["verify", "ve"]),
        (("--output", "x"), "ve", ["ve"]),
        (("verify",), "--r", ["--rows"]),
        ((), "--o", ["--output"]),
    ],
)
def test_completion(words: tuple[str, ...], incomplete: str, found: list[str]) -> None:
    shell = ShellComplete(program, {}, "program", "_PROGRAM_COMPLETE")
    assert [item.value for item in shell.get_completions(["run", *words], incomplete)] == found
