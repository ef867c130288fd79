"""The conversation's memory."""

from __future__ import annotations

from samplerpool.chat.transcript import Transcript, text_message


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
