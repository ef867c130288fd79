"""The conversation's memory."""

from __future__ import annotations

import pytest

from samplerpool.chat.transcript import Transcript
from samplerpool.chat.turns import text_message
from samplerpool.errors import UsageError
from samplerpool.types import Message


def user(text: str) -> object:
    return text_message("user", text)


def assistant(text: str) -> object:
    return text_message("assistant", text)


SYSTEM = text_message("system", "Be brief.")


def answered(transcript: Transcript, question: str, *pieces: str) -> None:
    transcript.ask(question)
    for piece in pieces:
        transcript.receive(piece)
    transcript.complete()


def test_turns_add_up_behind_the_system_prompt() -> None:
    transcript = Transcript("Be brief.")
    answered(transcript, "a", "x", "y")
    transcript.ask("b")
    assert transcript.messages == [SYSTEM, user("a"), assistant("xy"), user("b")]


def test_the_answer_in_progress_is_not_part_of_the_prompt() -> None:
    transcript = Transcript()
    transcript.ask("a")
    transcript.receive("x")
    assert (transcript.messages, transcript.answer) == ([user("a")], "x")


def test_a_stopped_turn_keeps_what_came() -> None:
    transcript = Transcript()
    transcript.ask("a")
    transcript.receive("half")
    transcript.stop()
    assert transcript.messages == [user("a"), assistant("half")]


def test_a_turn_stopped_before_anything_came_leaves_nothing() -> None:
    transcript = Transcript("Be brief.")
    transcript.ask("a")
    transcript.stop()
    assert transcript.messages == [SYSTEM]


def test_a_failed_turn_leaves_nothing_of_itself() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask("b")
    transcript.receive("half")
    transcript.fail()
    assert transcript.messages == [user("a"), assistant("x")]


def test_an_empty_answer_is_an_answer() -> None:
    transcript = Transcript()
    answered(transcript, "a")
    assert transcript.messages == [user("a"), assistant("")]


def test_a_parsed_message_takes_the_place_of_the_text() -> None:
    transcript = Transcript()
    transcript.ask("a")
    transcript.receive("<think>t</think>x")
    transcript.complete({"role": "assistant", "content": [{"type": "reasoning", "value": "t"}]})
    assert transcript.messages[-1] == {"role": "assistant", "content": [{"type": "reasoning", "value": "t"}]}


def test_clear_keeps_the_system_prompt_only() -> None:
    transcript = Transcript("Be brief.")
    answered(transcript, "a", "x")
    transcript.ask("b")
    transcript.clear()
    assert (transcript.messages, transcript.answer) == ([SYSTEM], "")


def test_endings_are_idempotent_and_harmless_between_turns() -> None:
    transcript = Transcript()
    for end in (transcript.complete, transcript.stop, transcript.fail):
        end()
    assert transcript.messages == []
    answered(transcript, "a", "x")
    transcript.stop()
    transcript.complete()
    assert transcript.messages == [user("a"), assistant("x")]


def test_a_question_ends_a_turn_that_was_left_open() -> None:
    transcript = Transcript()
    transcript.ask("a")
    transcript.ask("b")
    assert transcript.messages == [user("b")]


def test_what_was_not_answered_is_asked_again_and_then_forgotten() -> None:
    transcript = Transcript()
    transcript.ask("a")
    transcript.fail()
    assert transcript.everything == [user("a")]
    transcript.ask_again()
    assert transcript.messages == [user("a")]
    transcript.stop()
    answered(transcript, "b", "y")
    assert transcript.everything == transcript.messages == [user("b"), assistant("y")]


def test_everything_holds_the_answer_in_progress() -> None:
    transcript = Transcript("Be brief.")
    transcript.prefill = "So "
    transcript.ask("a")
    assert transcript.everything == [SYSTEM, user("a")]
    transcript.receive("x")
    assert transcript.everything == [SYSTEM, user("a"), assistant("So x")]
    assert transcript.messages == [SYSTEM, user("a")]


def test_an_answer_goes_on_and_ends_again() -> None:
    transcript = Transcript()
    transcript.prefill = "So "
    transcript.ask("a")
    transcript.receive("x")
    transcript.stop()
    assert transcript.go_on().text == "So x"
    assert transcript.answer == "So x"
    transcript.stop()  # nothing new came
    assert (transcript.messages[-1], transcript.waiting) == (assistant("So x"), None)
    transcript.go_on()
    transcript.receive("y")
    transcript.complete()
    assert transcript.messages == [user("a"), assistant("So xy")]
    with pytest.raises(UsageError, match="had come to its end"):
        transcript.go_on()


