"""What the dense engine does in its next step: whom it admits, grows, puts back, and which tokens it computes. Pure.

A row's ``tokens`` are its prompt and what it has generated; ``computed`` of them have their keys and values in memory.
A row with one token left is a decode row (or the end of a prompt); with more it is in prefill, chunk by chunk. Rows
whose last token is computed in a step gain a token from it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from samplerpool.engine.arena import Buddies, Region
from samplerpool.engine.base import INTERACTIVE, EngineRequest, RequestId
from samplerpool.engine.budget import StepBudget
from samplerpool.engine.prefix import KEY_TOKENS, Prefix, PrefixIndex
from samplerpool.types import FinishReason

ROOM_AHEAD = 32
"""Tokens of an answer that a row gets room for at first."""
STEP_TOKENS = 512
"""Tokens in a step while nobody watches a stream."""
CHUNK_BASE, CHUNK_PER_ROW = 28, 2
"""Beside interactive streams: a step with so many tokens of prefill takes about three times as long as one without, at
the beginning of a prompt; further on each token has more keys to read, and there are fewer of them."""
MAX_KEPT = 64
"""Ended rows that are kept for their prefixes."""


class Row:
    """A request inside the engine."""

    __slots__ = ("computed", "end_ids", "limit", "prefix", "prompt_tokens", "region", "request", "reused", "tokens")

    def __init__(self, request: EngineRequest, eos_token_ids: frozenset[int], max_model_len: int) -> None:
        params = request.params
        self.request = request
        self.tokens = [*request.prompt_ids, *request.generated_ids]
        self.prompt_tokens = len(request.prompt_ids)
        self.limit = self.prompt_tokens + min(params.max_new_tokens or 0, max_model_len - self.prompt_tokens)
        self.end_ids = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else eos_token_ids)
        self.computed = 0
        self.reused = 0
        self.region: Region | None = None
        self.prefix: Prefix | None = None

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def adapter(self) -> str | None:
        """What it is computed with."""
        return self.request.params.adapter

    @property
    def interactive(self) -> bool:
        """Whether somebody watches."""
        return self.request.priority == INTERACTIVE

    def finish_reason(self) -> FinishReason | None:
        """How it has ended, if it has."""
        if self.generated and self.tokens[-1] in self.end_ids:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None


@dataclass(slots=True)
class Copy:
    """Copy the first ``length`` tokens of a region's keys and values to another, before anything else."""

    source: Region
    target: Region
    length: int


