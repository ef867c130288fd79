"""The conversation so far. Knows nothing of terminals or samplers."""

from __future__ import annotations

from samplerpool.types import Message, Role


def text_message(role: Role, text: str) -> Message:
    """A message of one text block."""
    return {"role": role, "content": [{"type": "text", "value": text}]}


class Transcript:
    """System prompt, finished turns, and at most one turn in progress.

    A turn is begun with ``ask``, grows with ``receive``, and ends with ``complete``, ``stop`` or ``fail``. Only what
    was answered stays: a question without an answer would change how the model reads the next one.

    Args:
        system: the system prompt; it survives ``clear``.
    """

    def __init__(self, system: str | None = None) -> None:
        self._opening: list[Message] = [text_message("system", system)] if system else []
        self._turns: list[Message] = []
        self._question: Message | None = None
        self._answer: list[str] = []

    @property
    def messages(self) -> list[Message]:
        """What the model is to see: all finished turns, and the question in progress."""
        pending = [self._question] if self._question else []
        return [*self._opening, *self._turns, *pending]

    @property
    def answer(self) -> str:
        """What has come of the answer in progress."""
        return "".join(self._answer)

    def ask(self, question: str) -> None:
        """Begin a turn; one that is still in progress counts as stopped."""
        self.stop()
        self._question = text_message("user", question)

    def receive(self, text: str) -> None:
        """The answer in progress goes on with this text."""
        self._answer.append(text)

    def complete(self, message: Message | None = None) -> None:
        """The turn is answered: by the text received, or by ``message`` where the worker has parsed that text."""
        if self._question:
            self._turns += [self._question, message or text_message("assistant", self.answer)]
        self._end_turn()

    def stop(self) -> None:
        """The turn was cut short by the user: keep what came of the answer; if nothing came, forget the question."""
        if self.answer:
            self.complete()
        self._end_turn()

    def fail(self) -> None:
        """The turn failed: forget its question and what came of the answer."""
        self._end_turn()

    def clear(self) -> None:
        """Forget all turns."""
        self._turns.clear()
        self._end_turn()

    def _end_turn(self) -> None:
        self._question = None
        self._answer.clear()