def test_going_on_keeps_the_answer_before_a_retry() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask_again()
    transcript.receive("y")
    transcript.stop()
    transcript.go_on()
    transcript.receive("z")
    transcript.complete()
    assert transcript.last.earlier == assistant("x")
    transcript.swap()
    assert (transcript.messages[-1], transcript.last.earlier) == (assistant("x"), assistant("yz"))


def test_a_changed_question_is_no_other_answer_to_the_same_one() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask_instead("b")
    transcript.receive("y")
    transcript.complete()
    assert transcript.messages == [user("b"), assistant("y")]
    assert transcript.last.earlier is None


def test_undo_of_a_changed_question_that_failed_brings_the_old_turn_back() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask_instead("b")
    transcript.fail()
    assert transcript.messages == []
    assert transcript.undo() == "b"
    assert transcript.messages == [user("a"), assistant("x")]
    assert transcript.undo() == "a"
    with pytest.raises(UsageError, match="no question yet"):
        transcript.undo()


def test_a_question_behind_a_changed_one_that_failed_finds_the_old_turn_in_its_place() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask_instead("b")
    transcript.fail()
    transcript.ask("c")
    assert transcript.messages == [user("a"), assistant("x"), user("c")]
    transcript.receive("z")
    transcript.complete()
    assert transcript.everything == [user("a"), assistant("x"), user("c"), assistant("z")]


def test_of_two_answers_one_is_put_in_place_whether_or_not_there_was_one() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask("b")
    transcript.fail()
    for _ in range(2):
        transcript.put_answers(text_message("assistant", "y"), "y", text_message("assistant", "z"))
        assert transcript.messages[2:] == [user("b"), assistant("y")]
        assert transcript.last.earlier == assistant("z")


def test_a_chosen_answer_keeps_the_beginning_that_it_was_asked_with() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.prefill = "So "
    transcript.put_answers(text_message("assistant", "y"), "y", text_message("assistant", "z"))
    assert (transcript.last.text, transcript.last.prefill, transcript.prefill) == ("y", "", "So ")


def test_everything_holds_the_answer_that_is_being_asked_for_again() -> None:
    transcript = Transcript()
    answered(transcript, "a", "x")
    transcript.ask_again()
    assert transcript.everything == [user("a"), assistant("x")]
    transcript.receive("y")
    assert transcript.everything == [user("a"), assistant("y")]


CALL: Message = {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]}
BROKEN: Message = {"role": "assistant", "content": [{"type": "tool_call", "value": "no JSON"}]}


def test_conversations_from_elsewhere_are_turns_whatever_their_order() -> None:
    transcript = Transcript("Be kind.")
    first = [SYSTEM, text_message("system", "And short."), text_message("assistant", "Hello.")]
    turns = [text_message("user", "a"), CALL, text_message("tool", "1"), text_message("user", "b")]
    transcript.load([*first, *turns, text_message("assistant", "x"), text_message("user", "c")], "[]")  # type: ignore[list-item]
    assert transcript.messages == [*first, *turns, assistant("x")]
    assert transcript.last_question == "c"
    assert transcript.undo() == "c"
    assert [transcript.undo() for _ in range(3)] == ["b", "a", ""]
    assert transcript.system == "Be brief.And short."


def test_results_are_for_the_last_answers_calls_alone() -> None:
    transcript = Transcript()
    transcript.load([text_message("user", "a"), CALL, text_message("user", "b"), BROKEN], None)
    assert transcript.open_calls == [""]
    transcript.answer_call("1")
    assert transcript.open_calls == []
    transcript.undo()
    assert transcript.open_calls == ["f"]
    with pytest.raises(UsageError, match="waits for no tool's result"):
        transcript.answer_call("1", "g")
    transcript.answer_call("2", "f")
    transcript.ask_with_results()
    assert transcript.messages[-1] == text_message("tool", "2")
    transcript.fail()
    transcript.ask_again()
    assert transcript.messages[-1] == text_message("tool", "2")
