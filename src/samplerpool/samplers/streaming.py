"""What ``SyncSampler`` does with single conversations: answers as streams, their continuation, prompts as tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from samplerpool.client.answering import Answering, behind
from samplerpool.client.connection import PoolConnection
from samplerpool.client.continuation import ContinuedAnswer
from samplerpool.client.facts import WorkerFacts
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
from samplerpool.samplers.base_sampler import BaseSampler
from samplerpool.types import RenderedPrompt
from samplerpool.wire.messages import Prompt, TokenPrompt


class StreamingSampler(BaseSampler):
    """See the module's docstring. How it comes to its connection is its subclass's matter, which calls ``_converse``.

    ``worker_timeout_s`` is how long ``generate`` waits for a worker that is coming back when none is there.
    """

    worker_timeout_s = WORKER_TIMEOUT_S

    def _converse(self, connection: PoolConnection) -> None:
        self._answering = Answering(connection)
        self._last = threading.local()

    def generate(  # type: ignore[override]
        self,
        messages: Messages,
        tools: Tools = None,
        *,
        template_options: Mapping[str, Any] | None = None,
        fetch_media: bool = False,
        prefill: str = "",
        worker: int | None = None,
        on_wait: Callable[[str], None] | None = None,
        **params: Any,
    ) -> Generator[str, None, None]:
        """Answer a conversation. Closing the generator early, or an exception in its consumer, aborts the request.

        Args:
            messages: in the v1 or the common form, or a plain string for one user turn. Images, videos and sounds are
                paths (read here), ``file:`` or ``data:`` URLs.
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

        Yields:
            The answer's text as it comes, in non-empty pieces of whole characters. ``last`` tells afterwards how the
            request ended.

        If the worker dies, or cannot go on, another one goes on where it stopped, or the same one when it is back
        (waited for up to ``worker_timeout_s``): the text is the one that would have come.

        Raises:
            RequestError: the request failed, or (RenderError) a file of the messages' cannot be read.
            InvalidParameter: a parameter that does not exist or is out of range.
            UsageError: there is no such worker.
            WorkerDied: no worker is left, or this request has ended several; with ``data["text"]``, what was received.
        """
        prompt = with_files_read(chat_prompt(messages, tools, template_options, prefill), fetch_media)
        given = params_of_one_answer(params)
        self._answering.check_worker(worker)
        return self._stream(ContinuedAnswer(prompt, given), worker, on_wait)

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        worker: int | None = None,
        on_wait: Callable[[str], None] | None = None,
        **params: Any,
    ) -> Generator[str, None, None]:
        """Go on with a text, as a model without a chat template does. Nothing is put around it but what the tokenizer
        has for the beginning of one, and special tokens in it are such.

        Args:
            prompt: the text, or all of its token ids.
            worker: see ``generate``, and so ``on_wait`` and ``**params``.

        Yields:
            The text behind it, as it comes; see ``generate``.

        Raises:
            RenderError: it is no text, or has token ids that the model does not have.
            InvalidParameter, UsageError, RequestError, WorkerDied: see ``generate``.
        """
        answer = ContinuedAnswer(text_prompt(prompt), params_of_one_answer(params))
        self._answering.check_worker(worker)
        return self._stream(answer, worker, on_wait)

    def _stream(
        self, answer: ContinuedAnswer, worker: int | None, on_wait: Callable[[str], None] | None
    ) -> Generator[str, None, None]:
        self._last.answer = answer
        yield from self._answering.stream(answer, timeout_s=self.worker_timeout_s, worker=worker, on_wait=on_wait)

    def go_on(
        self,
        answer: ContinuedAnswer,
        more_tokens: int,
        *,
        worker: int | None = None,
        on_wait: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> Generator[str, None, None]:
        """Go on with an answer that ended because it had all the tokens it might have, or was stopped by closing its
        generator. The whole text is then the one that a larger ``max_new_tokens`` would have given.

        Args:
            answer: as ``last`` told it.
            more_tokens: so many more it may have.
            worker: see ``generate``, and so ``on_wait``.
            **changes: sampling parameters that are others from here on.

        Yields:
            The text behind ``answer.text``, as it comes. (What was cut off there, half a character say, comes whole.)
            ``last`` is then the whole answer. Nothing comes if the answer has ended by itself.

        Raises:
            PromptTooLong: the worker holds no more tokens.
            InvalidParameter: ``more_tokens`` is not a positive number, or a parameter is out of range.
            RequestError, UsageError, WorkerDied: see ``generate``.
        """
        whole = longer(answer, more_tokens, changes)
        self._answering.check_worker(worker)
        return behind(answer.text, self._stream(whole, worker, on_wait))

    @property
    def last(self) -> ContinuedAnswer | None:
        """This thread's latest answer of ``generate`` or ``go_on``: its text, tokens, seed, finish reason, all workers
        together."""
        return getattr(self._last, "answer", None)

    # ---- prompts as the model reads them ----------------------------------------------------------------------------

    def render(
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
        prompt = with_files_read(chat_prompt(messages, tools, template_options, prefill), fetch_media)
        return self._rendered(prompt, worker)

    def pieces(self, token_ids: Sequence[int], *, worker: int | None = None) -> list[str]:
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
            known.update(zip(some, self._rendered(TokenPrompt(some), worker).pieces, strict=True))
        return [known[token_id] for token_id in token_ids]

    def _rendered(self, prompt: Prompt, worker: int | None) -> RenderedPrompt:
        self._answering.check_worker(worker)
        return self._answering.rendered(prompt, timeout_s=self.worker_timeout_s, worker=worker)

    def workers(self, timeout_s: float = FACTS_TIMEOUT_S) -> list[WorkerFacts]:
        """What the workers tell of themselves now: models, limits, what they are at. One round trip to all of them.

        Args:
            timeout_s: after so long, whoever has not answered is shown as it was, with ``answered`` false.

        Returns:
            One ``WorkerFacts`` a worker of this sampler's, those that are not up included.

        Raises:
            UsageError: the sampler is closed.
        """
        return self._answering.facts(timeout_s)
