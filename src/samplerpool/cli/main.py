"""The command ``samplerpool``. Each subcommand's module is imported only when it is called: ``--help`` is instant."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from samplerpool import __version__
from samplerpool.errors import SamplerPoolError, UsageError, log_hint

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_ROW_ERRORS = 3
EXIT_INTERRUPTED = 130

COMMANDS: dict[str, str] = {
    "launch": "Start a pool of workers with a model.",
    "status": "Show the running pools and their workers.",
    "chat": "Talk to the model of a running pool, or of one started for it.",
    "batch": "Answer every row of a file.",
    "serve": "Answer programs over HTTP, as OpenAI's interface has it.",
    "logs": "Show what a pool's workers wrote.",
    "restart": "Replace a pool's workers by new ones, without failing a request.",
    "scale": "Add or remove workers of a running pool.",
    "stop": "Stop a pool.",
    "keys": "Let clients on other machines in, or no more.",
    "doctor": "Check whether this machine can run pools.",
}
"""Name and one line of help; ``samplerpool.cli.NAME`` has the click command ``command``."""


class CommandLine(click.Group):
    """Loads commands lazily, and turns every exception into one clear line and an exit code."""

    debug = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of their use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"samplerpool.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; ends the process with the exit code unless ``standalone_mode`` is off."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            returned = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except Exception as error:
            if self.debug and not isinstance(error, click.ClickException | click.Abort):
                raise
            sys.exit(report(error))
        sys.exit(returned if isinstance(returned, int) else 0)


def report(error: Exception) -> int:
    """Say on stderr what went wrong, and return the exit code for it."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _give_up_stdout()
    if isinstance(error, SamplerPoolError):
        click.echo(f"Error: {error.message}{log_hint(error)}", err=True)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    if isinstance(error, OSError):
        click.echo(f"Error: {error}", err=True)
        return EXIT_FAILED
    text = f"Error: {type(error).__name__}: {error} (a bug of samplerpool; samplerpool --debug COMMAND shows where)"
    click.echo(text, err=True)
    return EXIT_FAILED


def _give_up_stdout() -> NoReturn:
    """Whoever read our output has left, as in ``samplerpool logs | head``; that is no error of ours to report."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_FAILED)


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    command = ctx.command
    assert isinstance(command, CommandLine)
    command.debug = value


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="samplerpool", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks of errors.")
def main() -> None:
    """Sample from Hugging Face language models with a pool of worker processes, one per GPU.

    \b
    samplerpool launch MODEL --detach     start workers
    samplerpool chat                      talk to the model
    samplerpool batch in.jsonl --output out.jsonl
    samplerpool stop
    """
