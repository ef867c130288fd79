"""The chat loop over strings: what is shown, remembered, and returned."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.history import FileHistory, InMemoryHistory

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.console import LABEL, Console, plain_console
from samplerpool.chat.repl import HOW_TO_LEAVE, Repl
from samplerpool.chat.terminal import HISTORY_FILE, _open_history
from samplerpool.chat.transcript import Transcript
from samplerpool.chat.turns import text_message
from samplerpool.client.facts import WorkerFacts
from samplerpool.client.response import Call
from samplerpool.errors import EngineError, WorkerDied
from tests.chat_script import STYLED, Piece, Screen, Script, Session


def test_answers_stream_and_the_conversation_grows() -> None:
    sampler = Script(["a", "b"], ["c"])
    session = Session(sampler, ["one", "two"])
    assert session.shown == f"{LABEL}ab\n{LABEL}c\n"
    assert [len(prompt) for prompt in sampler.prompts] == [2, 4]
    assert sampler.prompts[1][0] == text_message("system", "S")
    assert [call["top_k"] for call in sampler.calls] == [3, 3]
    assert session.turns == [("user", "one"), ("assistant", "ab"), ("user", "two"), ("assistant", "c")]
    assert session.code == 0


def test_each_piece_is_flushed_at_once() -> None:
    seen: list[str] = []

    class Watched(Screen):
        def flush(self) -> None:
            seen.append(self.getvalue())

    Session(Script(["a", "b"]), ["one"], screen=Watched())
    assert f"{LABEL}a" in seen
    assert f"{LABEL}ab" in seen


def test_how_the_request_ended_is_heeded() -> None:
    sampler = Script(["<think>t</think>x"])
    sampler.parsed = {"role": "assistant", "content": [{"type": "reasoning", "value": "t"}]}
    session = Session(sampler, ["one"])
    assert session.transcript.messages[-1] == sampler.parsed
    assert "3 + 17 tokens · stop" in session.screen.getvalue()


def test_reasoning_that_the_prompt_has_opened_is_shown_as_such() -> None:
    sampler = Script(["hm", "</think>so"])
    sampler.reasoning_open = True
    sampler.facts = [WorkerFacts(0, up=True, answered=True, answer_tags={"think": ("<think>", "</think>")})]
    session = Session(sampler, ["one"], palette=STYLED)
    assert "\x1b[2mhm" in session.screen.getvalue()
    assert session.shown == f"{LABEL}hm\n\nso\n"


def test_what_is_waited_for_has_a_line_of_its_own() -> None:
    sampler = Script(["a"])
    sampler.setback = "worker 0 died"
    assert Session(sampler, ["one"]).shown == f"{LABEL}\nworker 0 died\na\n"
    assert Session(sampler, [], typed=False).shown == ""


def test_clear_and_exit() -> None:
    sampler = Script(["a"], ["b"])
    session = Session(sampler, ["one", "clear", "", "two", "exit", "never"])
    assert [len(prompt) for prompt in sampler.prompts] == [2, 2]
    assert session.code == 0


def test_ctrl_c_in_an_answer_keeps_what_came_and_closes_the_stream() -> None:
    sampler = Script(["ha", "lf", KeyboardInterrupt(), "never"], ["c"])
    session = Session(sampler, ["one", "two"])
    assert session.turns[:2] == [("user", "one"), ("assistant", "half")]
    assert "half\n" in session.screen.getvalue()
    assert "(stopped)" in session.errors.getvalue()
    assert (sampler.closed, session.code) == (2, 0)


def test_ctrl_c_while_a_piece_is_being_shown_closes_the_stream_before_anything_else() -> None:
    closed_then: list[int] = []

    class Interrupted(Screen):
        def write(self, text: str) -> int:
            if text == "b":
                raise KeyboardInterrupt
            if text == "\n":
                closed_then.append(sampler.closed)
            return super().write(text)

    sampler = Script(["a", "b", "c"])
    session = Session(sampler, ["one"], screen=Interrupted())
    assert closed_then == [1]
    assert session.turns == [("user", "one"), ("assistant", "ab")]


def test_a_stopped_answer_is_remembered_without_the_tags_in_it() -> None:
    sampler = Script(["h", "m</think>", "\n\nso", KeyboardInterrupt()], ["hm", KeyboardInterrupt()])
    sampler.reasoning_open = True
    session = Session(sampler, ["one", "two"])
    first, second = (message["content"] for message in session.transcript.messages if message["role"] == "assistant")
    assert first == [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "so"}]
    assert second == [{"type": "reasoning", "value": "hm"}]


def test_a_piece_that_came_as_ctrl_c_did_is_not_lost() -> None:
    class Late(Script):
        def _stream(self, call: Call, options: dict[str, Any]) -> Generator[str, None, None]:
            yield from super()._stream(call, options)
            call.texts.append("lf")  # taken from the request, and interrupted on its way to the chat
            raise KeyboardInterrupt

    assert Session(Late(["ha"]), ["one"]).turns == [("user", "one"), ("assistant", "half")]


def test_a_second_ctrl_c_does_not_leave_the_terminal_as_answers_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    end_answer, ended = Console.end_answer, []

    def interrupted(console: Console, stats: AnswerStats | None = None) -> None:
        ended.append(stats)
        if len(ended) == 1:
            raise KeyboardInterrupt
        end_answer(console, stats)

    monkeypatch.setattr(Console, "end_answer", interrupted)
    session = Session(Script(["half", KeyboardInterrupt()]), ["one"])
    assert session.shown == f"{LABEL}half\n"
    assert session.turns == [("user", "one"), ("assistant", "half")]


def test_ctrl_c_between_question_and_answer_forgets_the_question() -> None:
    class Interrupted(Screen):
        interrupted = False

        def write(self, text: str) -> int:
            if text == LABEL and not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return super().write(text)

    session = Session(Script(["a"]), ["one", "two"], screen=Interrupted())
    assert session.turns == [("user", "two"), ("assistant", "a")]


def test_ctrl_c_before_anything_came_forgets_the_question() -> None:
    session = Session(Script([KeyboardInterrupt()]), ["one"])
    assert session.turns == []


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_goes_on() -> None:
    session = Session(Script(["a"]), [KeyboardInterrupt(), "one"])
    assert HOW_TO_LEAVE in session.errors.getvalue()
    assert session.turns == [("user", "one"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (EngineError("It raised\nat step 3."), "Error: It raised at step 3.\n"),
        (ValueError("odd"), "Error: ValueError: odd\n"),
    ],
)
def test_a_failed_turn_is_one_line_and_is_forgotten(error: Exception, shown: str) -> None:
    session = Session(Script(["ha", error], ["b"]), ["one", "two"])
    assert session.errors.getvalue() == shown
    assert session.turns == [("user", "two"), ("assistant", "b")]
    assert session.code == 0


def test_a_worker_gone_for_good_ends_the_chat() -> None:
    sampler = Script(["a", WorkerDied("It died.")])
    session = Session(sampler, ["one", "two"], gone=lambda: "no worker is left.")
    assert session.errors.getvalue() == "Error: It died.\nThe chat ends here: no worker is left.\n"
    assert (len(sampler.prompts), session.code) == (1, 1)


def test_piped_answers_are_plain_and_a_failure_shows_in_the_exit_code() -> None:
    session = Session(Script(["a"], [EngineError("No.")], ["b"]), ["one\n", "two\n", "three\n"], typed=False)
    assert session.screen.getvalue() == "a\n\nb\n"
    assert (session.errors.getvalue(), session.code) == ("Error: No.\n", 1)
    assert Session(Script(["a"]), ["one"], typed=False).code == 0


@pytest.mark.parametrize("place", ["answer", "prompt"])
def test_ctrl_c_ends_piped_input(place: str) -> None:
    lines: list[str | BaseException] = ["one"] if place == "answer" else [KeyboardInterrupt()]
    assert Session(Script(["a", KeyboardInterrupt()]), lines, typed=False).code == 130


def test_a_terminal_does_not_obey_the_model_but_a_pipe_gets_every_byte() -> None:
    answer = "\x1b]0;title\x07\r\u009b2J tab\t\nend"
    shown = Session(Script([answer]), ["one"]).shown
    assert shown == f"{LABEL}\u241b]0;title\u2407\u240d\ufffd2J tab\t\nend\n"
    session = Session(Script([answer]), ["one"], typed=False)
    assert session.screen.getvalue() == f"{answer}\n"
    assert session.turns[1] == ("assistant", answer)


def test_text_that_the_output_cannot_encode_is_replaced() -> None:
    raw = io.BytesIO()
    console = Console(lambda default: "", io.TextIOWrapper(raw, encoding="ascii"), io.StringIO(), interactive=False)
    console.write("ok 😀")
    assert raw.getvalue() == b"ok ?"


def test_once_answers_one_question() -> None:
    out, errors = io.StringIO(), io.StringIO()

    def once(*answer: Piece) -> int:
        console = plain_console(io.StringIO(), out, errors)
        return Repl(Script(list(answer)), console, Transcript(), {}).once("clear")

    assert (once("a"), out.getvalue()) == (0, "a\n")
    assert (once(EngineError("No.")), errors.getvalue()) == (1, "Error: No.\n")
    assert once("b", KeyboardInterrupt()) == 130


def test_history_is_private_and_an_unwritable_folder_costs_only_the_history(tmp_path: Path) -> None:
    assert isinstance(_open_history(tmp_path / "new" / "folder"), FileHistory)
    path = tmp_path / "new" / "folder" / HISTORY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(_open_history(path), InMemoryHistory)  # a file where the folder should be
    history = _open_history(tmp_path)
    (tmp_path / HISTORY_FILE).unlink()
    (tmp_path / HISTORY_FILE).mkdir()
    history.append_string("kept in memory")
    assert history.get_strings() == ["kept in memory"]
