"""What a line means, and which command a mistyped one was meant to be."""

from __future__ import annotations

import pytest

from samplerpool.chat.commands import BARE_WORDS, COMMANDS, SYNONYMS, Ask, Nothing, Refused, Run, interpret, nearest


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("clear\n", Run("clear")),
        (" exit ", Run("exit")),
        ("\n", Nothing()),
        ("  ", Nothing()),
        ("clear the table\n", Ask("clear the table")),
        ("Exit", Ask("Exit")),
        ("two\nlines\n", Ask("two\nlines")),
        ("bad \udcff byte", Ask("bad ? byte")),
        ("/undo", Run("undo")),
        ("/UNDO ", Run("undo")),
        ("/quit", Run("exit")),
        ("/set  temperature   0.5 ", Run("set", "temperature   0.5")),
        ("/prefill two\nlines", Run("prefill", "two\nlines")),
        ("/system\nBe brief.\nBe kind.", Run("system", "Be brief.\nBe kind.")),
        ("/retry", Run("retry")),
        ("//etc/passwd what is that", Ask("/etc/passwd what is that")),
        ("//", Ask("/")),
        ("what is /undo", Ask("what is /undo")),
    ],
)
def test_what_a_line_means(line: str, command: object) -> None:
    assert interpret(line) == command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/etc/passwd what is that", "type two: //etc/passwd what is that"),
        ("/rety", "There is no command /rety; the nearest one is /retry [SEED]. Nothing was sent."),
        ("/", "/help shows all"),
        ("/ undo", "There is no command /; /help shows all"),
        ("/undo 3", "/undo takes nothing after it, not '3'"),
        ("/export", "/export needs something after it: /export FILE."),
        ("/" + "x" * 500, "/help shows all"),
    ],
)
def test_what_looks_like_a_command_is_never_a_question(line: str, said: str) -> None:
    refused = interpret(line)
    assert isinstance(refused, Refused)
    assert said in refused.why
    assert len(refused.why) < 300


@pytest.mark.parametrize(
    ("word", "command"),
    [("rety", "retry"), ("comp", "compare"), ("SAV", "save"), ("qit", "exit"), ("log_probs", "logprobs"), ("%%", "")],
)
def test_the_nearest_command(word: str, command: str) -> None:
    assert nearest(word) == command


def test_every_name_leads_to_a_command_and_fits_a_terminal_of_80_columns() -> None:
    assert {*SYNONYMS.values(), *BARE_WORDS} <= {*COMMANDS}
    assert all(name == spec.name for name, spec in COMMANDS.items())
    assert all(len(spec.usage) <= 24 and len(spec.help) <= 88 for spec in COMMANDS.values())
