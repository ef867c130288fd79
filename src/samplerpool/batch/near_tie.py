"""Whether two answers to one request differ only because candidates were nearly level where they part.

Logits round differently with the batch that a row sits in, so two candidates that are as good as level may change
places. Whether that is so here, the engine itself can tell, whatever the sampling parameters: it is asked for the one
token again, with the logit of the token that it chose lowered a little. If it then takes another one, and the answer
that goes on behind *that* is the other answer, a near-tie is what made the difference. Nothing else needs to be known:
no filter, no penalty and no noise is computed a second time here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from samplerpool.client.connection import Call, PoolConnection
from samplerpool.client.routing import choose
from samplerpool.data.media import has_media
from samplerpool.errors import TransportError
from samplerpool.wire.messages import ChatPrompt, Prompt, TokenPrompt

NEAR_TIE = 1e-3
"""By how much a logit may be lowered, in float32. The same bound holds the engines' own tests together."""

LOOK_BACK = 8
"""Tokens before the one that shows the difference that may have made it: text lags behind tokens."""

MAX_TIES = 4
"""Near-ties in one answer."""

NOISE_BLOCK = 256
"""Without a filter, blocks of so many token ids race first, each with its whole mass (``engine.sampling.BLOCK``)."""


@dataclass(frozen=True)
class Ending:
    """What answers are compared by."""

    text: str
    finish_reason: str
    completion_tokens: int

    def parting(self, other: Ending) -> int | None:
        """The character from which on another answer is different, at the latest the end; None: nowhere."""
        if self == other:
            return None
        pairs = enumerate(zip(self.text, other.text, strict=False))
        return next((at for at, (one, another) in pairs if one != another), min(len(self.text), len(other.text)))


@dataclass(frozen=True)
class Telling:
    """What was found out of two answers.

    Args:
        near_tie: whether the difference comes from a near-tie.
        token: number of the token, from 0, at which they part; of a near-tie exactly, else at the latest.
    """

    near_tie: bool
    token: int


class _Again:
    """One answer, followed token by token."""

    def __init__(self, call: Call, prompt: Prompt) -> None:
        self.call = call
        self.before = list(prompt.generated_ids) if isinstance(prompt, TokenPrompt) else []
        self.seen: list[tuple[int, int]] = []

    def update(self) -> None:
        """On the connection's thread: note how much text the tokens so far make."""
        call = self.call
        self.seen.append((len(self.before) + len(call.token_ids), len(call.text)))

    @property
    def token_ids(self) -> list[int]:
        return [*self.before, *self.call.token_ids]

    @property
    def ending(self) -> Ending:
        return Ending(self.call.text, self.call.finish_reason or "", self.call.completion_tokens)

    def token_at(self, character: int) -> int:
        """The last token that may have decided what stands at that character."""
        tokens = next((tokens for tokens, length in self.seen if length > character), len(self.token_ids))
        return max(0, tokens - 1)


class NearTies:
    """Asks the workers of a pool about answers that differ.

    Args:
        params: sampling parameters of both answers.
        tolerance: by how much the logit of a chosen token is lowered.
    """

    def __init__(self, connection: PoolConnection, params: Mapping[str, Any], tolerance: float = NEAR_TIE) -> None:
        self._connection = connection
        self._params = {name: value for name, value in params.items() if name not in ("num_return_sequences", "seed")}
        self._tolerance = tolerance

    def with_params(self, params: Mapping[str, Any]) -> NearTies:
        """The same about answers with other sampling parameters."""
        return NearTies(self._connection, params, self._tolerance)

    def explain(self, prompt: ChatPrompt, seed: int, wanted: Ending) -> Telling:
        """Why the answer is not the wanted one any more.

        Args:
            prompt: with its images, videos and sounds read.

        Raises:
            SamplerPoolError: a request failed, so it cannot be told.
        """
        again = self._answer(prompt, seed)
        media = prompt if has_media(prompt.messages) else None
        prompt_ids, first = again.call.prompt_ids, None
        for _ in range(MAX_TIES):
            parting = wanted.parting(again.ending)
            if parting is None:  # without a token exchanged: asked alone, it is the same
                return Telling(True, again.token_at(0) if first is None else first)
            last = again.token_at(parting)
            branch = self._branch(prompt_ids, again, last, seed, wanted, media)
            if branch is None:
                return Telling(False, last if first is None else first)
            token, again = branch
            first = token if first is None else min(first, token)
        return Telling(wanted.parting(again.ending) is None, first or 0)

    def _branch(
        self,
        prompt_ids: Sequence[int],
        again: _Again,
        last: int,
        seed: int,
        wanted: Ending,
        media: ChatPrompt | None,
    ) -> tuple[int, _Again] | None:
        """Another token at a near-tie, behind which the answer is the wanted one for longer; and that answer."""
        parting = wanted.parting(again.ending) or 0
        ids = again.token_ids
        places = range(min(last, len(ids) - 1), max(-1, last - LOOK_BACK), -1)
        for block in (1, NOISE_BLOCK):
            probes = [TokenPrompt(prompt_ids, ids[:place], media=media) for place in places]
            found = self._ask(probes, [self._lowered(ids[place], place, seed, block) for place in places])
            for place, probe in zip(places, found, strict=True):
                taken = probe.call.token_ids[:1]
                if taken and taken[0] != ids[place]:
                    onwards = self._answer(TokenPrompt(prompt_ids, [*ids[:place], *taken], media=media), seed)
                    there = wanted.parting(onwards.ending)
                    if there is None or there > parting:
                        return place, onwards
        return None

    def _lowered(self, token_id: int, place: int, seed: int, block: int) -> dict[str, Any]:
        """Parameters for the one token at that place, with the logits of a block of tokens lowered."""
        begin = token_id // block * block
        bias = dict(self._params.get("logit_bias") or {})
        for number in map(str, range(begin, begin + block)):
            bias[number] = max(-100.0, bias.get(number, 0.0) - self._tolerance)
        longest = {"max_new_tokens": place + 1}
        if least := self._params.get("min_new_tokens"):
            longest["min_new_tokens"] = min(least, place + 1)
        return {**self._params, **longest, "seed": seed, "logit_bias": bias}

    def _answer(self, prompt: Prompt, seed: int) -> _Again:
        (found,) = self._ask([prompt], [{**self._params, "seed": seed}])
        return found

    def _ask(self, prompts: Sequence[Prompt], params: Sequence[Mapping[str, Any]]) -> list[_Again]:
        ended: SimpleQueue[None] = SimpleQueue()
        asked: list[_Again] = []
        for prompt, given in zip(prompts, params, strict=True):
            call = Call(prompt, given, priority=1)
            again = _Again(call, prompt)

            def update(call: Call, again: _Again = again) -> None:
                again.update()
                if call.done:
                    ended.put(None)

            call.on_update = update
            asked.append(again)
        worker = choose(self._connection.workers())
        if worker is None:
            raise TransportError("No worker of the pool is there just now.")
        self._connection.submit(worker, [again.call for again in asked])
        for _ in asked:
            ended.get()
        for again in asked:
            if again.call.error is not None:
                raise again.call.error
        return asked
