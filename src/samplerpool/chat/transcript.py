"""The conversation so far: turns, the question in progress, what goes with the next one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from samplerpool.chat.turns import Question, ToolResults, Turn, joined, loaded_turn, text_message, text_of, with_text
from samplerpool.errors import UsageError
from samplerpool.types import Content, Message


class Transcript:
    """System prompt, finished turns, and at most one turn in progress.

    A turn is begun with ``ask``, ``ask_again``, ``ask_instead``, ``ask_with_results`` or ``go_on``, grows with
    ``receive``, and ends with ``complete``, ``stop`` or ``fail``. Only what was answered is shown to the model: a
    question without an answer would change how it reads the next one. Such a question is kept for ``ask_again``, until
    the next one is asked.

    Args:
        system: the system prompt; it survives ``clear``.

    ``tools`` is the JSON text of the tools on offer, ``prefill`` how the next answer is to begin, ``blocks`` is what
    goes in front of the next message.
    """

    def __init__(self, system: str | None = None) -> None:
        self._opening: list[Message] = []
        self.turns: list[Turn] = []
        self.question: Question | None = None
        self.waiting: Question | None = None
        self.tools: str | None = None
        self.prefill = ""
        self.blocks: list[Content] = []
        self._results = ToolResults()
        self._answer: list[str] = []
        self._before = ""  # what the answer in progress goes on behind
        self.set_system(system)

    # ---- what there is --------------------------------------------------------------------------------------------

    @property
    def system(self) -> str:
        """The system prompt, empty for none."""
        return "".join(map(text_of, self._opening))

    def set_system(self, text: str | None) -> None:
        """Another system prompt, or none."""
        self._opening = [text_message("system", text)] if text else []

    @property
    def messages(self) -> list[Message]:
        """What the model is to see: all finished turns, and the question in progress."""
        return [*self._finished(), *(self.question.asked if self.question else ())]

    @property
    def everything(self) -> list[Message]:
        """All that would be lost: finished turns, the question in progress or without an answer, the answer so far."""
        asked = self.question or self.waiting
        return [*self._finished(), *(asked.asked if asked else ()), *self._answer_so_far()]

    def _answer_so_far(self) -> list[Message]:
        """Of the turn in progress; as long as nothing has come, the answer that would be back if it failed."""
        if self.question is None:
            return []
        if self._answer:
            return [text_message("assistant", self.answer)]
        return [self.question.instead_of.answer] if self.question.again and self.question.instead_of else []

    def _finished(self) -> list[Message]:
        return [*self._opening, *(message for turn in self.turns for message in (*turn.asked, turn.answer))]

    @property
    def answer(self) -> str:
        """What has come of the answer in progress, the prefill in front."""
        return (self.question.prefill if self.question else "") + "".join(self._answer)

    @property
    def last(self) -> Turn:
        """The latest turn.

        Raises:
            UsageError: there is none.
        """
        if not self.turns:
            raise UsageError("There is no answer yet.")
        return self.turns[-1]

    @property
    def last_question(self) -> str:
        """The text of the latest question, answered or not.

        Raises:
            UsageError: there is none.
        """
        if self.waiting is None and not self.turns:
            raise UsageError("There is no question yet.")
        asked = self.waiting.asked if self.waiting else self.turns[-1].asked
        return text_of(asked[-1]) if asked else ""

    @property
    def last_answer(self) -> str:
        """The text of the latest answer; as ``last``."""
        return text_of(self.last.answer)

    @property
    def last_prompt(self) -> tuple[list[Message], str]:
        """What the model saw, or is to see, of the latest question: messages, and how the answer begins.

        Raises:
            UsageError: nothing was asked yet.
        """
        if self.waiting is not None:
            return [*self._finished(), *self.waiting.asked], self.waiting.prefill
        if not self.turns:
            raise UsageError("There is no question yet.")
        return self._finished()[:-1], self.turns[-1].prefill

    def check_not_empty(self) -> None:
        """Refuse a conversation in which nothing was said.

        Raises:
            UsageError
        """
        if not self.turns and self.waiting is None:
            raise UsageError("Nothing was said yet.")

    # ---- a turn begins --------------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """Begin a turn; one that is still in progress counts as stopped. If the last question has no answer and was to
        take the place of one that has, that one is back."""
        self.stop()
        if self.waiting is not None and self.waiting.instead_of is not None:
            self.turns.append(self.waiting.instead_of)
        words: Content = {"type": "text", "value": question}
        asked: Message = {"role": "user", "content": [*joined(self.blocks, words)]}
        self._begin(Question((*self._results.messages, asked), self.prefill))
        self.blocks = []

    def ask_again(self) -> None:
        """Begin the last turn anew: the question that failed, or the one that was answered last.

        Raises:
            UsageError: nothing was asked yet.
        """
        if self.waiting is not None:
            self._begin(replace(self.waiting, prefill=self.prefill or self.waiting.prefill))
        elif not self.turns:
            raise UsageError("There is no question yet.")
        else:
            turn = self.turns.pop()
            self._begin(Question(turn.asked, self.prefill or turn.prefill, turn, again=True, earlier=turn.answer))

    def ask_instead(self, text: str) -> None:
        """Begin a turn in place of the last one, with this text; images that went with the question stay.

        Raises:
            UsageError: nothing was asked yet.
        """
        self.ask_again()
        assert self.question is not None
        asked = self.question.asked or (text_message("user", ""),)
        changed = (*asked[:-1], with_text(asked[-1], text))
        self.question = replace(self.question, asked=changed, again=False, earlier=None)

    def go_on(self) -> Turn:
        """Begin to lengthen the last answer.

        Returns:
            The turn as it was.

        Raises:
            UsageError: there is none, it had come to its end, or a question was asked since.
        """
        if self.waiting is not None:
            raise UsageError("The last question has no answer yet; /retry asks it again, /undo takes it back.")
        if not self.last.cut:
            raise UsageError("The last answer had come to its end; /retry asks for another one.")
        turn = self.turns.pop()
        self._begin(Question(turn.asked, turn.prefill, turn, again=True, earlier=turn.earlier))
        self._before = turn.text.removeprefix(turn.prefill)
        self._answer = [self._before]
        return turn

    def _begin(self, question: Question) -> None:
        self.question, self.waiting = question, None
        self.prefill = ""
        self._answer, self._before = [], ""

    # ---- a turn goes on and ends ----------------------------------------------------------------------------------

    def receive(self, text: str) -> None:
        """The answer in progress goes on with this text."""
        self._answer.append(text)

    def correct(self, text: str) -> None:
        """All of the answer in progress, the prefill left out, where that is known better than by its pieces: how an
        answer ended that goes on (in half a character, say) may be something else now."""
        if self.question is not None:
            self._answer = [text]

    def complete(self, message: Message | None = None, *, cut: bool = False) -> Turn | None:
        """The turn is answered: by the text received, or by ``message`` where that text is parsed.

        Args:
            cut: the answer ended at its limit.

        Returns:
            The turn; None if none was in progress.
        """
        turn = None
        if asked := self.question:
            said = message or text_message("assistant", self.answer)
            turn = Turn(asked.asked, said, self.answer, asked.prefill, cut, asked.earlier)
            self.turns.append(turn)
            self._results.clear()
        self._end_turn()
        return turn

    def stop(self, message: Message | None = None) -> Turn | None:
        """The turn was cut short by the user: keep what came of the answer; if nothing came, it failed.

        Returns:
            The turn; None if nothing came.
        """
        if "".join(self._answer) != self._before:
            return self.complete(message, cut=True)
        self.fail()
        return None

    def fail(self) -> None:
        """The turn failed: forget what came; keep the question, or the turn that it was to take the place of."""
        if (asked := self.question) is not None:
            if asked.again and asked.instead_of:
                self.turns.append(asked.instead_of)
            else:
                self.waiting = asked
        self._end_turn()

    def _end_turn(self) -> None:
        self.question = None
        self._answer, self._before = [], ""

    # ---- changes between turns ------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all turns, and what was to go with the next message."""
        self.turns.clear()
        self._results.clear()
        self.blocks, self.prefill = [], ""
        self.waiting = None
        self._end_turn()

    def undo(self) -> str:
        """Take the last question back, with its answer. One that had taken the place of another gives it back.

        Returns:
            Its text.

        Raises:
            UsageError: there is none.
        """
        text = self.last_question
        if self.waiting is None:
            self.turns.pop()
        else:
            self.turns += [self.waiting.instead_of] if self.waiting.instead_of else []
            self.waiting = None
        self._results.clear()
        return text

    def put_answers(self, chosen: Message, text: str, other: Message, *, cut: bool = False) -> None:
        """Answer the last question with the better one of two answers; the other one becomes the earlier one.

        Args:
            text: of the chosen one, without the prefill.
            cut: it ended at its limit.
        """
        _, begun = self.last_prompt
        for_the_next = self.prefill
        self.ask_again()
        assert self.question is not None
        self.question = replace(self.question, prefill=begun, earlier=other)
        self._answer = [text]
        self.complete(chosen, cut=cut)
        self.prefill = for_the_next

    def swap(self) -> None:
        """Put the earlier answer in the place of the last one, and the other way round.

        Raises:
            UsageError: there is no earlier one.
        """
        turn = self.last
        if turn.earlier is None:
            raise UsageError("The last question has one answer only; /retry or /compare gives another one.")
        self.turns[-1] = Turn(turn.asked, turn.earlier, prefill=turn.prefill, earlier=turn.answer)
        self._results.clear()

    def load(self, messages: Sequence[Message], tools: str | None) -> None:
        """Go on with a conversation from elsewhere. What is behind its last answer waits for ``ask_again``."""
        self.clear()
        self.tools = tools
        first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        self._opening = list(messages[:first])
        asked: list[Message] = []
        for message in messages[first:]:
            if message["role"] == "assistant":
                self.turns.append(loaded_turn(tuple(asked), message))
                asked = []
            else:
                asked.append(message)
        self.waiting = Question(tuple(asked)) if asked else None

    # ---- tools ----------------------------------------------------------------------------------------------------

    @property
    def open_calls(self) -> list[str]:
        """Names of the functions that the last answer calls and that have no result yet, in order."""
        return self._results.open_calls(self._last_answer)

    def answer_call(self, result: str, name: str | None = None) -> None:
        """Give the result of one of the last answer's calls: the first without one, or the first of that name.

        Raises:
            UsageError: there is no such call.
        """
        self._results.give(self._last_answer, result, name)

    def ask_with_results(self) -> None:
        """Begin a turn that says the results of tools, and nothing else."""
        self._begin(Question(tuple(self._results.messages), self.prefill))

    @property
    def _last_answer(self) -> Message | None:
        return self.turns[-1].answer if self.turns else None
