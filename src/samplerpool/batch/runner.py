"""The I/O shell of a batch run: reads rows, sends calls, waits for answers. ``batch.state`` decides what to do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Required, TypedDict, Unpack, cast

from samplerpool.batch.events import (
    Action,
    Answered,
    Assign,
    Drop,
    Emit,
    Event,
    Finish,
    InputEnded,
    Job,
    RequestFailed,
    Rest,
    RowsRead,
    StopRequested,
    WorkerDown,
    WorkerRested,
    WorkerUp,
)
from samplerpool.batch.state import BatchState
from samplerpool.batch.tally import BatchSummary, Progress, Tally
from samplerpool.client.connection import Call, PoolConnection, WorkerView
from samplerpool.config.sampling import sampling_params
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.media import with_media_read
from samplerpool.data.messages import NOW
from samplerpool.data.per_row import request_params, with_checked_params
from samplerpool.data.rows import Row
from samplerpool.errors import BatchError, RenderError, SamplerPoolError
from samplerpool.types import FinishReason, Message
from samplerpool.wire.messages import ChatPrompt

READ_AT_ONCE = 256
"""Rows read before the answers that came meanwhile have their turn."""

WAIT_S = 0.2
"""Longest wait without a look at the workers, the stop switch and the progress."""

REST_S = 0.5
DESCRIBE_TIMEOUT_S = 10.0
BATCH_PRIORITY = 1
"""On the wire: behind interactive requests."""

DEFAULT_MAX_BATCH = 16
"""For a worker that did not say how many requests it works on at a time."""


class StopSwitch:
    """Asks a run to stop, from a signal handler or another thread.

    Pressed once, nothing more is handed out and what runs is finished; pressed again, the run ends at once.
    """

    def __init__(self) -> None:
        self.pressed = 0

    def press(self) -> None:
        """One step further towards the end."""
        self.pressed += 1

    def end_at_once(self) -> None:
        """Press it as often as that takes."""
        self.pressed = max(self.pressed, 2)


class BatchOptions(TypedDict, total=False):
    """What ``run_batch`` and ``iter_batch`` have in common.

    Args:
        params: sampling parameters of all rows; ``num_return_sequences`` is how many samples each row gets.
        run_seed: from which each answer's seed is derived; else ``params["seed"]``, else drawn.
        on_progress: called a few times a second.
        on_worker: called with the number and the description of a worker that is there, or there again, before it gets
            rows; what it raises ends the run.
        stop: ends the run early.
        total: how many rows there will be, for the progress's time left.
        fetch_media: get images, videos and sounds from ``http(s):`` URLs, too.
        frozen_date: the date and time, in ISO form, that chat templates are told; else the one when this begins. So no
            row depends on when it is sent.
        before: of their answers, how many an earlier run has, which are not among ``rows``.
        count_only: prepare each row's prompt once, and answer none: results have an ``answer.count``.
    """

    params: Required[Mapping[str, Any]]
    run_seed: int | None
    on_progress: Callable[[Progress], None] | None
    on_worker: Callable[[int, Mapping[str, Any]], None] | None
    stop: StopSwitch | None
    total: int | None
    fetch_media: bool
    before: int
    frozen_date: str | None
    count_only: bool


def run_batch(
    connection: PoolConnection,
    rows: Iterable[Row],
    *,
    on_result: Callable[[RowResult], None],
    **options: Unpack[BatchOptions],
) -> BatchSummary:
    """Answer rows with all workers of a pool.

    Args:
        rows: read a little ahead of the workers, on the calling thread.
        on_result: called for each result as it comes; what it raises ends the run.
        **options: see ``BatchOptions``.

    Raises:
        InvalidParameter: among ``params``.
        UnsupportedParameter: the pool's engine does not honour one of them.
        BatchError: no worker is left.
    """
    return drained(iter_batch(connection, rows, **options), on_result)


def drained(
    groups: Generator[list[RowResult], None, BatchSummary], on_result: Callable[[RowResult], None]
) -> BatchSummary:
    """Go through a run's results to its end; what ``on_result`` raises ends the run."""
    with closing(groups):
        while True:
            try:
                group = next(groups)
            except StopIteration as end:
                summary: BatchSummary = end.value
                return summary
            for result in group:
                on_result(result)


