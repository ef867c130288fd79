"""One model in several processes (tensor parallelism): what the first of them, rank 0, says, and what the others do.

transformers divides the layers; each rank holds its part of the weights, and of the keys and values. A pass must be run
by all ranks at once, since they exchange what they compute inside it. Rank 0 has the engine, and tells the others about
each thing before it does that itself (``Group.tell``); they do nothing but follow (``follow``). What is told are small
JSON documents over a socket pair, so a follower that has nothing to do sleeps, however long, and sees at once when rank
0 is gone. Only the exchange inside a pass goes over torch.distributed, and has a time limit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor, distributed
from torch.distributed import distributed_c10d

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine.arena import Region
from samplerpool.engine.packed_step import Span

if TYPE_CHECKING:
    from samplerpool.engine.packed_passes import PackedPasses

log = logging.getLogger(__name__)

EXCHANGE_TIMEOUT_S = 300.0
"""How long ranks wait for one another inside a pass. All of them begin it at the same time, so this is for a rank that
hangs where nobody supervises."""


class Group(Protocol):
    """The processes among which a model is divided, as rank 0 knows them."""

    size: int

    def tell(self, order: str, *arguments: Any) -> None:
        """Have the other ranks do something, which this one does now as well."""

    def fail(self, error: BaseException) -> NoReturn:
        """The ranks are out of step, since this one could not do what it told: none of them is of use any more."""


class _Alone:
    """A process that has the whole model."""

    size = 1

    def tell(self, order: str, *arguments: Any) -> None:
        """Nobody is there."""

    def fail(self, error: BaseException) -> NoReturn:
        """An error of this process is its own."""
        raise error


ALONE: Group = _Alone()


def join(rank: int, size: int, store: str, device: str) -> None:
    """Meet the other ranks; returns when all are there.

    Args:
        store: path of an empty file, the same one for all.
        device: ``cpu`` or ``cuda``; rank N is on the Nth device.
    """
    on_host = torch.device(device).type == "cpu"
    if not on_host:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "gloo" if on_host else "nccl",
        store=distributed.FileStore(store, size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=EXCHANGE_TIMEOUT_S),
        device_id=None if on_host else torch.device("cuda", rank),
    )


def least_of_all(number: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers; all ranks call it at the same point."""
    tensor = torch.tensor([number], device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
    return int(tensor)


def limit_waiting(model: Any) -> None:
    """End exchanges inside the model's passes after ``EXCHANGE_TIMEOUT_S``.

    transformers makes the groups of processes for them, and torch lets those wait for half an hour.
    """
    for group in model._device_mesh.get_all_groups():
        distributed_c10d._set_pg_timeout(timedelta(seconds=EXCHANGE_TIMEOUT_S), group)


# ---- rank 0 -------------------------------------------------------------------------------------------------------


class SharedPasses:
    """``PackedPasses`` of all ranks: what rank 0 is asked for, all do.

    Args:
        own: makes those of this rank.
        group: of at least two.
    """

    def __init__(self, own: Callable[[], PackedPasses], group: Group, config: EngineConfig, max_model_len: int) -> None:
        self._group = group
        group.tell("open", asdict(config), max_model_len)
        self._own = own()
        self.shapes, self.arena = self._own.shapes, self._own.arena
        self.compiled, self.fused = self._own.compiled, None
        self._open = True

    def copy(self, source: Region, target: Region, length: int) -> None:
        """As ``PackedPasses`` does."""
        with self._or_fail():
            self._group.tell("copy", _plain(source), _plain(target), length)
            self._own.copy(source, target, length)

    def run(self, decodes: Sequence[Span], chunks: Sequence[Span], ids: Sequence[int], last: Sequence[int]) -> Tensor:
        """As ``PackedPasses`` does."""
        with self._or_fail():
            self._group.tell("run", [_span(each) for each in decodes], [_span(each) for each in chunks], ids, last)
            return self._own.run(decodes, chunks, ids, last)

    def close(self) -> None:
        """As ``PackedPasses`` does. Idempotent."""
        if self._open:
            self._open = False
            self._group.tell("close")
            self._own.close()

    @contextmanager
    def _or_fail(self) -> Iterator[None]:
        """What goes wrong here ends the group: others may be in the middle of a pass that never ends."""
        try:
            yield
        except BaseException as error:
            self._group.fail(error)


def _plain(region: Region) -> tuple[int, int]:
    return region.offset, region.capacity


def _span(span: Span) -> tuple[int, int, int, int]:
    return span.region.offset, span.region.capacity, span.start, span.count


# ---- the others ---------------------------------------------------------------------------------------------------


def follow(channel: Connection, model: Any, ranks: int, between: Callable[[], None] = lambda: None) -> None:
    """Do what rank 0 says until it says ``end``, or is gone.

    Args:
        channel: the other end of rank 0's.
        model: this rank's part.
        ranks: how many there are.
        between: called after each thing.

    Raises:
        Exception: whatever a pass raises; the group is of no use any more.
    """
    from samplerpool.engine.packed_passes import PackedPasses
    from samplerpool.engine.probe import plain_answers

    passes: PackedPasses | None = None
    while True:
        try:
            order, arguments = json.loads(channel.recv_bytes())
        except EOFError:
            log.warning("rank 0 is gone")
            return
        match order, arguments:
            case "run", (decodes, chunks, ids, last) if passes is not None:
                passes.run(_spans(decodes), _spans(chunks), ids, last)
            case "copy", (source, target, length) if passes is not None:
                passes.copy(Region(*source), Region(*target), length)
            case "plain answers", ():
                plain_answers(model)
            case "open", (config, max_model_len):
                passes = PackedPasses(model, EngineConfig(**config), max_model_len, ranks)
            case "close", () if passes is not None:
                passes.close()
                passes = None
            case "end", ():
                return
            case _:
                raise ValueError(f"rank 0 says {order!r}, which means nothing here")
        between()


def _spans(spans: Sequence[Sequence[int]]) -> list[Span]:
    return [Span(Region(offset, capacity), start, count) for offset, capacity, start, count in spans]
