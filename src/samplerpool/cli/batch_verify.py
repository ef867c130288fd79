"""``samplerpool batch verify``: sample some rows of an output once more, and compare."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from samplerpool.batch.near_tie import NEAR_TIE
from samplerpool.batch.results import RunFiles, open_results
from samplerpool.batch.verify import Finding, Verdict, choose_answers, verify
from samplerpool.cli.batch_again import check_same_model, input_of
from samplerpool.cli.batch_pool import check_choice, connected
from samplerpool.cli.batch_process import stop_switch
from samplerpool.cli.batch_view import view_for
from samplerpool.cli.command import Command
from samplerpool.cli.main import EXIT_INTERRUPTED, EXIT_ROW_ERRORS
from samplerpool.cli.options import connect_option, model_options, pool_option
from samplerpool.config.wording import plural
from samplerpool.data.selection import Selection

FINDINGS: dict[Finding, str] = {"equal": "equal", "near-tie": "differs at a near-tie", "differs": "differs"}


@click.command("verify", cls=Command)
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1), metavar="K", default=20, show_default=True, help="How many answers.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Chooses which ones.")
@click.option("--input", "source", metavar="INPUT", help="Where the run's input is now, if not where it was.")
@pool_option()
@connect_option
@click.option("--model", metavar="MODEL", help="Start a private pool with this model, stopped at the end.")
@click.option("--accept-changes", is_flag=True, help="Compare although the pool's model is not the run's.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    metavar="X",
    default=NEAR_TIE,
    show_default=True,
    help="A near-tie: with its logit lowered by so much, another token is taken. In float32 the default is ample; "
    "bfloat16 rounds to some hundredths.",
)
@click.option("--fetch-media", is_flag=True, help="As for the batch.")
@model_options
@click.pass_context
def command(
    context: click.Context,
    /,
    output: Path,
    rows: int,
    seed: int,
    source: str | None,
    pool: str | None,
    connect: Path | None,
    model: str | None,
    accept_changes: bool,
    tolerance: float,
    fetch_media: bool,
    **model_settings: Any,
) -> int:
    """Sample K answers of OUTPUT once more, as its run did, and say of each whether it is the same.

    OUTPUT is what a batch was given as --output, finished or not. Its run's seed, parameters and input are in
    OUTPUT.run.json. An answer is equal; or it differs at a near-tie, where rounding decided between tokens that were
    as good as level, and goes on as the other one does; or it differs.

    \b
    Exit code: 0 all equal or up to near-ties, 3 some differ, 130 interrupted, 1 failed, 2 wrong usage.
    """
    check_choice(context, pool, connect, model, model_settings)
    files = RunFiles(output)
    results = open_results(files)
    kept = choose_answers(results, rows, seed)
    if not kept:
        click.echo(f"{files.path} has no answers to be compared")
        return 0
    selection = Selection.noted(vars(files.manifest))
    with selection.open(input_of(files, source)) as data, connected(pool, connect, model, model_settings) as connection:
        if not accept_changes:
            check_same_model(files.manifest, connection)
        with stop_switch() as stop, view_for(sys.stderr) as view:
            verdicts = verify(
                connection,
                selection.rows_at(data, [one.index for one in kept]),
                kept,
                files.manifest,
                tolerance=tolerance,
                fetch_media=fetch_media,
                on_progress=view.update,
                stop=stop,
            )
    for verdict in verdicts:
        click.echo(_line(verdict, files.manifest.samples))
    counts = Counter(verdict.finding for verdict in verdicts)
    parts = (f"{counts[finding]} {text}" for finding, text in FINDINGS.items() if counts[finding])
    click.echo(f"{len(verdicts)} of {plural(len(results), 'answer')} compared: {', '.join(parts) or 'none'}")
    if len(verdicts) < len(kept):
        click.echo(f"interrupted; {len(kept) - len(verdicts)} were not compared")
        return EXIT_INTERRUPTED
    return EXIT_ROW_ERRORS if counts["differs"] else 0


def _line(verdict: Verdict, samples: int) -> str:
    name = f"row {verdict.row}" + (f", sample {verdict.sample}" if samples > 1 else "")
    places = [f"character {verdict.character}"] if verdict.character is not None else []
    places += [f"token {verdict.token}"] if verdict.token is not None else []
    where = f" ({', '.join(places)})" if places else ""
    return f"{name}: {FINDINGS[verdict.finding]}{where}" + (f": {verdict.detail}" if verdict.detail else "")
