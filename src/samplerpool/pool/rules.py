"""The figures by which a pool is supervised, and what follows from them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from samplerpool.config.arguments import PoolArguments, Supervision

FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0
"""Before a worker is started again: doubled with every death, up to this."""

PROBE_INTERVAL_S = 1.0
MIN_PROBES = 4
"""A hang is judged by no fewer of the supervisor's own looks at a worker."""

START_FAILURE_GRACE_S = 5.0
"""How long the other workers may take to end when one of them failed to start."""

LAST_CALL_S = 2.0
"""Between the second request to end, upon which a worker drops what it runs, and the kill."""

STACKS_GRACE_S = 1.0
"""How long a worker that hangs may take to write its stacks before it is killed."""


@dataclass(frozen=True, kw_only=True)
class PoolRules(Supervision):
    """See ``PoolArguments`` for the meaning of each."""

    start_timeout_s: float = PoolArguments.start_timeout_s

    @classmethod
    def of(cls, args: PoolArguments) -> PoolRules:
        """The rules among a pool's arguments."""
        return cls(
            start_timeout_s=args.start_timeout_s,
            max_restarts=args.max_restarts,
            restart_window_s=args.restart_window_s,
            hang_timeout_s=args.hang_timeout_s,
        )

    def delay_s(self, deaths: int, jitter: float) -> float:
        """How long to wait before the next start.

        Args:
            deaths: without a stable time between them.
            jitter: from 0 to 1; it takes away up to half, so that workers that died together do not start together.
        """
        delay_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(deaths - 1, 32))
        return delay_s * (1.0 - jitter / 2)

    @property
    def probes(self) -> int:
        """So many looks in a row at a worker that makes no progress mean that it hangs; 0: never."""
        return max(MIN_PROBES, round(self.hang_timeout_s / PROBE_INTERVAL_S)) if self.hang_timeout_s else 0

    @property
    def probe_interval_s(self) -> float:
        """Time between two looks."""
        return self.hang_timeout_s / self.probes if self.probes else PROBE_INTERVAL_S

    @property
    def progress_interval_s(self) -> float:
        """Time between two reports of a worker: no longer than between two looks at it."""
        return min(PROBE_INTERVAL_S, self.probe_interval_s)
