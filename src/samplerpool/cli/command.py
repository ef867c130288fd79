"""Commands that name everything that is wrong with their options at once, where click stops at the first, and that have
other commands below them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import iter_params_for_processing
from click.shell_completion import CompletionItem

from samplerpool.config.sampling import unknown_name


class Command(click.Command):
    """As click's, but for its errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line into ``ctx``.

        Raises:
            UsageError: with a sentence about each option that does not exist, and each value that does not fit.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as first:
            problems = list(self._problems(ctx, given))
            if not problems:
                raise
            raise click.UsageError(" ".join(problems), ctx) from first

    def _problems(self, ctx: click.Context, args: Sequence[str]) -> Iterator[str]:
        rest = list(args)
        params = self.get_params(ctx)
        flags = [flag for param in params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("-")]
        unknown = False
        while True:
            try:
                values, left, order = self.make_parser(ctx).parse_args(args=list(rest))
                break
            except (click.NoSuchOption, click.BadOptionUsage) as error:
                unknown, name = True, error.option_name
                no_such = isinstance(error, click.NoSuchOption)
                yield unknown_name("option", name, flags) if no_such else error.format_message()
                if not _take_out(rest, name):
                    return
        for param in iter_params_for_processing(order, params):
            try:
                _, left = param.handle_parse_result(ctx, values, left)
            except click.MissingParameter as error:
                if not unknown:  # else what is missing may be what was taken for that option's value
                    yield error.format_message()
            except click.UsageError as error:
                yield error.format_message()
        if left and not unknown:
            yield f"Unexpected argument {' '.join(map(repr, left))}."


class CommandWithOthers(Command):
    """A command whose first word may name another one, which is then run in its place.

    Args:
        others: name and one line of help; ``samplerpool.cli.NAME_OTHER`` has the click command ``command``, and is
            imported when it is called.

    Whatever else comes first is this command's own. So an argument that is called as another command is has to be
    written in another way (a path: ``./NAME``), or to stand behind an option.
    """

    def __init__(self, *args: Any, others: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.others = others

    def other(self, name: str) -> click.Command:
        """Import one of the other commands."""
        command = importlib.import_module(f"samplerpool.cli.{self.name}_{name}").command
        assert isinstance(command, click.Command)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's; of the other command, where its name comes first."""
        if args and args[0] in self.others:
            return self.other(args[0]).make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line into ``ctx``; a first word that is nearly another command is said to be."""
        first = args[0] if args else ""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(first, self.others, 1)
            if near and not Path(first).exists():
                hint = f"{error.format_message()} Did you mean {ctx.command_path} {near[0]}?"
                raise click.UsageError(hint, ctx) from error
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The other commands, ahead of the many options."""
        if self.others:
            with formatter.section("Commands"):
                formatter.write_dl(list(self.others.items()))
        super().format_options(ctx, formatter)


def complete_first(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the first argument of a command with others: these, where nothing stands before it, and files."""
    command, typed = ctx.command, click.core.ParameterSource.COMMANDLINE
    alone = not any(ctx.get_parameter_source(param.name or "") is typed for param in command.params)
    others = command.others if isinstance(command, CommandWithOthers) and alone else {}
    found = [CompletionItem(name, help=text) for name, text in others.items() if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def _take_out(args: list[str], option: str) -> bool:
    """Remove an option, and what looks like its value; False if it is part of another string."""
    for place, text in enumerate(args):
        if text == option:
            has_value = place + 1 < len(args) and not args[place + 1].startswith("-")
            del args[place : place + 1 + has_value]
            return True
        if text.startswith(f"{option}="):
            del args[place]
            return True
    return False
