"""A command that names everything that is wrong with its options at once, where click stops at the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from click.core import iter_params_for_processing

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
