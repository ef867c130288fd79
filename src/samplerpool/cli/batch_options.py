"""Options of ``samplerpool batch`` that say what is read and what is made of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from samplerpool.config.arguments import OUTPUT_FORMS
from samplerpool.data.selection import Selection

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
output_format_option = click.option(
    "--output-format",
    type=click.Choice(OUTPUT_FORMS),
    help="Default: by the file's name: .parquet, else JSON Lines. openai: lines of an OpenAI batch output file. "
    "Names that end in .gz or .zst are compressed.",
)

_NAMES = ("converter", "messages_column", "prompt_template", "system", "select", "shuffle_seed", "limit")


def selection_options(command: Command) -> Command:
    """Add the options. The command gets them as ``selection``; what they cannot mean is an error before it runs."""

    @functools.wraps(command)
    def with_selection(*args: Any, **kwargs: Any) -> Any:
        return command(*args, selection=Selection(**{name: kwargs.pop(name) for name in _NAMES}), **kwargs)

    decorated: Any = with_selection
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