def iter_batch(
    connection: PoolConnection, rows: Iterable[Row], **options: Unpack[BatchOptions]
) -> Generator[list[RowResult], None, BatchSummary]:
    """The same step by step. The workers wait while nobody asks for the next results; closing it ends the run.

    Yields:
        Results as they come, some at a time.

    Raises: as ``run_batch``.
    """
    given = sampling_params(options["params"]).given()
    samples = given.pop("num_return_sequences", 1)
    seed, run_seed, total = given.pop("seed", None), options.get("run_seed"), options.get("total")
    if run_seed is None:
        run_seed = secrets.randbelow(2**32) if seed is None else seed
    rows = with_checked_params(rows, given, samples)
    if count_only := options.get("count_only", False):
        samples = 1
    run = _Run(
        connection,
        iter(rows),
        given,
        BatchState(run_seed, samples, given.get("max_new_tokens")),
        Tally(time.monotonic(), None if total is None else total * samples, options.get("before", 0)),
        options.get("on_progress"),
        options.get("on_worker"),
        options.get("stop") or StopSwitch(),
        options.get("fetch_media", False),
        {NOW: options.get("frozen_date") or datetime.now().isoformat(timespec="seconds")},
        count_only,
    )
    return (yield from run.go(run_seed))


class _Run:
    """One run. Everything here happens on the calling thread; calls come back over a queue."""

    def __init__(
        self,
        connection: PoolConnection,
        rows: Iterable[Row],
        params: Mapping[str, Any],
        state: BatchState,
        tally: Tally,
        on_progress: Callable[[Progress], None] | None,
        on_worker: Callable[[int, Mapping[str, Any]], None] | None,
        stop: StopSwitch,
        fetch_media: bool,
        template_options: Mapping[str, Any],
        count_only: bool,
    ) -> None:
        self._connection = connection
        self._rows = rows
        self._params = params
        self._state = state
        self._tally = tally
        self._results: list[RowResult] = []
        self._on_progress = on_progress
        self._on_worker = on_worker
        self._stop = stop
        self._fetch_media = fetch_media
        self._template_options = template_options
        self._count_only = count_only
        self._stop_seen = 0
        self._ended: SimpleQueue[Call] = SimpleQueue()
        self._live: dict[Call, Job] = {}
        self._incarnations: dict[int, str] = {}
        self._resting: dict[int, float] = {}
        self._finish: Finish | None = None
        self._looked_at = 0.0

    def go(self, run_seed: int) -> Generator[list[RowResult], None, BatchSummary]:
        """Run to the end, and say what was done."""
        try:
            self._handle(*self._look_around())
            while self._finish is None:
                self._feed()
                self._collect()
                if self._results:
                    results, self._results = self._results, []
                    yield results
        finally:
            self._abort_what_runs()
            self._report()
        return self._tally.summary(time.monotonic(), run_seed, complete=self._concluded(self._finish))

    def _concluded(self, finish: Finish) -> bool:
        if finish.error is not None:
            raise finish.error
        if finish.outcome == "no_workers":
            reasons = " ".join(v.down_reason for v in self._connection.workers() if not v.up)
            raise BatchError(
                f"No worker of the pool is left. {reasons or 'It is being stopped.'} "
                f"{self._tally.rows} rows were finished.",
                rows=self._tally.rows,
            )
        return finish.outcome == "complete"

    # ---- in -------------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Read as many rows as are wanted, but not so many that answers wait."""
        count = min(self._state.room, READ_AT_ONCE)
        if not count:
            return
        rows = list(islice(self._rows, count))
        events: list[Event] = [RowsRead(rows)]
        if len(rows) < count:
            events.append(InputEnded())
        self._handle(*events)

    def _collect(self) -> None:
        """Take the calls that have ended; wait for one if there is nothing else to do."""
        if self._finish is not None:
            return
        events: list[Event] = []
        try:
            if not self._state.room:
                events.append(self._event(self._ended.get(timeout=WAIT_S)))
            while True:
                events.append(self._event(self._ended.get_nowait()))
        except Empty:
            pass
        now = time.monotonic()
        if now - self._looked_at >= WAIT_S:
            events += self._look_around()
            self._report()
        self._handle(*events)

    def _event(self, call: Call) -> Event:
        job = self._live.pop(call)
        if call.error is not None:
            self._looked_at = 0.0  # before its job goes on, it must be known whether the worker is still there
            return RequestFailed(call.worker, job, call.error)
        answer = Answer(
            call.text,
            cast(FinishReason, call.finish_reason),
            call.prompt_tokens,
            call.completion_tokens,
            job.seed if call.seed is None else call.seed,
            call.message,
            call.logprobs,
            call.count,
        )
        return Answered(call.worker, job, answer)

    def _look_around(self) -> list[Event]:
        """What changed without a call: workers, the stop switch, rests that are over."""
        self._looked_at = now = time.monotonic()
        events = self._changes(self._connection.workers())
        for worker, until in list(self._resting.items()):
            if now >= until:
                del self._resting[worker]
                events.append(WorkerRested(worker))
        if self._stop.pressed > self._stop_seen:
            self._stop_seen = self._stop.pressed
            events.append(StopRequested(at_once=self._stop_seen > 1))
        return events

    def _changes(self, views: Sequence[WorkerView]) -> list[Event]:
        """Who has come and gone, also where one process has followed another unseen."""
        events: list[Event] = []
        up, coming = self._state.workers, self._state.coming
        for view in views:
            if view.up and (view.index not in up or self._incarnations[view.index] != view.incarnation):
                before = self._incarnations.get(view.index, view.incarnation)
                self._incarnations[view.index] = view.incarnation
                max_batch = self._max_batch(view.index)
                self._tally.worker_up(view.index, max_batch, another=before != view.incarnation)
                events.append(WorkerUp(view.index, max_batch))
            elif not view.up and (view.index in up or (view.index in coming) != view.coming):
                events.append(WorkerDown(view.index, view.coming))
        events += [WorkerDown(index) for index in sorted((up | coming) - {view.index for view in views})]
        return events

    def _max_batch(self, worker: int) -> int:
        try:
            said = self._connection.describe(worker, DESCRIBE_TIMEOUT_S)
        except SamplerPoolError:  # if it is gone, that will show; if it is only slow, it can still answer
            return DEFAULT_MAX_BATCH
        if self._on_worker is not None:
            self._on_worker(worker, said)
        value = said.get("max_batch")
        return value if isinstance(value, int) and value > 0 else DEFAULT_MAX_BATCH

    # ---- out ------------------------------------------------------------------------------------------------------

    def _handle(self, *events: Event) -> None:
        self._act(self._state.handle(*events, now_s=time.monotonic()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Emit(result, worker):
                    self._tally.emitted(result, worker)
                    self._results.append(result)
                case Assign(worker, jobs):
                    self._submit(worker, jobs)
                case Drop(worker, job):
                    self._connection.abort([c for c, live in self._live.items() if live is job and c.worker == worker])
                case Rest(worker):
                    self._resting[worker] = time.monotonic() + REST_S
                case Finish():
                    self._finish = action

    def _submit(self, worker: int, jobs: list[Job]) -> None:
        calls: list[Call] = []
        for job in jobs:
            row = job.slot.row
            messages: Sequence[Message] = row.messages
            unreadable: RenderError | None = None
            try:  # not sooner: these rows are large, and few of them run at a time
                messages = with_media_read(messages, folder=row.folder, fetch=self._fetch_media)
            except RenderError as error:
                unreadable = error
            call = Call(
                ChatPrompt(messages, row.tools, {**self._template_options, **row.template_options}),
                request_params(self._params, row, job.sample, job.seed),
                priority=BATCH_PRIORITY,
                stream=False,
                parse=True,
                purpose="count" if self._count_only else "answer",
                on_update=self._ended.put,
            )
            call.worker = worker
            self._live[call] = job
            if unreadable is None:
                calls.append(call)
            else:
                call.fail(unreadable)
                self._ended.put(call)
        self._connection.submit(worker, calls)

    def _abort_what_runs(self) -> None:
        if self._live:
            self._connection.abort(list(self._live))

    def _report(self) -> None:
        self._tally.deaths, self._tally.suspects = self._state.deaths, self._state.suspects
        if self._on_progress is not None:
            state = self._state
            self._on_progress(
                self._tally.progress(time.monotonic(), state.outstanding.items(), state.workers, state.coming)
            )
