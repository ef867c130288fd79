"""``samplerpool batch tail``: show answers of a batch, while it runs or afterwards."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from samplerpool.batch.journal_tail import JournalTail
from samplerpool.batch.progress_file import ProgressRead
from samplerpool.batch.results import Results, RunFiles, generation_of, open_results, output_columns
from samplerpool.cli.batch_again import stream_of
from samplerpool.cli.command import Command
from samplerpool.cli.main import EXIT_FAILED
from samplerpool.cli.options import connect_option, pool_option
from samplerpool.cli.output import note
from samplerpool.data.json_text import to_json
from samplerpool.errors import UsageError

POLL_S = 0.2


@click.command("tail", cls=Command)
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("-n", "--lines", "count", type=click.IntRange(0), metavar="K", help="The last K answers. [default: 10]")
@click.option("-f", "--follow", is_flag=True, help="Go on as answers come, until the run ends.")
@click.option("--row", type=click.IntRange(0), metavar="N", help="Only row N, and its whole conversation.")
@click.option(
    "--live",
    is_flag=True,
    help="With --row: if it is not finished, its tokens as they come. The pool is asked for it once more, ahead of the "
    "batch and with its seed, as a batch's own answers travel as a whole.",
)
@click.option("--sample", type=click.IntRange(0), default=0, metavar="K", help="With --live: which of its answers.")
@pool_option()
@connect_option
@click.option("--accept-changes", is_flag=True, help="With --live: ask the pool although it runs another model.")
@click.option("--json", "as_json", is_flag=True, help="The output rows themselves, a line each.")
def command(
    output: Path,
    count: int | None,
    follow: bool,
    row: int | None,
    live: bool,
    sample: int,
    pool: str | None,
    connect: Path | None,
    accept_changes: bool,
    as_json: bool,
) -> int:
    """Show the latest answers of the batch that writes, or has written, OUTPUT.

    While it runs they are shown in the order in which they finish, else in the output's. A row appears when it is
    finished. Ctrl-C ends the looking, and never the batch.

    \b
    samplerpool batch tail answers.jsonl -f            each answer as it comes
    samplerpool batch tail answers.jsonl --row 17 -f   row 17, as soon as it is there
    samplerpool batch tail answers.jsonl --row 17 --live   its tokens as they come
    """
    if row is not None and count is not None:
        raise UsageError("Give either --row N, for one row, or -n K, for the last ones.")
    if live and (row is None or follow or as_json):
        raise UsageError("--live shows the tokens of one row as text: give --row N, and neither -f nor --json.")
    show = _show_json if as_json else _show_whole if row is not None else _show
    files = RunFiles(output)
    with JournalTail(files.journal) as journal:
        running = files.journal.exists()
        if row is not None and live:
            tokens = stream_of(files, row, sample, pool, connect, accept_changes=accept_changes)
            return _live(_known(files, journal, row).get(sample), tokens)
        if row is not None:
            return _row(files, journal, row, follow, show)
        found = map(_columns, journal.new()) if running else _last(open_results(files), 10 if count is None else count)
        for columns in deque(found, maxlen=10 if count is None else count):
            show(columns)
        if follow:
            for columns in _coming(files, journal) if running else ():
                show(columns)
            note(_end(files))
    return 0


def _known(files: RunFiles, journal: JournalTail, row: int) -> dict[int, dict[str, Any]]:
    """The answers of one row that are there, by sample."""
    known = map(_columns, journal.new()) if files.journal.exists() else _of_row(open_results(files), row)
    return {_sample(columns): columns for columns in known if _index(columns) == row}


def _live(finished: dict[str, Any] | None, tokens: Iterator[str]) -> int:
    """Show an answer if it is there, else its tokens as they come."""
    if finished is not None:
        _show_whole(finished)
        return 0
    for text in tokens:
        click.echo(text, nl=False)
    click.echo()
    return 0


def _row(files: RunFiles, journal: JournalTail, row: int, follow: bool, show: Any) -> int:
    """Show all samples of one row; wait for those that are missing, if that is wanted."""
    running = files.journal.exists()
    latest = _known(files, journal, row)
    if follow and running and len(latest) < files.manifest.samples:
        for columns in _coming(files, journal):
            if _index(columns) == row:
                latest[_sample(columns)] = columns
                if len(latest) == files.manifest.samples:
                    break
    for _, columns in sorted(latest.items()):
        show(columns)
    if not latest:
        waiting = f" ({_end(files)})" if ProgressRead(files.path).ended else "; --follow waits for it"
        note(f"Row {row} has no answer in {f'{files.journal}{waiting}' if running else files.path}.")
        return EXIT_FAILED
    return 0


def _coming(files: RunFiles, journal: JournalTail) -> Iterator[dict[str, Any]]:
    """What comes, until the run has ended."""
    ended = False
    while not ended:
        ended = ProgressRead(files.path).ended  # before the last look
        yield from map(_columns, journal.new())
        ended |= journal.gone
        if not ended:
            time.sleep(POLL_S)


def _end(files: RunFiles) -> str:
    """How the run has ended, for people."""
    progress = ProgressRead(files.path).fields
    state = progress.get("state")
    if state == "complete":
        return f"complete: {files.path} is written"
    how = {"interrupted": "interrupted", "failed": f"failed: {progress.get('error')}"}.get(str(state))
    return f"{how or 'the run is gone without a word'}; the same command with --resume goes on with it"


def _last(results: Results, count: int) -> Iterator[dict[str, Any]]:
    return (results[place] for place in range(max(0, len(results) - count), len(results)))


def _of_row(results: Results, row: int) -> Iterable[dict[str, Any]]:
    """The samples of a row, which mostly are where its number says."""
    samples = max(1, len(results) and 1 + _sample(results[len(results) - 1]))
    there = [results[place] for place in range(row * samples, min((row + 1) * samples, len(results)))]
    if there and all(_index(columns) == row for columns in there):
        return there
    return (results[place] for place in range(len(results)))


def _columns(record: Any) -> dict[str, Any]:
    return output_columns(record.line)


def _index(columns: Mapping[str, Any]) -> int:
    return int(generation_of(columns)["index"])


def _sample(columns: Mapping[str, Any]) -> int:
    return int(generation_of(columns).get("sample") or 0)


# ---- for people -----------------------------------------------------------------------------------------------------


def _show_json(columns: Mapping[str, Any]) -> None:
    click.echo(to_json(columns))


def _show(columns: Mapping[str, Any]) -> None:
    generation = generation_of(columns)
    click.echo(_head(generation))
    click.echo(generation.get("error") or generation.get("text") or "")


def _show_whole(columns: Mapping[str, Any]) -> None:
    """One row, with what was asked."""
    generation = generation_of(columns)
    click.echo(_head(generation))
    for message in columns.get("messages") or ():
        click.echo(f"[{message['role']}]")
        for block in message["content"]:
            click.echo(block["value"] if block["type"] == "text" else f"({block['type']}) {block['value']}")
    if generation.get("error"):
        click.echo(generation["error"])


def _head(generation: Mapping[str, Any]) -> str:
    sample = f", sample {generation['sample']}" if "sample" in generation else ""
    tokens = f"{generation.get('prompt_tokens')} tokens in, {generation.get('completion_tokens')} out"
    return f"--- row {generation['index']}{sample} · {generation.get('finish_reason')} · {tokens}"
