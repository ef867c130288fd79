"""``samplerpool batch``: answer every row of a file with a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.output import BatchOutput
from samplerpool.cli.batch_detach import Begun
from samplerpool.cli.batch_detach import detach as start_detached
from samplerpool.cli.batch_dry_run import look_at, output_state
from samplerpool.cli.batch_options import (
    DryRun,
    dry_run_options,
    output_format_option,
    output_option,
    selection_options,
)
from samplerpool.cli.batch_pool import check_choice, connected
from samplerpool.cli.batch_run import Job, check_input, command_with, conclude, open_data, run
from samplerpool.cli.command import CommandWithOthers, complete_first
from samplerpool.cli.main import EXIT_ROW_ERRORS
from samplerpool.cli.options import connect_option, model_options, pool_option, sampling_options
from samplerpool.cli.output import note
from samplerpool.config.sampling import sampling_params
from samplerpool.data.selection import Selection
from samplerpool.errors import UsageError

OTHERS: dict[str, str] = {
    "report": "Write a page about an output: figures, charts, rows to read.",
    "stop": "Stop a batch, as Ctrl-C does where it runs.",
    "tail": "Show answers of a batch, while it runs or afterwards.",
    "verify": "Sample some rows of an output once more, and compare.",
}
"""Name and one line of help; ``samplerpool.cli.batch_NAME`` has the click command ``command``."""


@click.command("batch", cls=CommandWithOthers, others=OTHERS, short_help="Answer every row of a data set.")
@click.argument("source", metavar="INPUT", shell_complete=complete_first)
@output_option
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a private pool with this model, stopped at the end.")
@output_format_option
@selection_options
@dry_run_options
@click.option(
    "--detach", is_flag=True, help="Return when the run has begun, and leave it running, also after a logout."
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run left, if it left anything.")
@click.option("--retry-errors", is_flag=True, help="Like --resume, and answer the rows again that carry errors.")
@click.option("--overwrite", is_flag=True, help="Replace an output that is there already, and what a run left of one.")
@click.option(
    "--accept-changes", is_flag=True, help="With --resume: go on although the model or a setting has changed."
)
@click.option(
    "--on-error",
    type=click.Choice(["row", "stop"]),
    default="row",
    help="A row that fails becomes an error row, or stops the batch.",
)
@click.option(
    "--length-column",
    metavar="NAME",
    help="The column that tells about how many tokens a row's answer will have; long ones are begun early.",
)
@click.option("--fetch-media", is_flag=True, help="Get images, videos and sounds from http(s) URLs, too, from here.")
@sampling_options
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str,
    output: Path | None,
    pool: str | None,
    connect: Path | None,
    model: str | None,
    output_format: str | None,
    selection: Selection,
    dry_run: DryRun | None,
    detach: bool,
    resume: bool,
    retry_errors: bool,
    overwrite: bool,
    accept_changes: bool,
    on_error: str,
    length_column: str | None,
    fetch_media: bool,
    sampling: dict[str, Any],
    **model_settings: Any,
) -> int:
    """Answer every row of INPUT, and write the rows with their answers to --output, in order.

    INPUT is a file (JSON Lines, JSON, CSV, TSV, text, all of these also as .gz or .zst; Parquet, Arrow), a folder of
    them, a YAML file of several, a data set of the hub, or - for standard input (JSON). A row has "messages" (a
    conversation) or "prompt" (a text), or what --converter, --messages-column or --prompt-template make of it; its
    other columns are kept. A row that cannot be answered gets its error instead.

    A row that is finished goes to FILE.journal; when all are, FILE is put together. Ctrl-C finishes the rows that are
    being answered and stops; pressed twice, it stops at once. Whatever ended it, --resume answers the rest.

    With --dry-run nothing is answered or written: all rows are read and their prompts prepared as the run would, and
    what is found is said: rows that would become error rows, long ones, tokens, time and cost.

    \b
    Exit code: 0 all answered, 3 some rows carry (or would carry) errors, 130 interrupted, 1 failed, 2 wrong usage.
    """
    check_choice(context, pool, connect, model, model_settings)
    if (resume or retry_errors) and overwrite:
        raise UsageError("Give either --resume (or --retry-errors) or --overwrite: to go on, or to begin anew.")
    if dry_run is not None:
        unfit = {"--detach": detach, "--resume": resume, "--retry-errors": retry_errors}
        if meant := [name for name, given in unfit.items() if given]:
            raise UsageError(f"--dry-run looks at all rows and writes nothing; leave {meant[0]} out.")
        return look_at(
            source,
            selection,
            dry_run,
            lambda: connected(pool, connect, model, model_settings),
            sampling=sampling,
            length_column=length_column,
            fetch_media=fetch_media,
            output=None if output is None else output_state(output, output_format, overwrite=overwrite),
        )
    assert output is not None  # else its option has complained
    begun = Begun()
    if detach and not begun.detached:
        return start_detached(source, output, command_with("--resume"))
    job = Job(
        source=source,
        selection=selection,
        output=output,
        overwrite=overwrite,
        accept_changes=accept_changes,
        stop_on_error=on_error == "stop",
        fetch_media=fetch_media,
        length_column=length_column,
        sampling=sampling,
    )
    with BatchOutput(
        output,
        job.samples,
        resume=resume,
        overwrite=overwrite,
        retry_errors=retry_errors,
        output_format=OutputFormat.of(output, output_format),
    ) as file:
        if file.complete:
            if not accept_changes:
                file.check_settings(**selection.settings(), params=sampling_params(sampling).given())
                check_input(job, file)
            click.echo(f"{file.path} is complete already")
            return EXIT_ROW_ERRORS if file.finished.errors else 0
        if file.cut_bytes:
            note(f"{file.cut_bytes:,} bytes at the end of {file.journal_path} are no whole row, and are forgotten.")
        with open_data(job, file) as data:
            with connected(pool, connect, model, model_settings, detached=detach) as connection:
                summary = run(job, data, file, connection, begun)
            return conclude(summary, file)
