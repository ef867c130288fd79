"""The padded engine: rows of different lengths decoded together by models whose attention cannot be replaced.

Models outside transformers' attention interface (Falcon, Bloom, MPT, GPT-J, CodeGen ...) are given what they expect: a
rectangle of tokens, a mask, and a cache that returns keys and values. The cache is a slab (``slab``): running rows lie
side by side, so one view of it is the rectangle, as wide as the longest row; behind the end of a shorter one the mask
is zero. Decode rows make one ``[rows, 1]`` pass a step, or several where one long row would make many short ones long;
each prompt is computed in passes of its own, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.adapters import Adapters
from samplerpool.engine.arena import MIN_CAPACITY, Arena, LayerShape, Region
from samplerpool.engine.batched import (
    OPTIONS,
    BatchedEngine,
    cache_tokens,
    checked_options,
    keys_per_token,
    layer_shapes,
)
from samplerpool.engine.packed_group import weight_count
from samplerpool.engine.packed_linear import pack_linears
from samplerpool.engine.schedule import STEP_TOKENS, Copy, Plan, Row
from samplerpool.engine.sequential import forward_arguments
from samplerpool.engine.slab import SlabScheduler, Swap, passes, whole_place

PLACES_TO_KEEP = 16
"""Places beyond ``max_batch``, where there is memory for them, for the prefixes of ended rows."""


class PaddedEngine(BatchedEngine):
    """See the module's docstring.

    Args:
        model: a causal language model of transformers, on its device, whose layers see all tokens before (no windows).
            On CPU its linear layers are prepacked for good.
        config: ``max_batch`` and the options ``cache_gib`` (memory for keys and values), ``prefill_chunk`` (tokens of
            prefill in a step beside interactive streams), ``step_tokens`` (tokens in a step otherwise),
            ``prefix_cache`` and ``packed_linears`` (each can be turned off). ``kernel``, an option of the dense engine,
            is taken and means nothing here.
        eos_token_ids: end the answer, unless a request ignores them.
        max_model_len: longest prompt plus completion; lowered to what the slab can hold.

    Raises:
        StartFailed: the model cannot be batched this way, or there is no memory for its cache.
        InvalidParameter: an option that does not exist, or with a value that it cannot take.
    """

    name = "padded"

    def __init__(
        self,
        model: Any,
        config: EngineConfig,
        *,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        adapters: Adapters | None = None,
    ) -> None:
        options = checked_options(self.name, config.options, OPTIONS)
        shapes = layer_shapes(model)
        most = (config.max_batch + PLACES_TO_KEEP) * whole_place(max_model_len)
        tokens = cache_tokens(shapes, model, config, options.get("cache_gib"), least=MIN_CAPACITY, most=most)
        self._slab = SlabScheduler(
            tokens,
            config.max_batch,
            max_model_len,
            prefill_chunk=options.get("prefill_chunk"),
            keys_per_token=keys_per_token(model, shapes),
            step_tokens=options.get("step_tokens", STEP_TOKENS),
            reuse=options.get("prefix_cache", True),
        )
        super().__init__(
            model,
            self._slab,
            eos_token_ids=eos_token_ids,
            max_batch=config.max_batch,
            max_model_len=max_model_len,
            adapters=adapters,
        )
        self._arena = Arena(shapes, self._slab.total_tokens, model.dtype, model.device)
        self._cache = SlabCache(self._arena)
        self._price = _price_of_pass(model, shapes)
        self._accepted = forward_arguments(model) & {"position_ids", "logits_to_keep"}
        if model.device.type == "cpu" and model.dtype == torch.float32 and options.get("packed_linears", True):
            pack_linears(model)
        self._adapters.attach(model)

    def _copy(self, copy: Copy) -> None:
        if isinstance(copy, Swap):
            _swap(self._arena, copy)
        else:
            super()._copy(copy)

    @torch.inference_mode()
    def _forward(self, plan: Plan) -> tuple[list[Row], Tensor]:
        rows = list(plan.decodes)
        logits = [self._decode(plan.decodes)] if plan.decodes else []
        for row, count in plan.chunks:
            last = self._prefill(row, count)
            if count == row.pending:
                rows.append(row)
                logits.append(last)
        return rows, torch.cat(logits) if logits else torch.empty(0)

    def _decode(self, decodes: Sequence[Row]) -> Tensor:
        """The next token's logits of these rows, in the order of their places, from one token of each.

        A row in prefill that lies between them is computed along, by one token of its prompt.
        """
        rows = self._slab.rows[: self._slab.place_of(decodes[-1]) + 1]
        logits = []
        for first, end in passes([row.computed + 1 for row in rows], self._price):
            wanted = [at for at, row in enumerate(rows[first:end]) if row.pending == 1]
            if wanted:
                found = self._decode_together(first, rows[first:end])
                logits.append(found if len(wanted) == end - first else found[self._tensor(wanted)])
        return torch.cat(logits)

    def _decode_together(self, first: int, rows: Sequence[Row]) -> Tensor:
        """The logits behind the first token that is not computed yet, of the rows from a place on."""
        positions = self._tensor([row.computed for row in rows])
        longest = max(row.computed for row in rows) + 1
        self._adapters.route([(row.adapter, 1) for row in rows])
        self._cache.set_rows(self._slab.region(first), positions, longest)
        return self._run(
            self._tensor([row.tokens[row.computed] for row in rows])[:, None],
            (torch.arange(longest, device=self._device) <= positions[:, None]).long(),
            positions[:, None],
        )

    def _prefill(self, row: Row, count: int) -> Tensor:
        """Compute so many tokens of one row; the next token's logits, shape [1, vocabulary]."""
        assert row.region is not None
        end = row.computed + count
        self._adapters.route([(row.adapter, count)])
        self._cache.set_chunk(row.region, row.computed, end)
        return self._run(
            self._tensor(row.tokens[row.computed : end])[None],
            torch.ones(1, end, dtype=torch.int64, device=self._device),
            torch.arange(row.computed, end, device=self._device)[None],
        )

    def _run(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """One pass over shapes [rows, tokens], [rows, keys] and [rows, tokens]; the logits of each row's last token."""
        extra = {"position_ids": position_ids, "logits_to_keep": 1}
        output = self._model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **{name: extra[name] for name in self._accepted},
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class SlabCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """What the model takes for its ``past_key_values``: writes into the slab, and returns views of it.

    Either ``set_rows`` or ``set_chunk`` says before a pass what it is about.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__(layers=[])
        self._arena = arena
        self._first = Region(0, 0)
        self._start = self._end = 0
        self._rows: Tensor | None = None
        self._positions: Tensor | None = None

    def set_rows(self, first: Region, positions: Tensor, longest: int) -> None:
        """The next pass computes one token of each of some neighbouring rows.

        Args:
            first: the first row's region.
            positions: of the tokens, int64 of shape [rows].
            longest: the largest position, plus 1.
        """
        self._first, self._start, self._end = first, longest - 1, longest
        self._rows, self._positions = torch.arange(len(positions), device=positions.device), positions

    def set_chunk(self, region: Region, start: int, end: int) -> None:
        """The next pass computes the tokens of one row from position ``start`` until before ``end``."""
        self._first, self._start, self._end = region, start, end
        self._rows = self._positions = None

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values, shapes [rows, kv_heads, tokens, dim]; all that there are now."""
        views = self._arena.run_views(layer_idx, self._first, len(keys), self._end)
        for view, new in zip(views, (keys, values), strict=True):
            if self._positions is None or self._rows is None:
                view[:, :, self._start :] = new
            else:  # a layer may be on another device than the first
                at = (self._rows.to(view.device), slice(None), self._positions.to(view.device))
                view[at] = new[:, :, 0].to(view.dtype)
        return views

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this pass's, of the longest row."""
        return self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys there are, and where they begin."""
        return self._end, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where this pass's tokens begin: in rows that are shorter, the mask says what they see."""
        return self._start


def _price_of_pass(model: Any, shapes: Sequence[LayerShape]) -> int:
    """How many tokens a decode pass can attend to in the time in which it reads the weights.

    Models with fewer heads of keys and values than of queries repeat them for all heads, by their own code.
    """
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 1)
    per_token = sum(max(heads, shape.kv_heads) * (shape.key_dim + shape.value_dim) for shape in shapes)
    return weight_count(model) // per_token


def _swap(arena: Arena, swap: Swap) -> None:
    for layer in range(len(arena.shapes)):
        here, there = (arena.views(layer, region, swap.length) for region in (swap.source, swap.target))
        for one, other in zip(here, there, strict=True):
            before = one.clone()
            one.copy_(other)
            other.copy_(before)
