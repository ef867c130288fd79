"""``run_chat``: from arguments to a chat, or to an answered data set, on a private pool.

``python -m samplerpool.samplers.cli_sampler --model_name_or_path MODEL``, or a YAML or JSON file with overrides.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from samplerpool.batch.advice import Advice
from samplerpool.batch.durable import run_durably
from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.order import InOrder
from samplerpool.batch.output import JOURNAL_SUFFIX, BatchOutput
from samplerpool.batch.runner import run_batch
from samplerpool.batch.tally import BatchSummary
from samplerpool.chat.console import discard_output
from samplerpool.chat.session import converse
from samplerpool.chat.settings import chat_params
from samplerpool.config.arguments import DataArguments
from samplerpool.config.parser import Arguments, describe_arguments, get_args
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import RowResult, output_row
from samplerpool.data.json_text import to_json
from samplerpool.data.rows import Row
from samplerpool.data.selection import Selection
from samplerpool.errors import InvalidParameter, OutputExists, SamplerPoolError, UsageError
from samplerpool.samplers.sync_sampler import SyncSampler

__all__ = ["SyncSampler", "main", "run_chat"]

FAILED, WRONG_USAGE, SOME_ROWS_FAILED, INTERRUPTED = 1, 2, 3, 130

_USAGE = "python -m samplerpool.samplers.cli_sampler [CONFIG.yaml|CONFIG.json] [--name value | name=value]..."


def run_chat(args: Mapping[str, Any] | Sequence[str] | None = None) -> None:
    """Chat with a model on a private worker; with a data set among the arguments, answer that instead.

    The answered rows go to the new file ``output``, or without it to standard output, as JSON lines.

    Args:
        args: names and values, or command line strings, or None for ``sys.argv``; see ``config.parser.get_args``.

    Raises:
        UsageError: arguments, data or model that cannot be.
        OutputExists: the output file is there already.
        StartFailed: the worker did not become ready.
        BatchError: no worker is left to answer the data set.
    """
    _run(get_args(args))


def main(argv: Sequence[str] | None = None) -> int:
    """``run_chat`` as a command; returns the exit code."""
    strings = sys.argv[1:] if argv is None else argv
    if "--help" in strings or "-h" in strings:
        print(f"Usage: {_USAGE}\n\n{describe_arguments()}")
        return 0
    try:
        return _run(get_args(strings))
    except SamplerPoolError as error:
        _say(f"Error: {error}")
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the answers has left
        discard_output()
        return FAILED


def _run(arguments: Arguments) -> int:
    if arguments.data.train_dataset or arguments.data.eval_dataset:
        return _answer_data(arguments)
    params = chat_params(arguments.sample.given())
    with _launch(arguments, default_workers=1) as sampler:
        return converse(sampler, params)


def _launch(arguments: Arguments, *, default_workers: int | str) -> SyncSampler:
    pool = dict(vars(arguments.pool))
    workers = pool.pop("workers")
    return SyncSampler.launch(
        workers=default_workers if workers == "auto" else workers,
        model_args=arguments.model,
        on_progress=_say,
        **{**pool, "engine": _engine(arguments)},
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _engine(arguments: Arguments) -> str:
    """The backend's engine; ``hf`` leaves it to ``engine``.

    Raises:
        InvalidParameter: they contradict each other.
    """
    backend, engine = arguments.sample.sample_backend, arguments.pool.engine
    if backend == "hf":
        return engine
    if engine not in ("auto", backend):
        raise InvalidParameter(f"sample_backend={backend!r} and engine={engine!r} contradict; leave one out.")
    return backend


ADVICE = Advice(
    go_on="make the same call again",
    begin_anew="remove what is left of it",
    accept_changes="give another output, or remove its journal to begin anew",
    go_elsewhere="give another output",
    samples="num_return_sequences",
    seed="seed",
)

# ---- answering data -------------------------------------------------------------------------------------------------


def _answer_data(arguments: Arguments) -> int:
    """Answer all rows of all data sets as one; whatever can be refused is refused before a model is loaded."""
    params = sampling_params(arguments.sample.given()).given()
    samples = params.get("num_return_sequences", 1)
    with ExitStack() as stack:
        selection = Selection.of(arguments.data)
        data = stack.enter_context(selection.open(arguments.data, note=_say))
        output = stack.enter_context(_output(arguments.data, samples)) if arguments.data.output else None
        sampler = stack.enter_context(_launch(arguments, default_workers="auto"))
        fetch_media = arguments.data.fetch_media
        if output is None:
            summary = _print_answers(sampler, selection.rows(data), params, samples, fetch_media=fetch_media)
        else:
            summary = run_durably(
                sampler.connection,
                selection.rows(data),
                output,
                source=", ".join(map(str, data.paths)),
                selection=selection,
                params=params,
                fetch_media=fetch_media,
            )
    _say(
        f"{summary.rows} rows, {summary.error_rows} with errors, {summary.completion_tokens} tokens "
        f"in {summary.elapsed_s:.1f} s ({summary.tokens_per_s:.1f} tokens/s)"
    )
    return SOME_ROWS_FAILED if (output.finished.errors if output else summary.error_rows) else 0


def _output(data: DataArguments, samples: int) -> BatchOutput:
    """The output, which goes on with what an interrupted run has left of it.

    Raises:
        OutputExists: no run was interrupted; a journal may be there nevertheless, as it stays with rows that failed.
    """
    path = Path(data.output or "").expanduser()
    begun = path.with_name(path.name + JOURNAL_SUFFIX).exists()
    output = BatchOutput(
        path, samples, resume=begun, output_format=OutputFormat.of(path, data.output_format), advice=ADVICE
    )
    if output.complete:
        left = f" and {output.journal_path.name}" if output.journal_path.exists() else ""
        raise OutputExists(
            f"The output file {output.path} is there already, with all rows. Give another output, or remove "
            f"{output.path.name}{left}.",
            path=str(output.path),
        )
    return output


def _print_answers(
    sampler: SyncSampler, rows: Iterable[Row], params: dict[str, Any], samples: int, *, fetch_media: bool
) -> BatchSummary:
    order = InOrder(samples)

    def show(results: list[RowResult]) -> None:
        for result in results:
            sys.stdout.buffer.write(to_json(output_row(result, samples)) + b"\n")
        sys.stdout.buffer.flush()

    try:
        return run_batch(
            sampler.connection,
            order.noting(rows),
            params=params,
            on_result=lambda result: show(order.take(result)),
            fetch_media=fetch_media,
        )
    finally:
        show(order.rest())


if __name__ == "__main__":
    sys.exit(main())
