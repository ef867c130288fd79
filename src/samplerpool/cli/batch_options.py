"""Options of ``samplerpool batch`` that say what is read and what is made of it, and how it is only looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from samplerpool.batch.preflight import Prices
from samplerpool.cli.options import template_option
from samplerpool.config.arguments import OUTPUT_FORMS
from samplerpool.data.selection import Selection
from samplerpool.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--converter",
        metavar="NAME",
        help="How rows become conversations: openai, prompt, alpaca, sharegpt, pair, openai_batch, or "
        "package.module.function of your own. Default: chosen by each row's columns.",
    ),
    click.option("--messages-column", metavar="NAME", help="The column that holds the conversation, or a text."),
    click.option(
        "--prompt-template",
        metavar="TEMPLATE|@FILE",
        help="Jinja over the columns that makes the user turn: 'Translate: {{ text }}'.",
    ),
    click.option("--system", metavar="TEXT", help="System turn for the rows that have none."),
    template_option,
    click.option(
        "--select",
        metavar="EXPRESSION",
        help="Answer only rows for which this is true, Jinja over the columns: \"split == 'test' and score > 3\".",
    ),
    click.option(
        "--shuffle-seed",
        type=click.IntRange(0),
        metavar="N",
        help="Answer the rows in the order that this number gives; with --limit, a random part of them. The output "
        "keeps the order of the input.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Answer only the first N of the rows that are meant."
    ),
)


def _unless_dry_run(context: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Options that were typed are looked at first, so it is known whether this is a dry run."""
    if value is None and not context.params.get("dry_run") and not context.resilient_parsing:
        raise click.MissingParameter(ctx=context, param=param)
    return value


output_option = click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path),
    callback=_unless_dry_run,
    help="File to write. Only --dry-run goes without.",
)
output_format_option = click.option(
    "--output-format",
    type=click.Choice(OUTPUT_FORMS),
    help="Default: by the file's name: .parquet, else JSON Lines. openai: lines of an OpenAI batch output file. "
    "Names that end in .gz or .zst are compressed.",
)

_NAMES = tuple(each.name for each in fields(Selection))


def selection_options(command: Command) -> Command:
    """Add the options. The command gets them as ``selection``; what they cannot mean is an error before it runs."""

    @functools.wraps(command)
    def with_selection(*args: Any, **kwargs: Any) -> Any:
        return command(*args, selection=Selection(**{name: kwargs.pop(name) for name in _NAMES}), **kwargs)

    decorated: Any = with_selection
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DryRun:
    """How the input is looked at instead of being answered.

    Args:
        rows: only so many.
        probe: so many are answered after all, to measure.
        as_json: the report is for programs.
    """

    rows: int | None
    probe: int
    prices: Prices
    as_json: bool


_DRY_RUN = (
    click.option(
        "--dry-run",
        is_flag=True,
        help="Answer nothing: go through the rows, prepare and count their prompts, and report. Writes no file.",
    ),
    click.option("--rows", type=click.IntRange(1), metavar="K", help="With --dry-run: only K rows, drawn from all."),
    click.option(
        "--probe",
        type=click.IntRange(1),
        metavar="N",
        help="With --dry-run: answer N rows, to measure how long answers are and how fast they come.",
    ),
    click.option(
        "--price-in", type=click.FloatRange(0), metavar="X", help="With --dry-run: price of a million prompt tokens."
    ),
    click.option(
        "--price-out", type=click.FloatRange(0), metavar="X", help="With --dry-run: of a million completion tokens."
    ),
    click.option("--json", "as_json", is_flag=True, help="With --dry-run: print the report for programs."),
)


def dry_run_options(command: Command) -> Command:
    """Add the options. The command gets them as ``dry_run``, which is None if none is meant.

    Raises:
        UsageError: one of them was given without ``--dry-run``.
    """

    @functools.wraps(command)
    def with_dry_run(
        *args: Any,
        dry_run: bool,
        rows: int | None,
        probe: int | None,
        price_in: float | None,
        price_out: float | None,
        as_json: bool,
        **kwargs: Any,
    ) -> Any:
        given = {"--rows": rows, "--probe": probe, "--price-in": price_in, "--price-out": price_out}
        lonely = [name for name, value in given.items() if value is not None] + ["--json"] * as_json
        if lonely and not dry_run:
            raise UsageError(f"{lonely[0]} is for --dry-run; give both, or neither.")
        meant = DryRun(rows, probe or 0, Prices(price_in, price_out), as_json) if dry_run else None
        return command(*args, dry_run=meant, **kwargs)

    decorated: Any = with_dry_run
    for option in reversed(_DRY_RUN):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
