"""One request for answers over HTTP, from its headers to its last event. The shell around what the others decide."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from contextlib import aclosing
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from samplerpool.data.answers import Answer
from samplerpool.data.json_text import from_json, to_json
from samplerpool.errors import SamplerPoolError
from samplerpool.gateway.admission import check_host
from samplerpool.gateway.answering import EventWriter, answer_of, echo, merged, streams_of
from samplerpool.gateway.answers import Heading, response, usage
from samplerpool.gateway.events import broken_off
from samplerpool.gateway.figures import ANSWERED, DISCONNECTED
from samplerpool.gateway.logprobs import token_ids_in
from samplerpool.gateway.problems import Problem, problem_of, unavailable
from samplerpool.gateway.requests import Asked, read_chat, read_completion
from samplerpool.gateway.service import Gateway, Stoppable

log = logging.getLogger("samplerpool.gateway")

_FAREWELL_S = 5.0
"""How long a client that does not read may keep us with the news that it gets no more."""
_MAX_ERROR_CHARS = 300

Value = TypeVar("Value")


class AnswerEndpoint:
    """Where answers are asked for: an application of its own, since it watches its client while it answers.

    Args:
        chat: ``/v1/chat/completions``, or else ``/v1/completions``.
    """

    def __init__(self, gateway: Gateway, *, chat: bool) -> None:
        self._gateway = gateway
        self._chat = chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await _Exchange(self._gateway, self._chat, scope, receive, send).run()


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _ClientLeft(Exception):
    """There is nobody to tell anything."""


class _Exchange:
    def __init__(self, gateway: Gateway, chat: bool, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway, self._chat = gateway, chat
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = Headers(scope=scope)
        self._began = time.monotonic()
        self._heading = Heading(chat, secrets.token_hex(12), int(time.time()), "")
        self._started = False
        self._first_token_s: float | None = None
        self._answers: list[Answer] = []
        self._prompts = 1
        self._key = ""

    async def run(self) -> None:
        """Answer, or say why not."""
        problem: Problem | None = None
        try:
            problem = await self._answered()
        except _ClientLeft:
            pass
        except SamplerPoolError as error:
            prompt = "messages" if self._chat else "prompt"
            problem = problem_of(error, self._gateway.places.retry_after_s, prompt)
        except _Refused as refused:
            problem = refused.problem
        except Exception as error:
            log.exception("request=%s failed", self._heading.id)
            problem = problem_of(error)
        else:
            if problem is None:
                self._ended(ANSWERED, 200, "")
                return
        if problem is None:
            self._ended(DISCONNECTED, 499, "")
            return
        self._ended(problem.code, problem.status, problem.message)
        await self._tell(problem)

    async def _answered(self) -> Problem | None:
        self._key = _or_refused(self._gateway.keys.name(self._headers.get("authorization")))
        if self._gateway.settings.local_only:
            _or_refused(check_host(self._headers.get("host")))
        asked = await self._asked()
        catalog = self._gateway.catalog
        adapter = _or_refused(catalog.adapter(asked.model, asked.params[0].get("adapter")))
        self._heading = Heading(self._chat, self._heading.name, self._heading.created, asked.model or catalog.model)
        self._prompts = max(1, len(asked.prompts))
        places, began = self._gateway.places, time.monotonic()
        _or_refused(places.enter(asked.answers))
        self._gateway.figures.in_flight(places.taken)
        try:
            return await self._within_limits(asked, adapter)
        finally:
            places.leave(asked.answers, time.monotonic() - began)
            self._gateway.figures.in_flight(places.taken)

    async def _asked(self) -> Asked:
        """What the request asks. It has a place while its body comes: so many bodies are in memory, and no more."""
        places = self._gateway.places
        _or_refused(places.enter(1))
        try:
            read = read_chat if self._chat else read_completion
            return read(_json(await self._body()), self._gateway.rules)
        finally:
            places.leave(1)

    async def _within_limits(self, asked: Asked, adapter: str | None) -> Problem | None:
        """Answer, as long as there is time, somebody to be answered, and a server."""
        limit_s = self._gateway.settings.request_timeout_s
        running, stoppable = self._gateway.running, Stoppable(limit_s)
        running.add(stoppable)
        watching = asyncio.create_task(self._watch(stoppable))
        try:
            async with stoppable:
                await (self._streamed if asked.stream else self._whole)(asked, adapter)
        except TimeoutError:
            if stoppable.reason == "gone":
                raise _ClientLeft from None
            if stoppable.reason == "stopping":
                return unavailable("The server is being stopped, and could not wait for the end of this answer.")
            return Problem(504, f"The answer took longer than the {limit_s:g} s that this server allows.", "timeout")
        finally:
            running.discard(stoppable)
            watching.cancel()
        return None

    async def _watch(self, stoppable: Stoppable) -> None:
        """All of the request has come: what comes next is that the client leaves."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        stoppable.stop("gone")

    # ---- the request ----------------------------------------------------------------------------------------------

    async def _body(self) -> bytes:
        most = self._gateway.settings.max_body_bytes
        if self._headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A web page could have a reader's browser send anything else without having been allowed to.
            raise _Refused(Problem(415, "The header Content-Type must be application/json.", "unsupported_media_type"))
        length = self._headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        parts: list[bytes] = []
        got, more = 0, True
        try:
            async with asyncio.timeout(self._gateway.settings.body_timeout_s):
                while more and max(size, got) <= most:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientLeft
                    parts.append(message.get("body", b""))
                    got, more = got + len(parts[-1]), message.get("more_body", False)
        except TimeoutError:
            raise _Refused(Problem(408, "The request's body did not come in time.", "timeout")) from None
        if max(size, got) > most:
            raise _Refused(Problem(413, f"The body is larger than the {most:,} bytes that are allowed.", "too_large"))
        return b"".join(parts)

    # ---- the answer -----------------------------------------------------------------------------------------------

    async def _whole(self, asked: Asked, adapter: str | None) -> None:
        streams = streams_of(self._gateway, asked, adapter, self._waits)
        async with aclosing(merged(streams)) as pieces:
            async for _ in pieces:
                self._something_came()
        self._answers = [answer_of(stream, asked) for stream in streams]
        entries = [entry for answer in self._answers for entry in answer.logprobs or ()]
        texts = await self._gateway.pieces(token_ids_in(entries)) if entries else {}
        begun = [echo(asked, number) for number in range(asked.answers)]
        body = response(self._heading, self._answers, self._prompts, texts, begun)
        await self._respond(200, to_json(body), {})

    async def _streamed(self, asked: Asked, adapter: str | None) -> None:
        streams = streams_of(self._gateway, asked, adapter, self._waits)
        writer = EventWriter(self._gateway, asked, self._heading, streams)
        async with aclosing(merged(streams)) as pieces:
            async for number, piece in pieces:
                self._something_came()
                events = await writer.event(number, piece)
                if not self._started:
                    await self._start_stream()
                    events = writer.begin() + events
                if events:
                    await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self._answers = [answer_of(stream, asked) for stream in streams]
        await self._send({"type": "http.response.body", "body": writer.last(), "more_body": False})

    def _something_came(self) -> None:
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._began

    async def _start_stream(self) -> None:
        self._started = True
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # a proxy (nginx) is to pass events on as they come
            "x-request-id": self._request_id,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _tell(self, problem: Problem) -> None:
        """Say why there is no answer, or none any more."""
        if not self._started:
            await self._respond(problem.status, to_json(problem.body()), problem.headers)
            return
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._send({"type": "http.response.body", "body": broken_off(problem), "more_body": False})
        except TimeoutError:
            pass

    async def _respond(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._started = True
        headers = {**headers, "x-request-id": self._request_id}
        await Response(body, status, headers, "application/json")(self._scope, self._receive, self._send)

    @property
    def _request_id(self) -> str:
        return f"req_{self._heading.name}"

    # ---- what is noted of it --------------------------------------------------------------------------------------

    def _waits(self, text: str) -> None:
        if self._gateway.settings.access_log != "none":
            log.warning("request=%s %s", self._heading.id, text)

    def _ended(self, outcome: str, status: int, error: str) -> None:
        total_s = time.monotonic() - self._began
        endpoint = "chat" if self._chat else "completions"
        told = usage(self._answers, self._prompts) if self._answers else {}
        self._gateway.figures.ended(endpoint, outcome, total_s, self._first_token_s)
        if outcome == ANSWERED:
            self._gateway.figures.tokens(endpoint, told["prompt_tokens"], told["completion_tokens"])
        failed, which = status >= 500, self._gateway.settings.access_log
        if which == "none" or (which == "errors" and not failed):
            return
        fields = {"request": self._heading.id, "outcome": outcome, "status": status, "key": self._key or None, **told}
        fields.pop("total_tokens", None)
        if self._first_token_s is not None:
            fields["first_token_ms"] = f"{self._first_token_s * 1000:.1f}"
        fields["total_ms"] = f"{total_s * 1000:.1f}"
        if error and failed:  # what is wrong with a request may be said with its own words
            fields["error"] = json.dumps(error[:_MAX_ERROR_CHARS], ensure_ascii=False)
        line = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        log.log(logging.WARNING if failed else logging.INFO, "%s", line)


def _json(body: bytes) -> object:
    try:
        return from_json(body)
    except RecursionError:
        raise _Refused(Problem(400, "The body is nested too deep.", "invalid_json")) from None
    except ValueError as error:
        raise _Refused(Problem(400, f"The body is not valid JSON: {error}.", "invalid_json")) from None


def _or_refused(value: Value | Problem) -> Value:
    if isinstance(value, Problem):
        raise _Refused(value)
    return value
