"""The thread that turns prompts into checked engine requests, so that rendering never delays a step or a reply."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from samplerpool.config.sampling import SamplingParams, resolve, sampling_params
from samplerpool.data.media import has_media
from samplerpool.engine.answer import Beginning
from samplerpool.engine.base import Codec, EngineRequest, Media, PromptRenderer, RequestId
from samplerpool.engine.loop import EngineLoop, Listener, Prepared, RequestEvent, RequestOutput
from samplerpool.errors import Aborted, EngineError, PromptTooLong, RenderError, SamplerPoolError
from samplerpool.types import PromptCount, RenderedPrompt
from samplerpool.wire.messages import ChatPrompt, Prompt, Purpose, TextPrompt, TokenPrompt

log = logging.getLogger(__name__)

SLACK = 64
"""Dropped jobs that may lie about."""
TEXT_CONTEXT = 8
"""Tokens of a text that tell how the next one is to be read."""
MAX_ESCAPED = 8
"""Special tokens in one request's messages that are told of."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request as it came in.

    Args:
        params: what the caller gave, unchecked.
        listener: gets ``Admitted`` and then the outputs, or one output with an error.
        parse: parse the answer into a message.
        purpose: for another than an answer the listener gets ``Prepared`` instead, and the engine never hears of it.
    """

    request_id: RequestId
    prompt: Prompt
    params: Mapping[str, Any]
    priority: int
    listener: Listener
    parse: bool = False
    purpose: Purpose = "answer"


class Intake:
    """Renders and checks jobs on a thread of its own, interactive ones first, and passes them to the engine loop.

    Args:
        defaults: layers of parameters under the caller's own: launch defaults, then the checkpoint's.
    """

    def __init__(
        self, loop: EngineLoop, renderer: PromptRenderer, defaults: Callable[[], tuple[SamplingParams, ...]]
    ) -> None:
        self._loop = loop
        self._renderer = renderer
        self._defaults = defaults
        self._heap: list[tuple[int, int, Job]] = []
        self._waiting: set[RequestId] = set()
        self._order = itertools.count()
        self._changed = threading.Condition()
        self.prepared = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="samplerpool-intake", daemon=True)
        self._thread.start()

    def submit(self, jobs: list[Job]) -> None:
        """Queue jobs, from any thread. After ``close`` they are refused."""
        with self._changed:
            if not self._closing:
                for job in jobs:
                    self._waiting.add(job.request_id)
                    heapq.heappush(self._heap, (job.priority, next(self._order), job))
                self._changed.notify()
                return
        for job in jobs:
            _tell_stopped(job)

    def abort(self, request_id: RequestId) -> None:
        """Drop a job wherever it is now; nothing more is reported of it."""
        with self._changed:
            self._waiting.discard(request_id)
            if len(self._heap) > 2 * len(self._waiting) + SLACK:  # the dropped ones would wait for their turn
                self._heap = [entry for entry in self._heap if entry[2].request_id in self._waiting]
                heapq.heapify(self._heap)
            self._loop.abort(request_id)

    def queued(self) -> int:
        """Jobs that have not reached the engine."""
        return len(self._waiting)

    def close(self) -> None:
        """End the thread; what is queued ends with ``Aborted``. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            left = [job for _, _, job in self._heap if job.request_id in self._waiting]
            self._heap.clear()
            self._waiting.clear()
        for job in left:
            _tell_stopped(job)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._attend(job)
            except SamplerPoolError as error:
                self._tell(job, _refusal(job, error))
            except Exception as error:  # a fault in a template or a tokenizer costs this request alone
                log.exception("request %d.%d could not be prepared", *job.request_id)
                refused = EngineError(f"Preparing the request raised {type(error).__name__}: {error}")
                self._tell(job, _refusal(job, refused))
            self.prepared += 1

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                while self._heap and not self._closing:
                    job = heapq.heappop(self._heap)[2]
                    if job.request_id in self._waiting:
                        return job
                if self._closing:
                    return None
                self._changed.wait()

    def _attend(self, job: Job) -> None:
        if job.purpose == "render":
            self._tell(job, Prepared(job.request_id, self._shown(job.prompt)))
            return
        request = self._prepare(job)
        if job.purpose == "count":
            self._tell(job, Prepared(job.request_id, self._count(job, request)))
        else:
            self._pass_on(job, request)

    def _prepare(self, job: Job) -> EngineRequest:
        params = _with_token_ids(resolve(sampling_params(job.params), *self._defaults()), self._renderer.codec)
        prompt = job.prompt
        if not isinstance(prompt, TokenPrompt):
            prompt_ids, media = self._rendered(prompt)
            request = EngineRequest(job.request_id, prompt_ids, params, job.priority, media=media)
        else:
            request = EngineRequest(
                job.request_id,
                tuple(prompt.prompt_ids),
                params,
                job.priority,
                tuple(prompt.generated_ids),
                self._media_of(prompt),
            )
        self._loop.engine.check(request)
        return request

    def _count(self, job: Job, request: EngineRequest) -> PromptCount:
        prompt = job.prompt
        escaped: list[tuple[str, str]] = []
        if isinstance(prompt, ChatPrompt):
            escaped = self._renderer.escaped(prompt.messages, prompt.tools, prompt.options)[:MAX_ESCAPED]
        limit, most = self._loop.engine.max_model_len, request.params.max_new_tokens or 0
        return PromptCount(len(request.prompt_ids), most, limit, escaped)

    def _shown(self, prompt: Prompt) -> RenderedPrompt:
        """The prompt's tokens, of which there may be no more than an answer's request could have."""
        engine = self._loop.engine
        if not isinstance(prompt, TokenPrompt):
            token_ids, _ = self._rendered(prompt)
        else:
            token_ids = (*prompt.prompt_ids, *prompt.generated_ids)
        if len(token_ids) > (limit := engine.max_model_len):
            raise PromptTooLong(
                f"The prompt has {len(token_ids):,} tokens; the worker holds {limit:,}, and shows no more.",
                prompt_tokens=len(token_ids),
                limit=limit,
            )
        if (largest := max(token_ids, default=0)) >= engine.vocab_size:
            raise RenderError(f"The prompt has token id {largest}, and the model has {engine.vocab_size:,}.")
        return RenderedPrompt(token_ids, self._renderer.codec.pieces(token_ids))

    def _rendered(self, prompt: ChatPrompt | TextPrompt) -> tuple[tuple[int, ...], Media | None]:
        if isinstance(prompt, TextPrompt):
            return tuple(self._renderer.codec.encode_prompt(prompt.text)), None
        given = (prompt.messages, prompt.tools, prompt.options)
        if has_media(prompt.messages) and self._renderer.media_kinds:
            return self._renderer.media_prompt(*given, prompt.prefill)
        ids = self._renderer.prompt_ids(*given)
        return (*ids, *self._renderer.prefill_ids(prompt.prefill)) if prompt.prefill else ids, None

    def _beginning(self, prompt: Prompt, prompt_ids: tuple[int, ...]) -> Beginning:
        """What the prompt holds of the answer."""
        if isinstance(prompt, TextPrompt) or (isinstance(prompt, TokenPrompt) and prompt.goes_on):
            return Beginning(token_ids=prompt_ids[-TEXT_CONTEXT:])
        prefill = prompt.prefill
        begun = self._renderer.prefill_ids(prefill) if prefill else ()
        at = len(prompt_ids) - len(begun)
        if prompt_ids[at:] != begun:
            raise RenderError(
                "The token ids of this continuation do not end with the beginning (prefill) of its answer."
            )
        return Beginning(prefill, begun, self._renderer.reasoning_open(prompt_ids[:at], prefill))

    def _media_of(self, prompt: TokenPrompt) -> Media | None:
        """Of a continuation: token ids do not hold them, so they come once more with the messages they stood in."""
        if prompt.media is None:
            return None
        prompt_ids, media = self._rendered(prompt.media)
        if prompt_ids != tuple(prompt.prompt_ids):
            raise RenderError("The messages of this continuation are not rendered to its token ids; ask anew.")
        return media

    def _pass_on(self, job: Job, request: EngineRequest) -> None:
        if job.request_id not in self._waiting:
            return
        delivered = job.prompt.delivered_chars if isinstance(job.prompt, TokenPrompt) else 0
        # Without the lock: for a long continuation this takes its time, and the socket's thread must not wait for it.
        beginning = self._beginning(job.prompt, request.prompt_ids)
        self._loop.submit(request, job.listener, delivered_chars=delivered, parse=job.parse, beginning=beginning)
        with self._changed:
            if job.request_id in self._waiting:
                self._waiting.remove(job.request_id)
                return
        self._loop.abort(job.request_id)  # it was aborted before the loop knew of it

    def _tell(self, job: Job, end: RequestEvent) -> None:
        """End a job that does not reach the engine."""
        with self._changed:
            if job.request_id not in self._waiting:
                return
            self._waiting.remove(job.request_id)
            job.listener([end])


def _with_token_ids(params: SamplingParams, codec: Codec) -> SamplingParams:
    """The bad words as token ids: those of each text as it stands, and behind a space, as within a sentence."""
    if not any(isinstance(word, str) for word in params.bad_words or ()):
        return params
    words: dict[tuple[int, ...], None] = {}
    for word in params.bad_words or ():
        forms = [word] if isinstance(word, tuple) else [tuple(codec.encode(text)) for text in (word, f" {word}")]
        words.update(dict.fromkeys(form for form in forms if form))
    return replace(params, bad_words=tuple(words))


def _refusal(job: Job, error: SamplerPoolError) -> RequestOutput:
    return RequestOutput(job.request_id, 0, (), "", "error", error)


def _tell_stopped(job: Job) -> None:
    job.listener([_refusal(job, Aborted("The worker has stopped."))])
