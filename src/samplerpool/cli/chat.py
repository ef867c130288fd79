"""``samplerpool chat``: talk to a running pool, or to a worker started for the purpose."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from samplerpool.chat.answer_view import ReasoningView, ViewOptions
from samplerpool.chat.console import plain_console
from samplerpool.chat.json_console import FORMS, RESULT
from samplerpool.chat.pools import chosen_pool
from samplerpool.chat.session import converse, one_message
from samplerpool.chat.settings import chat_params
from samplerpool.cli.command import Command
from samplerpool.cli.loading import loading_display
from samplerpool.cli.options import (
    arguments_from,
    check_unheard,
    connect_option,
    model_options,
    pool_option,
    sampling_options,
    template_option,
)
from samplerpool.samplers.sync_sampler import SyncSampler


@click.command("chat", cls=Command)
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a worker of our own with this model, and stop it at the end.")
@click.option("--worker", type=click.IntRange(0), metavar="N", help="Talk to this worker of the pool only.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@template_option
@click.option("--once", metavar="TEXT", help="Print the answer to this, and end.")
@click.option("--stdin", "document", is_flag=True, help="Standard input is one message; --once TEXT goes before it.")
@click.option(
    "--json",
    "form",
    type=click.Choice(FORMS),
    is_flag=False,
    flag_value=RESULT,
    help="Write answers as JSON lines: one a turn, or with events, one whenever tokens come.",
)
@click.option(
    "--reasoning",
    type=click.Choice(get_args(ReasoningView)),
    default="full",
    show_default=True,
    help="How the model's reasoning is shown: whole, as one line that counts, or not at all.",
)
@click.option("--markdown", is_flag=True, help="Draw Markdown in answers instead of showing it as it was written.")
@sampling_options
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    pool: str | None,
    connect: Path | None,
    model: str | None,
    worker: int | None,
    system: str | None,
    template_options: dict[str, Any],
    once: str | None,
    document: bool,
    form: str | None,
    reasoning: ReasoningView,
    markdown: bool,
    sampling: dict[str, Any],
    **model_settings: Any,
) -> int:
    """Talk to the model of a running pool, which is there at once and goes on afterwards.

    In the chat, /help shows the commands; Ctrl-C stops an answer, Ctrl-D leaves. Without a terminal each line of the
    input is one message, or with --stdin the whole of it, and the answers alone are printed.
    """
    params = chat_params(sampling)
    own = model is not None or _typed(context, "engine")
    if sum((pool is not None, connect is not None, own)) > 1:
        raise click.UsageError("Give one of --pool, --connect and --model (or --engine), not several.")
    if own and worker is not None:
        raise click.UsageError("--worker chooses among the workers of a running pool; leave it out with --model.")
    if own and not _typed(context, "workers"):
        model_settings["workers"] = 1
    check_unheard(context, () if own else model_settings)
    question = one_message(once, sys.stdin if document else None)
    with _launch(model, model_settings) if own else _attach(connect or pool, worker) as sampler:
        view = ViewOptions(reasoning, markdown)
        return converse(
            sampler,
            params,
            system=system,
            template_options=template_options,
            question=question,
            form=form,
            view=view,
        )


def _attach(pool: str | Path | None, worker: int | None) -> SyncSampler:
    """To a pool by its name or file; else to the only one, or to the one that whoever sits there chooses."""
    if pool is None and sys.stdin.isatty() and sys.stdout.isatty():
        pool = chosen_pool(plain_console(sys.stdin, sys.stdout, sys.stderr).choose)
    return SyncSampler.connect(pool, worker=worker)


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _launch(model: str | None, settings: dict[str, Any]) -> SyncSampler:
    model_args, _, pool_args = arguments_from(model, None, {}, settings)
    with loading_display() as on_progress:
        return SyncSampler.launch(model_args=model_args, on_progress=on_progress, **vars(pool_args))
