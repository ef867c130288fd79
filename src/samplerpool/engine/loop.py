"""The thread that drives an engine: takes requests, steps, makes text of the tokens, hands the outputs on."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samplerpool.engine.answer import NOTHING, Answer, Beginning
from samplerpool.engine.base import Engine, EngineRequest, EngineStats, PromptRenderer, RequestId, StepOutput
from samplerpool.engine.detokenizer import Detokenizer
from samplerpool.errors import Aborted, EngineBroken, EngineError, SamplerPoolError
from samplerpool.types import FinishReason, Message, PromptCount, RenderedPrompt, TokenLogprobs

log = logging.getLogger(__name__)

RATE_WINDOW_S = 5.0
CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True)
class RequestOutput:
    """What a step gave one request, with its text.

    Args:
        index: position of the first of ``token_ids`` among all generated tokens.
        text: what may be shown now; it may lag behind the tokens.
        finish_reason: set on the last output, never followed by another.
        completion_tokens: generated so far, these included.
        message: with the last output, the parsed answer, where that was asked for.
        logprobs: one a token, where that was asked for.
    """

    request_id: RequestId
    index: int
    token_ids: Sequence[int]
    text: str
    finish_reason: FinishReason | None = None
    error: SamplerPoolError | None = None
    completion_tokens: int = 0
    message: Message | None = None
    logprobs: Sequence[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request is valid and goes to the engine; first of its events.

    Args:
        prompt_ids, seed: with the parameters, all it takes to produce the answer again.
        reasoning_open: the answer begins inside its reasoning.
    """

    request_id: RequestId
    prompt_ids: Sequence[int]
    seed: int
    reasoning_open: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The request is valid, and no answer to it was asked for; last of its events.

    Args:
        told: what was asked for instead.
    """

    request_id: RequestId
    told: PromptCount | RenderedPrompt

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self.told.prompt_tokens if isinstance(self.told, PromptCount) else len(self.told.token_ids)


RequestEvent = Admitted | Prepared | RequestOutput

Listener = Callable[[Sequence[RequestEvent]], None]
"""Called with the events of one step, mostly on the engine's thread; must be quick and must not raise."""


class _Live:
    """A request that has not ended, as the loop sees it."""

    __slots__ = ("answer", "count", "detokenizer", "listener", "reasoning_open", "request")

    def __init__(
        self,
        request: EngineRequest,
        detokenizer: Detokenizer,
        listener: Listener,
        answer: Answer | None,
        reasoning_open: bool,
    ) -> None:
        self.request = request
        self.detokenizer = detokenizer
        self.listener = listener
        self.count = len(request.generated_ids)
        self.answer = answer  # kept where it will be parsed
        self.reasoning_open = reasoning_open


