"""What all requests share: the sampler, what is known of its workers, who is let in, the places, the figures."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samplerpool.client.facts import WorkerFacts
from samplerpool.errors import SamplerPoolError
from samplerpool.gateway.admission import Keys, Places
from samplerpool.gateway.catalog import Catalog
from samplerpool.gateway.figures import Figures
from samplerpool.gateway.health import Progress
from samplerpool.gateway.requests import Rules
from samplerpool.samplers.async_sampler import AsyncSampler
from samplerpool.samplers.opening import find_connection

log = logging.getLogger("samplerpool.gateway")

_LOOK_S = 5
_PATIENCE_S = 3.0
"""A worker on a machine that is busy may take a while to answer."""
_FRESH_S = 0.5
"""Whoever asks again so soon gets the same facts: anyone may ask for the health."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """How a gateway treats its clients. Names that end in ``_s`` are in seconds.

    Args:
        max_answers: in progress at a time.
        max_body_bytes: of one request.
        body_timeout_s: for a request's body to arrive.
        request_timeout_s: for the answer to one request; 0: no limit.
        fetch_media: get ``http(s):`` URLs of images, videos and sounds.
        local_only: refuse requests that were not sent to an address of this machine's own.
        access_log: ``errors``, ``all`` or ``none``.
        model_name: what the pool's model is called; None for its own name.
        defaults: sampling parameters of requests that do not give them.
    """

    max_answers: int = 256
    max_body_bytes: int = 16 * 2**20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    fetch_media: bool = False
    local_only: bool = False
    access_log: str = "errors"
    model_name: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Gateway:
    """See the module's docstring.

    Args:
        sampler: over the pool; ``close`` closes it.
        keys: of those who are let in.
        pool: the pool's name or connection file, by which it is found again when it has ended and was started anew.
            None where it ends with this process.
    """

    def __init__(
        self,
        sampler: AsyncSampler,
        keys: Keys,
        settings: GatewaySettings,
        pool: str | Path | None = None,
    ) -> None:
        self.sampler = sampler
        self.keys = keys
        self._pool = pool
        self.settings = settings
        self.places = Places(settings.max_answers)
        self.figures = Figures(settings.max_answers)
        self.workers: Sequence[WorkerFacts] = ()
        self.running: set[Stoppable] = set()
        self._progress = Progress()
        self._trouble = "The gateway has just been started."
        self._looked_at = -_FRESH_S
        self._looking = asyncio.Lock()
        self._pieces: dict[int, str] = {}

    async def look(self) -> str:
        """Ask the workers how they are.

        Returns:
            Why none gets on, a sentence; empty if one does.
        """
        async with self._looking:
            if time.monotonic() - self._looked_at >= _FRESH_S:
                self.workers = await self.sampler.workers(_PATIENCE_S)
                self._looked_at = time.monotonic()
                self._trouble = self._progress.trouble(self.workers, self._looked_at)
            return self._trouble

    async def watch(self) -> None:
        """Look now and then, until cancelled: whether steps move can only be told by looking twice, and a pool that has
        ended may be back."""
        for second in itertools.count(1):
            await asyncio.sleep(1.0)
            try:
                if second % _LOOK_S == 0:
                    await self.look()
                if self._pool is not None and not any(v.up or v.coming for v in self.sampler.connection.workers()):
                    await self._attach_again(self._pool)
            except SamplerPoolError as error:
                log.debug("the pool is not there: %s", error)
            except Exception:
                log.exception("looking at the workers failed; the next look may not")

    async def _attach_again(self, pool: str | Path) -> None:
        """To the pool, if it is another one than before.

        Raises:
            PoolNotFound, TransportError: there is none.
        """
        file = await asyncio.to_thread(find_connection, pool)
        if file.supervisor == self.sampler.connection_file.supervisor:
            return
        successor = await AsyncSampler.connect(pool)
        async with self._looking:
            predecessor, self.sampler = self.sampler, successor
            self._progress, self._pieces, self._looked_at = Progress(), {}, -_FRESH_S
        await predecessor.close()
        await self.look()
        log.warning("attached to the pool %r, which was started anew", file.pool)

    async def close(self) -> None:
        """Let go of the pool."""
        await self.sampler.close()

    @property
    def catalog(self) -> Catalog:
        """The models that requests may name."""
        file, told = self.sampler.connection_file, self._told
        name = self.settings.model_name or file.model
        return Catalog(name, int(file.created), *((told.adapters, told.max_model_len) if told else ()))

    @property
    def rules(self) -> Rules:
        """What clients may ask for."""
        settings, told = self.settings, self._told
        return Rules(settings.max_answers, settings.fetch_media, settings.defaults, told.defaults if told else {})

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        """Around reasoning and tool calls in the text of answers."""
        return self._told.answer_tags if self._told else {}

    def hides_parts(self, *, tools: bool) -> bool:
        """Whether the text of answers has parts whose beginnings and ends do not show in it, so that they can only be
        told when the whole has been parsed.

        Args:
            tools: some are on offer, so calls may come.
        """
        hidden = self._told.hidden_tags if self._told else ()
        return "think" in hidden or (tools and "tool_call" in hidden)

    @property
    def _told(self) -> WorkerFacts | None:
        """A worker that has told of itself, lately or before."""
        return next((facts for facts in self.workers if facts.engine), None)

    async def pieces(self, token_ids: Iterable[int]) -> Mapping[int, str]:
        """What these tokens stand for, among others.

        Raises:
            WorkerDied: no worker is left to tell it.
        """
        new = [token_id for token_id in token_ids if token_id not in self._pieces]
        if new:
            self._pieces.update(zip(new, await self.sampler.pieces(new), strict=True))
        return self._pieces

    def stop_all(self) -> None:
        """End all answers in progress."""
        for each in list(self.running):
            each.stop("stopping")


class Stoppable:
    """Something with a time limit that can also be stopped before: because nobody wants it, or the server ends.

    As an async context manager it raises ``TimeoutError`` where it is awaited when it is stopped; ``reason`` says why.

    Args:
        limit_s: seconds; 0 for none.
    """

    def __init__(self, limit_s: float) -> None:
        self.reason = "late"
        self._over = False
        self._timeout = asyncio.timeout(limit_s or None)

    async def __aenter__(self) -> Stoppable:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._over = True
        await self._timeout.__aexit__(*error)

    def stop(self, reason: str) -> None:
        """Raise there now, unless it has ended."""
        if not self._over and not self._timeout.expired():
            self.reason = reason
            self._timeout.reschedule(asyncio.get_running_loop().time())
