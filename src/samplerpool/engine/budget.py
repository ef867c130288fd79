"""How many rows and tokens a step may have: fewer after one that ran out of memory, and more again in quiet. Pure."""

from __future__ import annotations

MIN_STEP_TOKENS = 16
"""A row alone that runs out of memory with so few tokens is too large by itself."""
FIRST_PATIENCE = 64
"""Steps without trouble after which the budget is doubled."""
MAX_PATIENCE = 4096
LAST_TRIES = 3
"""Times in a row that the smallest step may run out of memory: others use the device too, and come and go."""


class StepBudget:
    """See the module's docstring.

    Args:
        rows, tokens: most in a step while there is memory.

    ``rows`` and ``tokens`` are what holds now, and ``shortages`` counts the steps that ran out of memory.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows = self._most_rows = rows
        self.tokens = self._most_tokens = tokens
        self.shortages = 0
        self._patience = FIRST_PATIENCE
        self._quiet_steps = 0
        self._tries = 0

    @property
    def lowered(self) -> bool:
        """Whether it is below what it was at first."""
        return self.rows < self._most_rows or self.tokens < self._most_tokens

    def figures(self) -> dict[str, int]:
        """For ``status``: how often there was no memory, and what holds now where that is less than at first."""
        figures = {"out_of_memory": self.shortages}
        if self.lowered:
            figures |= {"batch_lowered_to": self.rows, "step_tokens_lowered_to": self.tokens}
        return figures

    def lower(self, rows: int, tokens: int) -> bool:
        """A step ran out of memory; False if it was too small to be made smaller, and that again and again.

        Args:
            rows: that were running.
            tokens: that were computed, 0 if there was no prefill among them: fewer prompts would not have helped.
        """
        if self._quiet_steps:  # the first shortage after a quiet time: the last rise came too early
            self._patience = min(2 * self._patience, MAX_PATIENCE)
        self.shortages += 1
        self._quiet_steps = 0
        if rows <= 1 and tokens <= MIN_STEP_TOKENS:
            self._tries = (self._tries + 1) % LAST_TRIES
            return self._tries != 0
        self.rows = min(self.rows, max(1, rows // 2))
        if tokens:
            self.tokens = min(self.tokens, max(MIN_STEP_TOKENS, tokens // 2))
        return True

    def quiet(self) -> None:
        """A step went well."""
        self._tries = 0
        if not self.lowered:
            return
        self._quiet_steps += 1
        if self._quiet_steps % self._patience == 0:
            self.rows = min(2 * self.rows, self._most_rows)
            self.tokens = min(2 * self.tokens, self._most_tokens)