class EngineLoop:
    """Runs an engine on a thread of its own.

    Every submitted request gets exactly one output with a finish reason, unless it is aborted, after which it gets
    none. If a step raises, all requests in the engine end with ``EngineBroken`` and the loop goes on; ``breaks`` tells
    whether that was of any use.

    Args:
        engine: driven by this loop's thread alone from now on.
        renderer: decodes its tokens, and parses the answers where that is asked for.

    ``breaks`` counts steps in a row that raised, without one between them that yielded anything.
    """

    def __init__(self, engine: Engine, renderer: PromptRenderer) -> None:
        self.engine = engine
        self._working = False
        self._renderer = renderer
        self._live: dict[RequestId, _Live] = {}
        self._commands: deque[_Live | RequestId] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._closing = False
        self.breaks = 0
        self._tokens_done = 0
        self._rate_marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._thread = threading.Thread(target=self._run, name="samplerpool-engine", daemon=True)
        self._thread.start()

    # ---- from any thread ------------------------------------------------------------------------------------------

    def submit(
        self,
        request: EngineRequest,
        listener: Listener,
        *,
        delivered_chars: int = 0,
        parse: bool = False,
        beginning: Beginning = NOTHING,
    ) -> None:
        """Take a checked request. ``listener`` gets ``Admitted``, then outputs in the order of their tokens.

        Args:
            delivered_chars: of a continuation, how much of its text was delivered.
            parse: the last output shall have the parsed answer.
            beginning: what the prompt holds of the answer.
        """
        params = request.params
        detokenizer = Detokenizer(
            self._renderer.codec,
            params.stop or (),
            skip_special_tokens=params.skip_special_tokens is not False,
            generated_ids=request.generated_ids,
            delivered_chars=delivered_chars,
            context_ids=beginning.token_ids,
        )
        answer = Answer(request, self._renderer, detokenizer.delivered, beginning) if parse else None
        self._commands.append(_Live(request, detokenizer, listener, answer, beginning.reasoning_open))
        self._wake.put(None)

    def abort(self, request_id: RequestId) -> None:
        """Drop a request before the next step; unknown ids are ignored."""
        self._commands.append(request_id)
        self._wake.put(None)

    def stats(self) -> EngineStats:
        """The engine's own figures."""
        return self.engine.stats()

    def tokens_per_s(self) -> float:
        """Generated tokens per second over the last few seconds."""
        marks = self._rate_marks
        since, count = marks[0]
        elapsed = time.monotonic() - since
        return (self._tokens_done - count) / elapsed if elapsed > 0 else 0.0

    @property
    def steps(self) -> int:
        """The engine's own count."""
        return self.engine.steps

    @property
    def busy(self) -> bool:
        """Whether there is something to do, or being done."""
        return self._working or bool(self._commands)

    @property
    def tokens_done(self) -> int:
        """Tokens generated since the start."""
        return self._tokens_done

    def close(self) -> None:
        """End the thread after the present step, fail what is left, close the engine. Idempotent."""
        self._closing = True
        self._wake.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    # ---- the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._intake()
            self._working = self.engine.has_work()
            if self._working:
                self._deliver(self._step())
            else:
                self._mark_rate()
                with contextlib.suppress(queue.Empty):
                    self._wake.get(timeout=RATE_WINDOW_S)
        self._intake()
        self._fail_all(Aborted("The worker has stopped."))
        self.engine.close()

    def _intake(self) -> None:
        while not self._wake.empty():
            self._wake.get()
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, _Live):
                request = command.request
                self._live[request.request_id] = command
                seed = request.params.seed or 0
                command.listener([Admitted(request.request_id, request.prompt_ids, seed, command.reasoning_open)])
                if (reason := self._complete(command)) is not None:
                    self._deliver([StepOutput(request.request_id, (), reason)])
                else:
                    self._add(request)
            elif self._live.pop(command, None) is not None:
                self.engine.abort(command)

    def _complete(self, live: _Live) -> FinishReason | None:
        """How a continuation has ended, where its tokens lack nothing but the word that they are all."""
        generated_ids, params = live.request.generated_ids, live.request.params
        if not generated_ids:
            return None
        ends = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else self._renderer.codec.eos_token_ids)}
        if live.detokenizer.stopped or generated_ids[-1] in ends:
            return "stop"
        full = params.max_new_tokens is not None and len(generated_ids) >= params.max_new_tokens
        return "length" if full else None

    def _add(self, request: EngineRequest) -> None:
        try:
            self.engine.add(request)
        except Exception as error:
            log.exception("the engine did not take request %d.%d", *request.request_id)
            failure = EngineError(f"The engine raised {type(error).__name__}: {error}")
            self._deliver([StepOutput(request.request_id, (), "error", failure)])

    def _step(self) -> list[StepOutput]:
        try:
            outputs = self.engine.step()
        except Exception as error:
            log.exception("the engine raised in a step; its %d requests fail", len(self._live))
            self.breaks += 1
            self._fail_all(EngineBroken(f"The engine raised {type(error).__name__} in a step: {error}"))
            return []
        if outputs:
            self.breaks = 0
            self._mark_rate()
        return outputs

    def _fail_all(self, error: SamplerPoolError) -> None:
        for request_id in self._live:
            with contextlib.suppress(Exception):  # the engine may be broken
                self.engine.abort(request_id)
        self._deliver([StepOutput(request_id, (), "error", error) for request_id in self._live])

    def _deliver(self, outputs: list[StepOutput]) -> None:
        by_listener: dict[Listener, list[RequestEvent]] = {}
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:
                continue
            results = by_listener.get(live.listener)
            if results is None:
                results = by_listener[live.listener] = []
            results.append(self._guarded(live, output))
        for listener, results in by_listener.items():
            listener(results)

    def _guarded(self, live: _Live, output: StepOutput) -> RequestOutput:
        """The output with its text; what goes wrong in making it costs this request alone."""
        try:
            return self._with_text(live, output)
        except Exception as error:
            log.exception("the text of request %d.%d could not be made", *output.request_id)
            if self._live.pop(output.request_id, None) is not None and output.finish_reason is None:
                self.engine.abort(output.request_id)
            failure = EngineError(f"Making the text raised {type(error).__name__}: {error}")
            return RequestOutput(output.request_id, live.count, (), "", "error", failure)

    def _with_text(self, live: _Live, output: StepOutput) -> RequestOutput:
        reason, detokenizer = output.finish_reason, live.detokenizer
        index, before = live.count, detokenizer.count
        text = detokenizer.add(output.token_ids)
        taken = detokenizer.count - before  # an engine may be some tokens beyond a stop string
        live.count += taken
        self._tokens_done += taken
        if reason is not None:
            if reason != "error":  # what is held back may be continued elsewhere, and is then no end of a text
                text += detokenizer.finish()
            del self._live[output.request_id]
        elif detokenizer.stopped:
            reason = "stop"
            self.engine.abort(output.request_id)
            del self._live[output.request_id]
        if reason == "length" and detokenizer.stopped:
            reason = "stop"
        token_ids, logprobs = output.token_ids[:taken], output.logprobs and output.logprobs[:taken]
        message = None
        if live.answer is not None:
            live.answer.add(token_ids, text)
            message = live.answer.message() if reason in ("stop", "length") else None
        return RequestOutput(
            output.request_id, index, token_ids, text, reason, output.error, live.count, message, logprobs
        )

    def _mark_rate(self) -> None:
        now = time.monotonic()
        marks = self._rate_marks
        if now - marks[-1][0] >= RATE_WINDOW_S / 10:
            marks.append((now, self._tokens_done))
        while len(marks) > 1 and now - marks[1][0] > RATE_WINDOW_S:
            marks.popleft()
