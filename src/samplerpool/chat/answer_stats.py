"""How an answer went, and the one line that says so."""

from __future__ import annotations

from dataclasses import dataclass

_ENDINGS = {
    "stop": "stop",
    "length": "length (max_new_tokens allows more; /continue goes on)",
    "aborted": "stopped",
    "error": "failed",
    None: "stopped",
}


@dataclass(frozen=True)
class AnswerStats:
    """How an answer went.

    Args:
        finish_reason: why it ended; ``None`` where the user stopped it.
        completion_tokens, prompt_tokens: lengths; ``None`` where the worker has not said.
        first_token_s: seconds from the question to the first token; ``None`` if none came.
        elapsed_s: seconds from the question to the end.
    """

    finish_reason: str | None
    completion_tokens: int | None
    prompt_tokens: int | None
    first_token_s: float | None
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Pace of the tokens behind the first one; ``None`` where there are none to measure it by."""
        if self.first_token_s is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        seconds = self.elapsed_s - self.first_token_s
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    def line(self) -> str:
        """Like ``first token 0.12 s · 31.5 tokens/s · 84 + 120 tokens · stop``."""
        parts = []
        if self.first_token_s is not None:
            parts.append(f"first token {self.first_token_s:.2f} s")
        if (pace := self.tokens_per_s) is not None:
            parts.append(f"{pace:.1f} tokens/s")
        if self.completion_tokens is not None:
            before = f"{self.prompt_tokens} + " if self.prompt_tokens is not None else ""
            parts.append(f"{before}{self.completion_tokens} tokens")
        parts.append(_ENDINGS.get(self.finish_reason, str(self.finish_reason)))
        return " · ".join(parts)
