"""``BaseSampler``: an engine on its own thread behind an async interface. Light to import without a model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from samplerpool.config.arguments import EngineConfig, ModelArguments, SampleArguments
from samplerpool.config.sampling import PARAMS, SamplingParams, sampling_params
from samplerpool.data.answers import Answer, RowResult, output_row, row_seed
from samplerpool.data.media import has_media, with_media_read
from samplerpool.data.messages import to_v1, tools_text
from samplerpool.data.per_row import request_params, with_checked_params
from samplerpool.data.rows import Row, rows_from_dataset
from samplerpool.engine.base import BATCH, INTERACTIVE, Engine, PromptRenderer, RequestId, check_adapter
from samplerpool.engine.loop import Admitted, EngineLoop, RequestEvent, RequestOutput
from samplerpool.errors import InvalidParameter, RenderError, SamplerPoolError
from samplerpool.samplers.intake import Intake, Job
from samplerpool.types import Dataset, Message, Sample, TokenLogprobs
from samplerpool.wire.messages import ChatPrompt

log = logging.getLogger(__name__)

LOCAL_CLIENT = 0
"""Client number of requests that come from within the process."""
MAX_ROWS_AHEAD = 1024
"""Rows of ``batch_infer`` that are in the engine's queue at a time."""
MAX_MEDIA_ROWS = 16
"""The same for rows with images, videos or sounds, which take more memory."""


