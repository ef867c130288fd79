"""What the policy knows of one worker, and the steps of its life. Pure: times are arguments, results are actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samplerpool.pool.events import Action, Announce, DumpStacks, Kill, Spawn, Terminate, WorkerState
from samplerpool.pool.rules import LAST_CALL_S, STACKS_GRACE_S


@dataclass
class Health:
    """Signs of progress, counted in the supervisor's own looks and never in time: neither a suspended machine nor a
    supervisor that was stopped for a while condemns anybody."""

    steps: int = -1
    moved: bool = True
    stalled: int = 0
    moved_at: float | None = None

    def report(self, steps: int, pending: bool, now: float) -> None:
        """The worker says how far it is; one without work is well. The time is for people to see."""
        if steps != self.steps or not pending:
            self.moved, self.moved_at = True, now
        self.steps = steps

    def probe(self) -> int:
        """Look; returns how many looks in a row have seen no progress."""
        self.stalled = 0 if self.moved else self.stalled + 1
        self.moved = False
        return self.stalled


@dataclass
class Worker:
    """One worker, over all of its processes.

    Args:
        alive: it has a process.
        restarts: processes that it had before this one.
        hangs: how many of them hung.
        requested: its process was told to end.
        leaving: it is not wanted any more, and goes with its process.
        deaths: without a stable time between them.
        reason: why its process ends, where that is known beforehand; goes on after "it".
        due: when something is to be done about it; what, its state says.
    """

    index: int
    state: WorkerState = "starting"
    detail: str = ""
    pid: int = 0
    alive: bool = False
    restarts: int = 0
    hangs: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)
    requested: bool = False
    leaving: bool = False
    deaths: int = 0
    reason: str = ""
    due: float | None = None
    ready_at: float | None = None
    hung: bool = False
    hurried: bool = False
    health: Health = field(default_factory=Health)

    def spawn(self, *, again: bool) -> list[Action]:
        """Give it a process."""
        self.state, self.detail, self.reason, self.due = "starting", "", "", None
        self.requested = self.hung = self.hurried = False
        self.ready_at, self.health = None, Health()
        self.restarts += again
        return [Spawn(self.index)]

    def end(self, now: float, timeout_s: float, detail: str = "") -> list[Action]:
        """Ask its process to end within a time. Asked again: the shorter time counts."""
        if self.state == "stopping":
            if self.due is not None and not self.hurried:
                self.due = min(self.due, now + timeout_s)
            return []
        self.state, self.detail, self.requested, self.due = "stopping", detail, not self.hung, now + timeout_s
        return [Terminate(self.index)]

    def hurry(self, now: float) -> list[Action]:
        """Ask its process to end without what it runs."""
        if self.hurried:
            return []
        self.hurried, self.due = True, now + LAST_CALL_S
        return [Terminate(self.index)]

    def kill(self) -> list[Action]:
        """End its process at once."""
        self.due = None
        return [Kill(self.index)]

    def condemn(self, now: float, text: str) -> list[Action]:
        """It hangs: its stacks are asked for, then it is killed."""
        self.hung, self.due = True, now + STACKS_GRACE_S
        self.hangs += 1
        self.reason, self.detail = f"{text}, and was killed", f"hangs: it {text}"
        return [
            Announce(f"worker {self.index} hangs: it {text}; its stacks go to its log", True),
            DumpStacks(self.index),
        ]

    def tick(self, now: float, start_timeout_s: float) -> list[Action]:
        """Do what is due."""
        if self.due is None or now < self.due:
            return []
        if self.state == "restarting":
            return self.spawn(again=True)
        if self.state == "stopping" and not self.hurried:
            return self.hurry(now)
        if self.state == "stopping":
            return [Announce(f"killing worker {self.index}: it did not end in time"), *self.kill()]
        if not self.hung:
            self.reason = f"was not ready within {start_timeout_s:g} s, and was killed"
        return self.kill()
