"""``samplerpool batch stop``: end a run from elsewhere, as Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from samplerpool.batch.progress_file import ProgressRead
from samplerpool.batch.results import RunFiles
from samplerpool.cli.command import Command
from samplerpool.cli.output import interruptible, note
from samplerpool.errors import BatchError
from samplerpool.wire.endpoint import ProcessId

POLL_S = 0.1


@click.command("stop", cls=Command)
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--now", is_flag=True, help="Do not let the rows that are being answered finish.")
def command(output: Path, now: bool) -> int:
    """Stop the run that writes OUTPUT, and wait until it has ended.

    Like Ctrl-C where it runs: nothing more is handed out, the rows that are being answered are finished, and --resume
    goes on from there. Given again meanwhile, it stops at once.
    """
    files = RunFiles(output)
    read = ProgressRead(files.path)
    process = read.process
    if read.ended or process is None:
        raise BatchError(f"No run that could be stopped is writing {files.path}: {_why(read)}.")
    _send(process, signal.SIGTERM if now else signal.SIGINT)
    running = sum(worker["running"] for worker in read.fields.get("workers", ()))
    if running and not now:
        note(f"Stopping: the {running} rows that are being answered are finished. To stop at once: --now")
    with interruptible("The batch goes on stopping without this command."):
        while process.alive():
            time.sleep(POLL_S)
    fields = ProgressRead(files.path).fields
    done = f"{fields['done']:,} answers" if "done" in fields else "nothing"  # without any, no file is left
    click.echo(f"Process {process.pid} has ended ({fields.get('state', 'interrupted')}); {done} finished.")
    return 0


def _why(read: ProgressRead) -> str:
    state = read.fields.get("state")
    if state is None:
        return "there is no progress file beside it"
    if not read.ended:
        return f"it runs on {read.fields['host']}, as process {read.fields['pid']}"
    return f"the last one {'is gone' if state in ('running', 'stopping') else f'has ended ({state})'}"


def _send(process: ProcessId, number: signal.Signals) -> None:
    """To just this process, whatever has its number by now."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if process.alive():
            signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)