class BaseSampler:
    """Samples from one model in this process.

    Args:
        args: sampling defaults and the backend.
        model_args: how the model was loaded.
        model: the loaded Hugging Face model (None for an engine without one).
        renderer: renders prompts and parses answers.
        engine: a ready engine; otherwise one is built by ``args.sample_backend`` around the model.
        generation_defaults: parameters that the checkpoint itself asks for, below ``args``.

    Raises:
        InvalidParameter: one of them is not what it should be; all that are wrong are named.
        StartFailed: the model cannot be run, or another sampler has it.
    """

    def __init__(
        self,
        args: SampleArguments,
        model_args: ModelArguments,
        model: Any,
        renderer: PromptRenderer,
        *,
        engine: Engine | None = None,
        generation_defaults: SamplingParams | None = None,
    ) -> None:
        _check_kinds(args, model, renderer)
        self.args = args
        self.model_args = model_args
        self.renderer = renderer
        self._started = time.monotonic()
        self._numbers = itertools.count(1)
        engine = engine or _engine_around(args, model, renderer)
        defaults = _honoured(generation_defaults or checkpoint_defaults(model), engine)
        # What is switched on in a model of PEFT's answers requests that choose nothing.
        self._generation_defaults = replace(defaults, adapter=engine.adapter)
        check_adapter(engine, args.adapter)
        self._loop = EngineLoop(engine, renderer)
        self._intake = Intake(self._loop, renderer, lambda: (self.args, self._generation_defaults))

    # ---- the interface of the seed --------------------------------------------------------------------------------

    async def generate(
        self,
        messages: Sequence[Message] | str,
        tools: str | Sequence[Mapping[str, Any]] | None = None,
        *,
        fetch_media: bool = False,
        **params: Any,
    ) -> AsyncGenerator[str, None]:
        """Answer a conversation. Closing the generator early aborts the request.

        Args:
            messages: in the v1 or the common form, or a plain string for one user turn. Images, videos and sounds are
                paths, ``file:`` or ``data:`` URLs.
            tools: the tools on offer, as JSON text or as a list of objects.
            fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
            **params: sampling parameters, see ``config.sampling.SamplingParams``.

        Yields:
            The answer's text as it comes, in non-empty pieces of whole characters.

        Raises:
            RequestError: the request failed, or (RenderError) a file of the messages' cannot be read.
            InvalidParameter: a parameter that does not exist or is out of range.
        """
        prompt = ChatPrompt(with_media_read(to_v1(messages), fetch=fetch_media), tools_text(tools))
        events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        job = self._job(prompt, sampling_params(params).given(), INTERACTIVE, events)
        self._intake.submit([job])
        try:
            async for event in _until_finished(events):
                if isinstance(event, RequestOutput) and event.text:
                    yield event.text
        finally:
            self._intake.abort(job.request_id)

    async def batch_infer(self, dataset: Dataset, *, fetch_media: bool = False, **params: Any) -> list[Sample]:
        """Answer every sample of a data set; the engine batches them.

        Args:
            dataset: a list, a torch map-style or iterable dataset, a ``datasets.Dataset``, a ``DataEngine``.
            fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
            **params: sampling parameters of all rows; ``seed`` seeds the run.

        Returns:
            One Sample a row (a row and sample, with ``num_return_sequences`` above 1), in order. A row that cannot be
            answered carries its error in ``generation``.
        """
        given = sampling_params(params).given()
        samples = given.pop("num_return_sequences", None) or self.args.num_return_sequences or 1
        run_seed = given.pop("seed", self.args.seed)
        if run_seed is None:
            run_seed = secrets.randbelow(2**32)
        rows = rows_from_dataset(dataset)
        results = await self.answer_rows(rows, given, samples=samples, run_seed=run_seed, fetch_media=fetch_media)
        return [cast(Sample, output_row(result, samples)) for result in results]

    async def answer_rows(
        self, rows: Iterable[Row], given: Mapping[str, Any], *, samples: int, run_seed: int, fetch_media: bool = False
    ) -> list[RowResult]:
        """Answer rows; the engine batches them.

        Args:
            given: sampling parameters of all rows, checked.
            samples: answers per row.
            run_seed: from which, with a row's index, the seed of each answer follows.
            fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.

        Returns:
            In order, for each row as many as there are samples.
        """
        room = asyncio.Semaphore(MAX_ROWS_AHEAD)
        media_room = asyncio.Semaphore(MAX_MEDIA_ROWS)
        tasks: list[asyncio.Task[RowResult]] = []

        async def answer(row: Row, sample: int, params: Mapping[str, Any]) -> RowResult:
            async with media_room if has_media(row.messages) else contextlib.nullcontext():
                return await self._answer(row, sample, params, fetch_media)

        async with asyncio.TaskGroup() as group:
            for row in with_checked_params(rows, given, samples):
                for sample in range(samples):
                    await room.acquire()
                    seed = row_seed(run_seed, row.index, sample)
                    tasks.append(group.create_task(answer(row, sample, request_params(given, row, sample, seed))))
                    tasks[-1].add_done_callback(lambda _: room.release())
        return [task.result() for task in tasks]

    async def _answer(self, row: Row, sample: int, params: Mapping[str, Any], fetch_media: bool) -> RowResult:
        result = RowResult(row, sample, params["seed"], error=row.error)
        if row.error is not None:
            return result
        try:
            messages = with_media_read(row.messages, folder=row.folder, fetch=fetch_media)
        except RenderError as error:
            result.error = error
            return result
        events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        job = self._job(ChatPrompt(messages, row.tools, row.template_options), params, BATCH, events, parse=True)
        self._intake.submit([job])
        texts: list[str] = []
        logprobs: list[TokenLogprobs] = []
        prompt_tokens = 0
        try:
            async for event in _until_finished(events):
                if isinstance(event, Admitted):
                    prompt_tokens = len(event.prompt_ids)
                if not isinstance(event, RequestOutput):
                    continue
                texts.append(event.text)
                logprobs += event.logprobs or ()
                if event.finish_reason is not None:
                    result.answer = Answer(
                        "".join(texts),
                        event.finish_reason,
                        prompt_tokens,
                        event.completion_tokens,
                        params["seed"],
                        event.message,
                        logprobs or None,
                    )
        except SamplerPoolError as error:
            result.error = error
        finally:
            self._intake.abort(job.request_id)
        return result

    def _job(
        self,
        prompt: ChatPrompt,
        params: Mapping[str, Any],
        priority: int,
        events: asyncio.Queue[RequestEvent],
        *,
        parse: bool = False,
    ) -> Job:
        loop = asyncio.get_running_loop()

        def put(new: Sequence[RequestEvent]) -> None:
            for event in new:
                events.put_nowait(event)

        def listener(new: Sequence[RequestEvent]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(put, new)

        return Job((LOCAL_CLIENT, next(self._numbers)), prompt, params, priority, listener, parse)

    # ---- for the worker's server ----------------------------------------------------------------------------------

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs from any thread; their listeners get the events."""
        self._intake.submit(jobs)

    def abort_request(self, request_id: RequestId) -> None:
        """Drop the request with this ``request_id`` wherever it is; nothing more is reported of it."""
        self._intake.abort(request_id)

    @property
    def steps(self) -> int:
        """The engine's steps since the start."""
        return self._loop.steps

    def progress(self) -> tuple[int, bool]:
        """A number that moves while anything does here, prompts being rendered included; and whether there is work."""
        return self._loop.steps + self._intake.prepared, self._loop.busy or self._intake.queued() > 0

    @property
    def breaks(self) -> int:
        """Steps of the engine in a row that raised, without one between them that yielded anything."""
        return self._loop.breaks

    def describe(self) -> dict[str, Any]:
        """Figures for ``status``, as plain values."""
        stats = self._loop.stats()
        return {
            "engine": self._loop.engine.name,
            "max_model_len": self._loop.engine.max_model_len,
            "max_batch": self._loop.engine.max_batch,
            "adapters": list(self._loop.engine.adapters),
            "answer_tags": {kind: list(pair) for kind, pair in self.renderer.answer_tags.items()},
            "hidden_tags": list(self.renderer.hidden_tags),
            "running": stats.running,
            "queued": stats.queued + self._intake.queued(),
            "tokens_per_s": round(self._loop.tokens_per_s(), 1),
            "tokens": self._loop.tokens_done,
            "steps": self._loop.steps,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "defaults": {name: v for name, v in self.args.given().items() if name in PARAMS},
            **stats.details,
        }

    def close(self) -> None:
        """Abort what runs and free the engine. Idempotent."""
        self._intake.close()
        self._loop.close()


async def _until_finished(events: asyncio.Queue[RequestEvent]) -> AsyncGenerator[RequestEvent, None]:
    """The events of one request up to its last; its error is raised."""
    while True:
        event = await events.get()
        if isinstance(event, RequestOutput) and event.error is not None:
            raise event.error
        yield event
        if isinstance(event, RequestOutput) and event.finish_reason is not None:
            return


def _honoured(defaults: SamplingParams, engine: Engine) -> SamplingParams:
    """What the engine can do of a checkpoint's own wishes; a request's wish is refused instead."""
    given = defaults.given()
    for name in sorted(set(given) - engine.supported):
        log.warning(
            "the checkpoint asks for %s=%r, which the %s engine cannot do; it is left out",
            name,
            given.pop(name),
            engine.name,
        )
    return sampling_params(given)


def checkpoint_defaults(model: Any) -> SamplingParams:
    """What a loaded model's ``generation_config`` says of our parameters."""
    if model is None or getattr(model, "generation_config", None) is None:
        return SamplingParams()
    from samplerpool.model.model_engine import generation_defaults

    return generation_defaults(model.generation_config)


def _check_kinds(args: Any, model: Any, renderer: Any) -> None:
    """Groups of arguments are not mappings here, and a tokenizer is not a renderer yet: both are easily confused."""
    problems = []
    if not isinstance(args, SampleArguments):
        problems.append(f"args must be SampleArguments(...), not {type(args).__name__}.")
    if model is not None and not hasattr(renderer, "codec"):
        problems.append(f"renderer must be a Renderer, such as Renderer(tokenizer), not {type(renderer).__name__}.")
    if problems:
        raise InvalidParameter(" ".join(problems))


def _engine_around(args: SampleArguments, model: Any, renderer: PromptRenderer) -> Engine:
    from samplerpool.engine.factory import build_engine

    engine = "auto" if args.sample_backend == "hf" else args.sample_backend
    device = "cpu" if model is None else str(model.device)
    return build_engine(EngineConfig(engine=engine, device=device), model, renderer)
