"""Asking the sampler for the answers of one request, and putting together what comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from samplerpool.data.answers import Answer
from samplerpool.gateway.answers import Heading
from samplerpool.gateway.events import ChatChoice, Events, TextChoice
from samplerpool.gateway.logprobs import Pieces, token_ids_in
from samplerpool.gateway.requests import Asked
from samplerpool.gateway.service import Gateway
from samplerpool.samplers.async_sampler import AnswerStream, OnWait
from samplerpool.types import FinishReason, TokenLogprobs


def streams_of(gateway: Gateway, asked: Asked, adapter: str | None, on_wait: OnWait) -> list[AnswerStream]:
    """The streams of all answers, not begun yet.

    Args:
        adapter: that is to answer; None for the pool's default.
        on_wait: told when an answer waits for a worker, and when it goes on elsewhere.

    Raises:
        RenderError, InvalidParameter: the request is wrong.
    """
    sampler = gateway.sampler
    extra = {} if adapter is None else {"adapter": adapter}
    if asked.chat:
        return [
            sampler.generate(
                asked.messages,
                asked.tools,
                template_options=asked.template_options,
                fetch_media=gateway.settings.fetch_media,
                prefill=asked.prefill,
                on_wait=on_wait,
                **{**params, **extra},
            )
            for params in asked.params
        ]
    prompts = [prompt for prompt in asked.prompts for _ in range(asked.per_prompt)]
    return [
        sampler.complete(prompt, on_wait=on_wait, **{**params, **extra})
        for prompt, params in zip(prompts, asked.params, strict=True)
    ]


async def merged(streams: Sequence[AnswerStream]) -> AsyncGenerator[tuple[int, str | None], None]:
    """What comes of several streams, as it comes.

    Yields:
        A stream's number and a piece of its text, or None when it has ended.

    Raises:
        RequestError, WorkerDied: one has failed. The others are aborted then, as when this is closed.
    """
    if len(streams) == 1:
        async with streams[0] as stream:
            async for piece in stream:
                yield 0, piece
            yield 0, None
        return
    came: asyncio.Queue[tuple[int, str | Exception | None]] = asyncio.Queue()

    async def pump(number: int, stream: AnswerStream) -> None:
        try:
            async with stream:
                async for piece in stream:
                    came.put_nowait((number, piece))
            came.put_nowait((number, None))
        except Exception as error:
            came.put_nowait((number, error))

    pumps = [asyncio.create_task(pump(*each)) for each in enumerate(streams)]
    left = len(pumps)
    try:
        while left:
            number, news = await came.get()
            if isinstance(news, Exception):
                raise news
            left -= news is None
            yield number, news
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def answer_of(stream: AnswerStream, asked: Asked) -> Answer:
    """What came of a stream that has ended, as far as it was asked for."""
    told = stream.answer
    return Answer(
        told.text,
        cast(FinishReason, told.finish_reason),
        told.prompt_tokens,
        told.completion_tokens,
        told.seed or 0,
        told.message,
        told.logprobs if asked.logprobs else None,
    )


class EventWriter:
    """Makes the events of a response that is streamed."""

    def __init__(self, gateway: Gateway, asked: Asked, heading: Heading, streams: Sequence[AnswerStream]) -> None:
        self._gateway, self._asked, self._heading, self._streams = gateway, asked, heading, streams
        self._events = Events(heading, include_usage=asked.include_usage)
        self._choices: list[ChatChoice | TextChoice | None] = [None] * len(streams)
        self._told = [0] * len(streams)

    def begin(self) -> bytes:
        """What comes before all answers. Clients (``openai``'s) count on the first choice to be named first."""
        return b"".join(self._events.begin(number, echo(self._asked, number)) for number in range(self._asked.answers))

    async def event(self, number: int, piece: str | None) -> bytes:
        """The events that a piece makes, or the end of an answer (None)."""
        choice = self._choices[number]
        if choice is None:
            choice = self._choices[number] = self._choice(number)
        if self._asked.logprobs:
            entries, pieces = await self._new_entries(number)
        else:
            entries, pieces = (), None
        if piece is None:
            return choice.end(answer_of(self._streams[number], self._asked), entries, pieces)
        return choice.feed(piece, entries, pieces)

    def last(self) -> bytes:
        """What follows when all answers have ended."""
        answers = [answer_of(stream, self._asked) for stream in self._streams]
        return self._events.last(answers, max(1, len(self._asked.prompts)))

    def _choice(self, number: int) -> ChatChoice | TextChoice:
        if not self._asked.chat:
            return TextChoice(self._events, number)
        return ChatChoice(
            self._events,
            self._heading,
            number,
            tags=self._gateway.tags,
            reasoning_open=self._streams[number].answer.reasoning_open,
            hidden=self._gateway.hides_parts(tools=self._asked.tools is not None),
        )

    async def _new_entries(self, number: int) -> tuple[Sequence[TokenLogprobs], Pieces]:
        entries = self._streams[number].answer.logprobs_behind(self._told[number])
        self._told[number] += len(entries)
        return entries, await self._gateway.pieces(token_ids_in(entries))


def echo(asked: Asked, number: int) -> str:
    """What the text of an answer begins with."""
    return str(asked.prompts[number // asked.per_prompt]) if asked.echo else ""
