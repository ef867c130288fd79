"""``samplerpool chat`` and ``run_chat`` without a terminal: piped questions, one question, a data set."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samplerpool import run_chat
from samplerpool.errors import FingerprintMismatch, InvalidParameter, OutputExists
from samplerpool.samplers.sync_sampler import SyncSampler

TIMEOUT_S = 60.0
SCRIPTED = "sample_backend=scripted"


@pytest.fixture
def pool() -> Iterator[SyncSampler]:
    with SyncSampler.launch(engine="scripted", workers=1) as sampler:
        yield sampler


def run(module: str, *options: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *options],
        input=stdin,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environ},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )


def chat(*options: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return run("samplerpool", "chat", *options, stdin=stdin, **environ)


def sampler_module(*options: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run("samplerpool.samplers.cli_sampler", *options, stdin=stdin)


def test_piped_questions_give_plain_answers(pool: SyncSampler) -> None:
    result = chat(stdin="one\n\nclear\n[[say:zwölf 😀]]\nexit\nnever")
    assert (result.stdout, result.stderr, result.returncode) == ("one\nzwölf 😀\n", "", 0)


def test_a_failed_turn_shows_in_the_exit_code(pool: SyncSampler) -> None:
    result = chat(stdin="one\n[[fail]]\nthree\n")
    assert (result.stdout, result.returncode) == ("one\n\nthree\n", 1)
    error = "Error: The scripted engine was told to fail this request."
    assert re.fullmatch(error + r" \(request w0\.\d+\.\d+; samplerpool logs may tell more\)\n", result.stderr)


def test_piped_input_ends_when_no_worker_is_left() -> None:
    with SyncSampler.launch(engine="scripted", workers=1, max_restarts=0):
        result = chat(stdin="[[crash]]\nthree\n")
    assert (result.stdout, result.returncode) == ("\n", 1)
    assert "no worker is left" in result.stderr


def test_once_prints_one_answer(pool: SyncSampler) -> None:
    assert pool.connection_file is not None
    result = chat("--pool", pool.connection_file.pool, "--worker", "0", "--once", "what\nis it", "--max-tokens", "6")
    assert (result.stdout, result.stderr, result.returncode) == ("what\ni\n", "", 0)
    assert chat("--once", "[[fail]]").returncode == 1


def test_an_output_without_utf8_gets_replacements(pool: SyncSampler) -> None:
    result = chat("--once", "[[say:a 😀]]", PYTHONIOENCODING="ascii")
    assert (result.stdout, result.returncode) == ("a ?\n", 0)


def test_bytes_that_are_no_text_do_not_end_the_chat(pool: SyncSampler) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "samplerpool", "chat"],
        input=b"bad \xff byte\nnext\n",
        capture_output=True,
        timeout=TIMEOUT_S,
    )
    assert (result.stdout.decode().splitlines()[1:], result.returncode) == (["next"], 0)


def test_a_reader_that_leaves_ends_the_chat_quietly(pool: SyncSampler) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "samplerpool", "chat", "--max-new-tokens", "90000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert None not in (process.stdin, process.stdout, process.stderr)
        process.stdin.write(b"[[tokens:90000]][[pace:0.001]]\n")
        process.stdin.flush()
        assert process.stdout.read(3) == b"The"
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 1
        assert process.stderr.read() == b""


def test_a_document_is_one_message_behind_the_question(pool: SyncSampler) -> None:
    document = "one\n\nexit\n/help\nlast\n"  # the scripted engine drops blanks at the end of what it repeats
    result = chat("--stdin", stdin=document)
    assert (result.stdout, result.stderr, result.returncode) == (document, "", 0)
    result = chat("--stdin", "--once", "What is this?", stdin="a b\n")
    assert (result.stdout, result.returncode) == ("What is this?\n\na b\n", 0)
    result = chat("--stdin", "--once", "What is this?", stdin=" \n")
    assert (result.stdout, result.returncode) == ("", 2)
    assert "nothing came" in result.stderr


def test_commands_work_in_a_pipe_and_what_is_none_is_never_sent(pool: SyncSampler) -> None:
    result = chat(stdin="/set max_new_tokens 3\nabcdef\n/sett x 3\n//sett x 3\n")
    assert (result.stdout, result.returncode) == ("abc\n/se\n", 1)
    assert "no command /sett; the nearest one is /set NAME VALUE" in result.stderr


# ---- JSON -----------------------------------------------------------------------------------------------------------


def json_lines(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def told(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row["generation"][name] for name in names) for row in rows]


def test_json_is_one_result_a_turn_in_the_form_of_batch_rows(pool: SyncSampler) -> None:
    result = chat("--json", "--system", "Be brief.", "--seed", "5", stdin="one\n[[say:zwölf 😀]]\n")
    rows = json_lines(result)
    assert told(rows, "index", "text", "finish_reason", "seed", "error") == [
        (0, "one", "stop", 5, None),
        (1, "zwölf 😀", "stop", 5, None),
    ]
    assert [message["role"] for message in rows[1]["messages"]] == ["system", *["user", "assistant"] * 2]
    assert rows[1]["messages"][-1]["content"] == [{"type": "text", "value": "zwölf 😀"}]
    assert 0 <= rows[1]["timing"]["first_token_s"] <= rows[1]["timing"]["elapsed_s"]
    assert (result.stderr, result.returncode) == ("", 0)


def test_json_is_utf8_in_every_locale(pool: SyncSampler) -> None:
    result = chat("--json", "--once", "[[say:zwölf 😀]]", PYTHONIOENCODING="ascii")
    assert told(json_lines(result), "text") == [("zwölf 😀",)]


def test_a_failed_turn_has_its_error_in_the_json_and_what_came_before(pool: SyncSampler) -> None:
    result = chat("--json", stdin="[[fail:3]]some words\ntwo\n")
    rows = json_lines(result)
    assert told(rows, "index", "text", "finish_reason") == [(0, "som", "error"), (1, "two", "stop")]
    assert rows[0]["generation"]["error"].startswith("EngineError: The scripted engine was told to fail")
    assert [message["role"] for message in rows[0]["messages"]] == ["user"]
    assert result.returncode == 1


def test_events_tell_every_token_once(pool: SyncSampler) -> None:
    start, *middle, end = json_lines(
        chat("--json", "events", "--once", "[[pace:0.02]][[say:a 😀 b]]", "--logprobs", "1")
    )
    assert start == {"event": "start", "index": 0}
    assert {event["event"] for event in middle} == {"tokens"}
    assert "".join(event["text"] for event in middle) == end["generation"]["text"] == "a 😀 b"
    tokens = [token for event in middle for token in event["token_ids"]]
    assert [event["index"] for event in middle] == [
        sum(len(event["token_ids"]) for event in middle[:number]) for number in range(len(middle))
    ]
    said = [entry["token_id"] for entry in end["generation"]["logprobs"]]
    assert tokens == said[: len(tokens)]  # an end-of-sequence token adds no text
    assert len(said) - len(tokens) <= 1
    assert end["event"] == "end"


def test_what_came_before_ctrl_c_is_in_the_json(pool: SyncSampler) -> None:
    command = [
        sys.executable,
        "-m",
        "samplerpool",
        "chat",
        "--json",
        "events",
        "--once",
        "[[tokens:90000]][[pace:0.001]]",
    ]
    with subprocess.Popen([*command, "--max-new-tokens", "90000"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["event"] for _ in range(2)] == ["start", "tokens"]
        process.send_signal(signal.SIGINT)
        end = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(TIMEOUT_S) == 130
    assert end["generation"]["finish_reason"] == "aborted"
    assert end["generation"]["text"][0] == "T"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "No pool is running"),
        (["--pool", "absent"], 2, "absent"),
        (["--connect", "/absent/file.json"], 2, "/absent/file.json"),
        (["--pool", "a", "--model", "b"], 2, "not several"),
        (["--engine", "scripted", "--worker", "0"], 2, "--worker"),
        (["--n", "2"], 2, "one answer a turn"),
        (["--temperature", "-1"], 2, "temperature must be at least 0"),
    ],
)
def test_wrong_usage_is_one_clear_line(options: list[str], code: int, said: str) -> None:
    result = chat(*options, "--once", "hi")
    assert (result.stdout, result.returncode) == ("", code)
    assert said in result.stderr
    assert "Traceback" not in result.stderr


# ---- run_chat -------------------------------------------------------------------------------------------------------


def questions(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def answers(text: str) -> list[tuple[int, str]]:
    generations = [json.loads(line)["generation"] for line in text.splitlines()]
    return [(each["index"], each["text"]) for each in generations]


def test_the_module_chats_over_pipes_with_a_config_file_and_overrides(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("sample_backend: scripted\nmax_new_tokens: 3\n")
    result = sampler_module(str(config), "max_new_tokens=5", stdin="123456789\n")
    assert (result.stdout, result.returncode) == ("12345\n", 0)


def test_the_module_answers_data_sets_to_standard_output(tmp_path: Path) -> None:
    train = questions(tmp_path / "train.jsonl", {"prompt": "one"}, "{broken", {"prompt": "three 😀"})
    evaluation = questions(tmp_path / "eval.jsonl", {"prompt": "four"})
    result = sampler_module(SCRIPTED, "--train_dataset", train, "--eval_dataset", evaluation)
    assert answers(result.stdout) == [(0, "one"), (1, ""), (2, "three 😀"), (3, "four")]
    assert "train.jsonl, line 2" in json.loads(result.stdout.splitlines()[1])["generation"]["error"]
    assert "4 rows, 1 with errors" in result.stderr
    assert result.returncode == 3


def test_run_chat_writes_answers_to_a_new_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = questions(tmp_path / "data.jsonl", {"prompt": "one", "id": 7}, {"prompt": "two", "id": 8})
    args = {"sample_backend": "scripted", "train_dataset": data, "output": str(tmp_path / "out.jsonl"), "n": 2}
    run_chat(args)
    text = (tmp_path / "out.jsonl").read_text()
    assert answers(text) == [(0, "one"), (0, "one"), (1, "two"), (1, "two")]
    assert [json.loads(line)["id"] for line in text.splitlines()] == [7, 7, 8, 8]
    assert capsys.readouterr().out == ""
    with pytest.raises(OutputExists):
        run_chat(args)
    assert (tmp_path / "out.jsonl").read_text() == text


def test_run_chat_refuses_an_output_that_is_there_also_if_rows_of_it_failed(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    args = {
        "sample_backend": "scripted",
        "train_dataset": questions(tmp_path / "data.jsonl", "no row", {"prompt": "two"}),
    }
    run_chat({**args, "output": str(output)})
    text = output.read_text()
    assert answers(text) == [(0, ""), (1, "two")]
    with pytest.raises(OutputExists, match=r"is there already, with all rows.* remove out.jsonl and out.jsonl.journal"):
        run_chat({**args, "output": str(output)})
    assert output.read_text() == text
    output.unlink()
    with pytest.raises(FingerprintMismatch, match=r"top_k: was null, is 3.* or remove its journal to begin anew"):
        run_chat({**args, "output": str(output), "top_k": 3})


@pytest.mark.parametrize(
    "args",
    [
        {"sample_backend": "scripted", "engine": "paged"},
        {"sample_backend": "tensorrt"},
        {"sample_backend": "scripted", "num_return_sequences": 2},
        {"modell": "x"},
    ],
)
def test_run_chat_refuses_what_cannot_be_before_anything_starts(args: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        run_chat(args)


def test_the_module_refuses_in_one_line_and_helps() -> None:
    result = sampler_module("--modle", "x", "sample_backend=tensorrt")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: Unknown argument 'modle'; did you mean 'model'? sample_backend must be hf,")
    helped = sampler_module("--help")
    assert "--model_name_or_path" in helped.stdout
    assert helped.returncode == 0