@dataclass(slots=True)
class Plan:
    """One step. ``copies`` are done first and in order; then ``spans``: each row with the tokens to compute."""

    copies: list[Copy] = field(default_factory=list)
    decodes: list[Row] = field(default_factory=list)
    chunks: list[tuple[Row, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.decodes) + sum(count for _, count in self.chunks)


class Scheduler:
    """See the module's docstring.

    Args:
        tokens: what the arena holds.
        max_batch: most rows at a time.
        prefill_chunk: most tokens of prefill in a step beside interactive streams; None lets their number decide, and
        keys_per_token: how many keys take as long to be read as all else that a token takes.
        step_tokens: most tokens in a step otherwise.
        reuse: whether prefixes are shared.
    """

    def __init__(
        self,
        tokens: int,
        max_batch: int,
        *,
        prefill_chunk: int | None = None,
        keys_per_token: float = math.inf,
        step_tokens: int = STEP_TOKENS,
        reuse: bool = True,
    ) -> None:
        self._buddies = Buddies(tokens)
        self.total_tokens = self._buddies.free_tokens
        self.longest_row = self._buddies.largest
        self._max_batch = max_batch
        self._prefill_chunk = prefill_chunk
        self._keys_per_token = keys_per_token
        self.budget = StepBudget(max_batch, step_tokens)
        self._reuse = reuse
        self._index = PrefixIndex()
        self._owners = 0
        self.running: dict[RequestId, Row] = {}
        self._queues: tuple[OrderedDict[RequestId, Row], ...] = (OrderedDict(), OrderedDict())
        self.prefix_hits = 0
        self.prefix_tokens = 0
        self.preemptions = 0

    # ---- what comes and goes --------------------------------------------------------------------------------------

    def add(self, row: Row) -> None:
        """Queue a row."""
        self._queues[not row.interactive][row.request.request_id] = row

    def remove(self, request_id: RequestId) -> None:
        """A row has ended or is not wanted any more. Unknown ids are ignored."""
        row = self.running.pop(request_id, None)
        if row is not None:
            self._release(row, keep=True)
            return
        for queue in self._queues:
            queue.pop(request_id, None)

    def clear(self) -> None:
        """Forget everything."""
        for row in self.running.values():
            self._release(row, keep=False)
        self.running.clear()
        for queue in self._queues:
            queue.clear()
        while self._drop_oldest():
            pass

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return len(self._queues[0]) + len(self._queues[1])

    @property
    def used_tokens(self) -> int:
        """Tokens of the arena that rows and kept prefixes have."""
        return self.total_tokens - self._buddies.free_tokens

    @property
    def kept(self) -> int:
        """Ended rows that are kept for their prefixes."""
        return self._index.kept()

    # ---- the next step --------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Decide the next step. The rows' ``computed`` is moved on by ``done``."""
        plan = Plan()
        for row in list(self.running.values()):
            if row.request.request_id in self.running:  # it may have been put back for another one
                self._make_room(row, plan)
        self._admit(plan)
        self._share_out(plan)
        return plan

    def done(self, plan: Plan) -> None:
        """The step has been computed."""
        self.budget.quiet()
        for row in plan.decodes:
            self._moved(row, 1)
        for row, count in plan.chunks:
            self._moved(row, count)

    def _moved(self, row: Row, count: int) -> None:
        row.computed += count
        if row.prefix is not None:
            row.prefix.computed = row.computed

    def shed(self, plan: Plan, *, copied: bool) -> Row | None:
        """The step ran out of memory: lower the budget, and put the youngest rows back that are beyond it now.

        Args:
            copied: the plan's copies were done. Else nobody knows what is in memory, and all rows begin anew.

        Returns:
            The only row, which was taken out, if the step could not be made smaller: it is too large by itself.
        """
        rows, tokens = len(self.running), plan.tokens if plan.chunks else 0
        if not copied:
            self.budget.lower(max(rows, 2), tokens)
            self._start_over()
            return None
        if self.budget.lower(rows, tokens):
            while len(self.running) > self.budget.rows:
                self._put_back_youngest()
            return None
        (row,) = self.running.values()
        del self.running[row.request.request_id]
        self._release(row, keep=False)
        return row

    def _start_over(self) -> None:
        """Put all running rows back, and forget what is kept."""
        for row in reversed(list(self.running.values())):
            self._put_back(row, keep=False)
        while self._drop_oldest():
            pass

    def _share_out(self, plan: Plan) -> None:
        decodes = [row for row in self.running.values() if row.pending == 1]
        plan.decodes = sorted(decodes, key=lambda row: row.region.offset if row.region else 0)
        watched = any(row.interactive for row in decodes)
        budget = self._chunk_budget(len(decodes), watched)
        prefills = [row for row in self.running.values() if row.pending > 1]
        for row in sorted(prefills, key=lambda row: not row.interactive):
            if budget <= 0:
                return
            weight = self._weight(row) if watched else 1.0
            count = min(row.pending, max(1, int(budget / weight)))
            plan.chunks.append((row, count))
            budget -= count * weight

    def _chunk_budget(self, decodes: int, watched: bool) -> float:
        """Tokens of prefill in the next step, each with its weight."""
        if not watched:
            return max(1, self.budget.tokens - decodes)
        return min(self._prefill_chunk or CHUNK_BASE + CHUNK_PER_ROW * decodes, self.budget.tokens)

    def _weight(self, row: Row) -> float:
        """How many times as long as at a prompt's beginning a row's next token takes."""
        return 1.0 if self._prefill_chunk else 1 + row.computed / self._keys_per_token

    # ---- admission ------------------------------------------------------------------------------------------------

    def _admit(self, plan: Plan) -> None:
        budget = self.budget.tokens - sum(row.pending for row in self.running.values())
        for row in self._candidates():
            if not row.interactive and (budget <= 0 or len(self.running) >= self.budget.rows):
                return
            prefix, usable, promised = self._shared(row)
            if promised - usable >= KEY_TOKENS:
                continue  # what it shares is being computed right now
            if len(self.running) >= self.budget.rows and not self._put_back_youngest(batch_only=True):
                return
            if not self._place(row, prefix, usable, plan):
                return
            del self._queues[not row.interactive][row.request.request_id]
            budget -= row.pending

    def _candidates(self) -> Iterator[Row]:
        for queue in self._queues:
            yield from list(islice(queue.values(), 2 * self._max_batch))

    def _shared(self, row: Row) -> tuple[Prefix | None, int, int]:
        if not self._reuse:
            return None, 0, 0
        # The last token is computed in any case: its logits are wanted.
        return self._index.find(row.tokens, len(row.tokens) - 1, row.adapter)

    def _place(self, row: Row, prefix: Prefix | None, usable: int, plan: Plan) -> bool:
        need = self._room_for(row)
        if prefix is not None:
            self._index.used(prefix)
        region = self._take(need, spare=prefix)
        while region is None and row.interactive and self._put_back_youngest(batch_only=True):
            region = self._take(need, spare=prefix)
        if region is None:
            return False
        row.region, row.computed = region, 0
        if prefix is not None:
            plan.copies.append(Copy(prefix.region, region, usable))
            row.computed = row.reused = usable
            self.prefix_hits += 1
            self.prefix_tokens += usable
        self._owners += 1
        row.prefix = Prefix(self._owners, row.tokens, region, row.computed, row.adapter)
        self._index.add(row.prefix)
        self.running[row.request.request_id] = row
        return True

    # ---- memory ---------------------------------------------------------------------------------------------------

    def _room_for(self, row: Row) -> int:
        """Tokens that a row gets room for when it is admitted."""
        return min(len(row.tokens) + ROOM_AHEAD, max(row.limit, len(row.tokens)))

    def _make_room(self, row: Row, plan: Plan) -> None:
        """See that the row's next tokens fit into its region."""
        assert row.region is not None
        if len(row.tokens) <= row.region.capacity:
            return
        while (region := self._grown(row, len(row.tokens))) is None:
            if not self._put_back_youngest(but=row):
                self._put_back(row, keep=False)
                return
        plan.copies.append(Copy(row.region, region, row.computed))
        row.region = region
        if row.prefix is not None:
            row.prefix.region = region

    def _grown(self, row: Row, tokens: int) -> Region | None:
        """A larger region for a row, beside or on top of its present one, which is given back."""
        old = row.region
        assert old is not None
        region = self._take(tokens)
        if region is not None:
            self._buddies.give(old)
            return region
        self._buddies.give(old)
        region = self._buddies.take(tokens)
        if region is None:
            self._buddies.claim(old)
        return region

    def _take(self, tokens: int, spare: Prefix | None = None) -> Region | None:
        """A region, for which kept rows are dropped if need be; ``spare`` is about to be copied from."""
        while (region := self._buddies.take(tokens)) is None:
            if not self._drop_oldest(spare):
                return None
        return region

    def _drop_oldest(self, spare: Prefix | None = None) -> bool:
        oldest = self._index.oldest()
        if oldest is None or oldest is spare:
            return False
        self._index.remove(oldest)
        self._buddies.give(oldest.region)
        return True

    def _release(self, row: Row, *, keep: bool) -> None:
        """Take a row's place away; its memory is kept for those with the same beginning, or given back."""
        assert row.region is not None
        prefix, row.prefix = row.prefix, None
        if prefix is not None and keep and self._reuse and row.computed >= KEY_TOKENS:
            prefix.tokens = row.tokens[: row.computed]
            self._index.add(prefix)
            self._index.keep(prefix)
            while self._index.kept() > MAX_KEPT:
                self._drop_oldest()
        else:
            if prefix is not None:
                self._index.remove(prefix)
            self._buddies.give(row.region)
        row.region, row.computed = None, 0

    def _put_back_youngest(self, *, but: Row | None = None, batch_only: bool = False) -> bool:
        """Put the youngest row back into its queue, a batch row if there is one."""
        others = [row for row in self.running.values() if row is not but]
        batch = [row for row in others if not row.interactive]
        if batch_only and not batch:
            return False
        if not others:
            return False
        self._put_back((batch or others)[-1], keep=True)
        return True

    def _put_back(self, row: Row, *, keep: bool) -> None:
        del self.running[row.request.request_id]
        self._release(row, keep=keep)
        queue = self._queues[not row.interactive]
        queue[row.request.request_id] = row
        queue.move_to_end(row.request.request_id, last=False)
        self.preemptions += 1
