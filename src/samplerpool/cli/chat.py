"""``samplerpool chat``: talk to a running pool, or to a worker started for the purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from samplerpool.chat.session import chat_params, converse
from samplerpool.cli.options import connect_option, pool_option, sampling_options
from samplerpool.config.arguments import ENGINES
from samplerpool.samplers.sync_sampler import SyncSampler


@click.command("chat")
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a worker of our own with this model, and stop it at the end.")
@click.option("--engine", type=click.Choice(ENGINES), help="What runs a model of our own; scripted needs no --model.")
@click.option("--worker", type=click.IntRange(0), metavar="N", help="Talk to this worker of the pool only.")
@click.option("--system", metavar="TEXT", help="System prompt.")
@click.option("--once", metavar="TEXT", help="Print the answer to this, and end.")
@sampling_options
def command(
    pool: str | None,
    connect: Path | None,
    model: str | None,
    engine: str | None,
    worker: int | None,
    system: str | None,
    once: str | None,
    sampling: dict[str, Any],
) -> int:
    """Talk to the model of a running pool, which is there at once and goes on afterwards.

    In the chat, the bare words clear and exit work; Ctrl-C stops an answer, Ctrl-D leaves. Without a terminal each
    line of the input is one message, and the answers alone are printed.
    """
    params = chat_params(sampling)
    own = model is not None or engine is not None
    if sum((pool is not None, connect is not None, own)) > 1:
        raise click.UsageError("Give one of --pool, --connect and --model (or --engine), not several.")
    if own and worker is not None:
        raise click.UsageError("--worker chooses among the workers of a running pool; leave it out with --model.")
    with _launch(model, engine) if own else SyncSampler.connect(connect or pool, worker=worker) as sampler:
        return converse(sampler, params, system=system, once=once)


def _launch(model: str | None, engine: str | None) -> SyncSampler:
    return SyncSampler.launch(
        model, workers=1, engine=engine or "auto", on_progress=lambda line: click.echo(line, err=True)
    )
