"""The commands of ``samplerpool chat`` as they are typed, in a real terminal against scripted workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samplerpool.samplers.sync_sampler import SyncSampler
from samplerpool.types import Message
from tests.process.chat_screen import ChatScreen, chat_screen


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats are typed in this folder, so that names are short enough for a line of the screen."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pool() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", workers=2) as sampler:
        yield sampler


def do(screen: ChatScreen, command: str, *shown: str) -> None:
    """Type a command, and wait for what it shows and the next prompt."""
    screen.ask(command)
    screen.wait_for(*shown)
    screen.at_prompt()


def leave(screen: ChatScreen) -> None:
    screen.at_prompt()
    screen.press("ctrl-d")
    assert screen.exit_code() == 0


def _one_line(screen: ChatScreen) -> str:
    """What is on the screen behind the last command."""
    return "".join(screen.everything.splitlines()).rpartition("User: /continue")[2]


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"][-1]["value"]) for message in messages]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_are_asked_again_changed_and_taken_back(pool: SyncSampler, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/first/second/ "$1"\n')
    editor.chmod(0o700)
    with chat_screen(VISUAL=str(editor), columns=100) as screen:
        do(screen, "[[say:first]]", "Assistant: first")
        do(screen, "/edit", "The question is now: [[say:second]]", "Assistant: second")
        do(screen, "[[random:9]]")
        do(screen, "/retry 5")
        do(screen, "/prefer pairs", "the last answer as chosen")
        do(screen, "/save saved.json", "Saved to")
        do(screen, "/undo", "Taken back: [[random:9]]")
        do(screen, "/continue", "Error: The last answer had come to its end")
        do(screen, "/keep kept", "Appended to")
        leave(screen)
    again = "".join(pool.generate("[[random:9]]", seed=5))
    messages = json.loads((tmp_path / "saved.json").read_text())["messages"]
    assert texts(messages) == [
        ("user", "[[say:second]]"),
        ("assistant", "second"),
        ("user", "[[random:9]]"),
        ("assistant", again),
    ]
    (pair,) = rows(tmp_path / "pairs")
    assert pair["chosen_messages"] == messages
    assert pair["rejected_messages"][:-1] == messages[:-1]
    assert pair["rejected_messages"][-1] != messages[-1]
    assert rows(tmp_path / "kept") == [{"messages": messages[:2]}]


def test_an_answer_that_was_stopped_or_cut_off_goes_on(pool: SyncSampler, tmp_path: Path) -> None:
    whole = "".join(pool.generate("[[tokens:30]]"))
    path = tmp_path / "saved.json"
    with chat_screen("--max-new-tokens", "12", columns=100) as screen:
        do(screen, "[[tokens:30]]", "length")
        do(screen, "/continue")
        do(screen, "/continue")
        do(screen, "/set max_new_tokens 90000", "max_new_tokens = 90000")
        screen.ask("[[tokens:80000]][[pace:0.02]]")
        screen.wait_for("Assistant: The quick brown fox")
        screen.press("ctrl-c")
        screen.wait_for("(stopped)")
        do(screen, "/save saved.json", "Saved to")
        screen.ask("/continue")
        screen.wait_until(lambda: " dog. The quick" in _one_line(screen), "more of the answer")
        screen.press("ctrl-c")
        screen.wait_until(lambda: screen.everything.count("(stopped)") == 2, "stopped again")
        do(screen, "/save saved.json", "Saved to")
        leave(screen)
    turns = texts(json.loads(path.read_text())["messages"])
    assert turns[1] == ("assistant", whole)
    filler = "The quick brown fox jumps over the lazy dog. " * 2000
    assert filler.startswith(turns[3][1])
    assert len(turns[3][1]) > len("The quick brown fox jumps over the lazy dog. ")


def test_settings_hold_and_mistakes_are_told(pool: SyncSampler) -> None:
    with chat_screen(columns=120, rows=40) as screen:
        do(screen, "/set max_new_tokens 3", "max_new_tokens = 3")
        do(screen, "123456", "Assistant: 123\n")
        do(screen, "/set temperature warm", "Error: temperature must be a number, not 'warm'.")
        do(screen, "/params", "max_new_tokens        3             set here")
        do(screen, "/unset max_new_tokens", "max_new_tokens is the pool's again")
        do(screen, "/prefill In short:", "The next answer begins with")
        do(screen, "123456", "Assistant: In short:123456")
        do(screen, "/rety", "There is no command /rety; the nearest one is /retry [SEED]. Nothing was sent.")
        do(screen, "//rety", "Assistant: /rety")
        do(screen, "/help retry", "Answer the last question again")
        do(screen, "/system", "There is no system prompt")
        screen.ask("/quit")
        assert screen.exit_code() == 0


def test_a_killed_terminal_costs_nothing(pool: SyncSampler, own_folders: Path) -> None:
    with chat_screen("--max-new-tokens", "90000") as screen:
        do(screen, "[[say:hello]]", "Assistant: hello")
        screen.ask("[[tokens:80000]][[pace:0.01]]")
        screen.wait_for("The quick brown")
        (path,) = (own_folders / "state" / "conversations").iterdir()
        screen.wait_until(lambda: "quick brown" in path.read_text(), "part of the answer in the file")
        screen.kill(signal.SIGKILL)
    assert path.stat().st_mode & 0o777 == 0o600
    with chat_screen(columns=100) as screen:
        do(screen, "/load", f"Loaded {path}: 4 messages.", "The quick brown fox")
        do(screen, "/undo", "Taken back: [[tokens:80000]]")
        do(screen, "/retry", "Assistant: hello")
        screen.press("ctrl-d")
        screen.wait_for("This conversation is kept; /load in the next chat goes on with it.")
        assert screen.exit_code() == 0


def test_files_go_with_a_message_and_conversations_into_files(pool: SyncSampler, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("héllo\n")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    with chat_screen(columns=160) as screen:
        do(screen, "/file notes.txt", "notes.txt (6 characters) goes with the next message")
        do(screen, "what is it", "Assistant: notes.txt:")
        do(screen, "/export chat.md", "Exported to")
        do(screen, "/save precious", "is there already and was left as it is")
        do(screen, "/file none", "cannot be read: No such file or directory.")
        do(screen, "/image notes.txt", "Error: notes.txt is of type text/plain, not an image")
        leave(screen)
    assert precious.read_text() == "precious"
    assert (tmp_path / "chat.md").read_text().startswith("## User\n\nnotes.txt:\n```\nhéllo\n```\n\nwhat is it\n")


def test_a_tool_call_is_answered(pool: SyncSampler, tmp_path: Path) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    messages = [{"role": "user", "content": "[[say:sum]]"}, answer]
    (tmp_path / "call.json").write_text(json.dumps({"messages": messages}))
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "add", "parameters": {}}]))
    with chat_screen(columns=160) as screen:
        do(screen, "/load call.json", "2 messages", "add")
        do(screen, "/tools tools.json", "Tools on offer: add.")
        do(screen, "/tool add 42", "Assistant: 42")
        do(screen, "/tool 43", "Error: The last answer waits for no tool's result.")
        leave(screen)


def test_looking_into_an_answer(pool: SyncSampler) -> None:
    with chat_screen(columns=120, rows=50) as screen:
        do(screen, "[[say:ab]]", "Assistant: ab")
        do(screen, "/raw", "<user>[[say:ab]]", "tokens:", '"[" 91  "[" 91')
        do(screen, "/tokens", '"a" 97  "b" 98', "of 32,768 (0 %)")
        do(screen, "/logprobs 1", "The last answer came without probabilities; /retry ")
        do(screen, "/retry", ' 37.5%  "a" ', ' 99.0% "\\u0000"')
        do(screen, "/logprobs 0")
        screen.ask("[[say:zz]]")
        screen.wait_for("probability: 0.0 0.1")
        do(screen, "/logprobs off", "no longer")
        do(screen, "/stats", "answers             3", "time to first token", "(median)")
        do(screen, "/workers", "* 0  ready  scripted (scripted)", "* 1  ready")
        leave(screen)


def test_two_workers_are_compared_side_by_side(pool: SyncSampler, tmp_path: Path) -> None:
    with chat_screen(columns=80, rows=40) as screen:
        do(screen, "[[random:50]]")
        screen.ask("/compare 0 1")
        screen.wait_for("│ 1", "Both answers are the same.", "or Enter for none:")
        screen.send("2\r")
        screen.wait_for("The answer of 1 stays")
        do(screen, "/keep kept", "Appended to")
        do(screen, "/compare 0 7", "There is no worker 7 here, only 0, 1.")
        screen.ask("/compare 0 nobody")
        screen.wait_for("nobody")
        screen.wait_for("The conversation stays as it was.")
        screen.at_prompt()
        screen.ask("[[tokens:80000]][[pace:0.01]]")
        screen.wait_for("The quick brown")
        screen.press("ctrl-c")
        screen.at_prompt()
        do(screen, "/set max_new_tokens 90000")
        screen.ask("/compare 0 1")
        screen.wait_for("The quick brown fox jumps over the     │ The quick brown")
        screen.press("ctrl-c")
        screen.wait_for("or Enter for none:")
        screen.press("enter")
        screen.at_prompt()
        leave(screen)
    (row,) = rows(tmp_path / "kept")
    answer = texts(row["messages"])[1][1]
    assert len(answer) == 50
    for worker in (0, 1):  # whose requests were aborted when they were stopped
        assert "".join(pool.generate("still here", worker=worker)) == "still here"


def test_the_chat_moves_to_one_worker_and_to_another_pool(pool: SyncSampler) -> None:
    with SyncSampler.launch(engine="scripted", workers=1, pool="other") as other:
        assert pool.connection_file is not None
        with chat_screen("--pool", pool.connection_file.pool, columns=100) as screen:
            do(screen, "/attach 1", "Attached to worker 1 only")
            do(screen, "[[say:one]]", "Assistant: one")
            assert pool.connection.describe(1)["tokens"] > 0
            do(screen, "/attach 9", "There is no worker 9 here")
            do(screen, "/attach nowhere", "Error: There is no pool 'nowhere'")
            before = other.connection.describe(0)["tokens"]
            do(screen, "/attach other", "Attached to other: scripted.")
            do(screen, "[[say:two]]", "Assistant: two")
            assert other.connection.describe(0)["tokens"] > before
            leave(screen)
        assert "".join(other.generate("still here")) == "still here"


def test_a_failed_question_waits_for_retry_even_when_its_worker_died() -> None:
    with SyncSampler.launch(engine="scripted", workers=1, max_restarts=9) as pool, chat_screen(columns=120) as screen:
        do(screen, "[[fail:3]]some words", "Error: ", "told to fail this request")
        do(screen, "/retry", "told to fail this request")
        do(screen, "/undo", "Taken back: [[fail:3]]some words")
        screen.ask("[[say:one two three four five.]][[pace:0.05]]")
        screen.wait_for("Assistant: one")
        assert pool.connection_file is not None
        os.kill(pool.connection_file.workers[0].process.pid, signal.SIGKILL)
        screen.wait_for("worker 0", "five.")
        leave(screen)


def test_piped_commands_work_and_a_wrong_one_shows_in_the_exit_code(pool: SyncSampler, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samplerpool", "chat"]

    def piped(*lines: str) -> tuple[str, str, int]:
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False, timeout=60)
        return done.stdout, done.stderr, done.returncode

    assert piped("/set max_new_tokens 3", "123456", "/keep kept", "/retry") == ("123\n123\n", "", 0)
    assert len(rows(tmp_path / "kept")) == 1
    out, errors, code = piped("/rety", "on")
    assert (out, code) == ("on\n", 1)
    assert "There is no command /rety" in errors
