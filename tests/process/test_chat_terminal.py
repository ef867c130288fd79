"""``samplerpool chat`` as it is typed: in a pseudo-terminal, against scripted workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from samplerpool.samplers.sync_sampler import SyncSampler

DEADLINE_S = 90.0
CTRL_D = "\x04"
CTRL_C = "\x03"
HOW_TO_LEAVE = "To leave, type exit or press Ctrl-D"
LONG = "[[tokens:90000]][[pace:0.01]]"


@pytest.fixture
def pool() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", workers=1) as sampler:
        yield sampler


@contextmanager
def chat(*options: str, module: str = "samplerpool", **environ: str) -> Iterator[Any]:
    """A chat in a terminal of 80 by 24."""
    command = ["-m", module, *(["chat"] if module == "samplerpool" else []), *options]
    env = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environ}
    child = pexpect.spawn(
        sys.executable, command, env=env, dimensions=(24, 80), encoding="utf-8", timeout=DEADLINE_S, echo=True
    )
    try:
        yield child
    finally:
        child.close(force=True)


def at_prompt(child: Any) -> None:
    child.expect_exact("User: ")


def ask(child: Any, question: str) -> None:
    """Type a question at the prompt."""
    at_prompt(child)
    child.send(f"{question}\r")
    child.expect_exact("Assistant: ")


def ends_with(child: Any, exit_code: int) -> None:
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, child.signalstatus) == (exit_code, None)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def running(sampler: SyncSampler) -> int:
    return int(sampler.connection.describe(0)["running"])


def still_answers(sampler: SyncSampler) -> bool:
    return "".join(sampler.generate("still here")) == "still here"


def test_a_conversation_with_a_pool_that_outlives_it(pool: SyncSampler, own_folders: Path) -> None:
    with chat("--system", "Be brief.") as child:
        ask(child, "hello there")
        child.expect_exact("hello there\r\n")
        ask(child, "[[say:héllo 😀]]")
        child.expect_exact("héllo 😀\r\n")
        at_prompt(child)
        child.send("clear\r")
        child.expect_exact("The conversation starts anew.")
        ask(child, "after clearing")
        child.expect_exact("after clearing\r\n")
        at_prompt(child)
        child.send("exit\r")
        ends_with(child, 0)
    assert still_answers(pool)
    history = own_folders / "state" / "chat_history"
    assert "+hello there" in history.read_text().splitlines()
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_an_answer_in_the_worker_and_keeps_the_chat(pool: SyncSampler) -> None:
    with chat("--max-new-tokens", "90000") as child:
        ask(child, LONG)
        child.expect_exact("The quick brown")
        eventually(lambda: running(pool) == 1)  # the text is shown while the worker is at it
        child.sendintr()
        child.expect_exact("(stopped)")
        eventually(lambda: running(pool) == 0)
        ask(child, "next question")
        child.expect_exact("next question\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_ctrl_c_at_the_prompt_clears_the_line_or_says_how_to_leave(pool: SyncSampler) -> None:
    with chat() as child:
        at_prompt(child)
        child.send("never sent")
        child.expect_exact("never sent")
        child.send(CTRL_C)
        child.send("sent\r")
        child.expect_exact("sent\r\n")
        at_prompt(child)
        child.send(CTRL_C)
        child.expect_exact(HOW_TO_LEAVE)
        ask(child, "and on")
        child.expect_exact("and on\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_a_paste_of_several_lines_is_one_message(pool: SyncSampler) -> None:
    with chat() as child:
        at_prompt(child)
        child.send("\x1b[200~first\nsecond\nthird\x1b[201~")
        child.expect_exact("third")
        child.send("\r")
        child.expect_exact("first\r\nsecond\r\nthird\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_a_failed_turn_is_one_line_and_the_chat_goes_on(pool: SyncSampler) -> None:
    with chat() as child:
        ask(child, "[[fail:3]]some words")
        child.expect_exact("som")
        child.expect("\r\n(\x1b\\[0m)?Error: [^\r\n]*told to fail this request[^\r\n]*\r\n")
        ask(child, "next")
        child.expect_exact("next\r\n")
        at_prompt(child)
        child.send("exit\r")
        ends_with(child, 0)


def test_an_answer_whose_worker_is_killed_goes_on_and_shows_nothing_of_it() -> None:
    with SyncSampler.launch(engine="scripted", workers=2) as pool, chat() as child:
        ask(child, "[[say:one two three four five.]][[pace:0.05]]")
        child.expect_exact("one")
        assert pool.connection_file is not None
        (busy,) = [w for w in pool.connection_file.workers if pool.connection.describe(w.index)["running"]]
        os.kill(busy.process.pid, signal.SIGKILL)
        child.expect_exact(" two three four five.\r\n")
        ask(child, "and on")
        child.expect_exact("and on\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_with_no_worker_left_the_chat_ends() -> None:
    with SyncSampler.launch(engine="scripted", workers=1, max_restarts=0) as pool, chat() as child:
        ask(child, "[[say:one two three]][[pace:0.05]]")
        child.expect_exact("one")
        assert pool.connection_file is not None
        os.kill(pool.connection_file.workers[0].process.pid, signal.SIGKILL)
        child.expect("Error: [^\r\n]*Worker 0 died")
        child.expect_exact("The chat ends here: no worker is left.")
        ends_with(child, 1)


def test_a_question_that_ends_every_worker_is_one_error_and_the_chat_goes_on() -> None:
    with SyncSampler.launch(engine="scripted", workers=2), chat() as child:
        ask(child, "[[crash:2]]some words")
        child.expect("Error: [^\r\n]*Worker . died")
        ask(child, "who is there")
        child.expect_exact("who is there\r\n")
        at_prompt(child)
        child.send("exit\r")
        ends_with(child, 0)


def test_an_answer_cut_off_at_its_limit_says_so(pool: SyncSampler) -> None:
    with chat("--max-new-tokens", "5") as child:
        ask(child, "123456789")
        child.expect_exact("12345\r\n")
        child.expect_exact("5 tokens · length (max_new_tokens allows more")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_a_model_cannot_command_the_terminal(pool: SyncSampler) -> None:
    with chat() as child:
        at_prompt(child)
        child.send("\x1b[200~[[say:a\x1b[2Jb]]\x1b[201~\r")  # an escape sequence inside a paste
        child.expect_exact("a\u241b[2Jb\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_a_private_worker_survives_ctrl_c_and_ends_with_the_chat() -> None:
    with chat("--engine", "scripted", "--max-new-tokens", "90000") as child:
        child.expect_exact("worker 0: ready")
        ask(child, LONG)
        child.expect_exact("The quick brown")
        child.sendintr()
        child.expect_exact("(stopped)")
        ask(child, "still private")
        child.expect_exact("still private\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)


def test_ctrl_c_while_the_model_loads_leaves_nothing() -> None:
    options = ("sample_backend=scripted", "engine_options={load_s: 60}")
    with chat(*options, module="samplerpool.samplers.cli_sampler") as child:
        child.expect_exact("starting the scripted engine")
        child.sendintr()
        ends_with(child, 130)


def test_a_terminal_without_utf8_gets_replacements(pool: SyncSampler) -> None:
    with chat(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as child:
        ask(child, "[[say:caf\\u00e9 😀!]]")
        child.expect_exact("?!\r\n")
        at_prompt(child)
        child.send(CTRL_D)
        ends_with(child, 0)
