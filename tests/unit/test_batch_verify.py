"""Which answers are compared, how, and what is told of those that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from samplerpool.batch.journal import Journal, Outcome, row_hash
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.near_tie import NOISE_BLOCK, Ending, NearTies
from samplerpool.batch.results import JournalRows, OutputFile, RunFiles, open_results
from samplerpool.batch.verify import Kept, choose_answers, compare
from samplerpool.client.connection import Call, PoolConnection, WorkerView
from samplerpool.data.answers import Answer, RowResult, output_row
from samplerpool.data.rows import row_from
from samplerpool.engine.sampling import BLOCK
from samplerpool.errors import BadRow, BatchError, PromptTooLong
from samplerpool.types import TokenLogprobs
from samplerpool.wire.messages import Accepted, ChatPrompt, Finished, TokenPrompt, Tokens

MANIFEST = Manifest("in.jsonl", 10, None, None, None, {}, {"name": "m"}, "1", 7)


def result(index: int, text: str = "Yes.", *, prompt: str = "Is it?", sample: int = 0, **more: Any) -> RowResult:
    row = row_from({"id": index, "prompt": prompt}, index, f"Row {index}")
    return RowResult(row, sample, 11, Answer(text, "stop", 3, 2, 11, None, **more))


def kept(of: RowResult, samples: int = 1) -> Kept:
    return Kept(of.row.index, of.sample, output_row(of, samples))


# ---- what is there ----------------------------------------------------------------------------------------------


def written(folder: Path, results: Sequence[RowResult], *, finished: bool) -> RunFiles:
    MANIFEST.write(folder / "out.jsonl.run.json")
    lines = [json.dumps(output_row(one)).encode() + b"\n" for one in results]
    if finished:
        (folder / "out.jsonl").write_bytes(b"".join(lines))
        Manifest(**{**vars(MANIFEST), "outputs": ("ab",)}).write(folder / "out.jsonl.run.json")
        return RunFiles(folder / "out.jsonl")
    with Journal(folder / "out.jsonl.journal", 1) as journal:
        for one, line in zip(results, lines, strict=True):
            journal.append(one.row.index, 0, Outcome.ANSWERED, row_hash(one.row.columns), line)
        journal.sync()
    return RunFiles(folder / "out.jsonl")


def test_a_journal_is_read_beside_its_writer_each_row_once_and_without_a_torn_end(tmp_path: Path) -> None:
    files = written(tmp_path, [result(1, "old"), result(0), result(1, "new")], finished=False)
    assert not files.finished
    with Journal(files.journal, 1):  # whose lock is of no concern to the reader
        with files.journal.open("ab") as torn:
            torn.write(b"\x05\0\0\0half")
        rows = open_results(files)
        assert isinstance(rows, JournalRows)
        assert [rows[place]["generation"]["text"] for place in range(len(rows))] == ["Yes.", "new"]
        assert rows.input_hash(0) == row_hash({"id": 0, "prompt": "Is it?"})
    assert files.journal.read_bytes().endswith(b"half")


def test_a_finished_output_is_what_counts(tmp_path: Path) -> None:
    rows = open_results(written(tmp_path, [result(0), result(1)], finished=True))
    assert isinstance(rows, OutputFile)
    assert (len(rows), rows[1]["id"], rows.input_hash(1)) == (2, 1, None)
    (tmp_path / "out.jsonl").write_text("{broken\n")
    with pytest.raises(BadRow, match="line 1: not valid JSON"):
        open_results(RunFiles(tmp_path / "out.jsonl"))[0]


def test_what_no_run_has_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"There is no .*out\.jsonl\.run\.json, in which"):
        RunFiles(tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(BatchError, match=r"out\.jsonl is there, but not"):
        RunFiles(tmp_path / "out.jsonl")
    MANIFEST.write(tmp_path / "out.jsonl.run.json")
    with pytest.raises(BatchError, match="nothing has been answered"):
        open_results(RunFiles(tmp_path / "out.jsonl"))


def test_the_choice_is_the_seed_s_and_leaves_errors_out(tmp_path: Path) -> None:
    results = [result(index) for index in range(30)]
    for failed in results[::3]:
        failed.answer, failed.error = None, PromptTooLong("Long.")
    rows = open_results(written(tmp_path, results, finished=True))
    first = [one.index for one in choose_answers(rows, 5, 3)]
    assert first == [one.index for one in choose_answers(rows, 5, 3)] == sorted(first)
    assert first != [one.index for one in choose_answers(rows, 5, 4)]
    assert len(first) == 5
    assert [one.index for one in choose_answers(rows, 100, 3)] == [n for n in range(30) if n % 3]


# ---- the comparison ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "finding", "words"),
    [
        (result(4), "equal", ""),
        (result(4, logprobs=[TokenLogprobs(3, -0.5, [])]), "equal", ""),
        (result(4, "Yet"), "differs", "was 's.', is 't'"),
        (result(4, "Yes. No."), "differs", "was the end (2 tokens, stop), is ' No.'"),
        (result(4, prompt="Was it?"), "differs", "the input row is not the one that was answered: 'prompt'"),
        (
            RowResult(result(4).row, 0, 11, None, PromptTooLong("Long.")),
            "differs",
            "now it fails: PromptTooLong: Long.",
        ),
    ],
)
def test_an_answer_is_compared_with_the_one_that_comes_now(now: RowResult, finding: str, words: str) -> None:
    verdict = compare(kept(result(4)), now, 1)
    assert (verdict.row, verdict.finding, verdict.detail) == (4, finding, words)
    assert verdict.character == ({"Yet": 2, "Yes. No.": 4}.get(now.answer.text) if now.answer else None)


def test_what_was_done_to_an_output_row_is_noticed_wherever() -> None:
    row = kept(result(4))
    row.columns["messages"][-1]["content"][0]["value"] = "No."
    assert compare(row, result(4), 1).detail == "the answer is the same, but not 'messages'"
    row = kept(result(4))
    row.columns["messages"][0]["content"][0]["value"] = "Was it?"
    assert "not the one that was answered: 'messages'" in compare(row, result(4), 1).detail
    row = kept(result(4))
    del cast(dict[str, Any], row.columns["generation"])["finish_reason"]
    with pytest.raises(BadRow, match="has no 'finish_reason'"):
        compare(row, result(4), 1)
    row = Kept(4, 0, output_row(result(4)), b"otherhash")
    assert compare(row, result(4), 1).detail == "the input row is not the one that was answered"


# ---- near-ties --------------------------------------------------------------------------------------------------

END = 9
LETTERS = "abcdefghi"


class Tables:
    """In a pool's place: one worker, whose model is a table of logits by the tokens so far; greedy, END ends."""

    def __init__(self, logits: Mapping[tuple[int, ...], Mapping[int, float]]) -> None:
        self._logits = logits
        self.asked = 0

    def workers(self) -> list[WorkerView]:
        return [WorkerView(0, True, 0, 0)]

    def submit(self, _worker: int, calls: Sequence[Call]) -> None:
        for call in calls:
            self.asked += 1
            self._answer(call)

    def _answer(self, call: Call) -> None:
        prompt, given = call.prompt, call.params
        ids = list(prompt.generated_ids) if isinstance(prompt, TokenPrompt) else []
        sent = letters(ids)
        call.feed(Accepted(1, (1, 2), 5))
        if sent:  # what came before the continuation is told again, as nothing was delivered
            call.texts.append(sent)
        while len(ids) < given.get("max_new_tokens", 8) and ids[-1:] != [END]:
            logits = dict(self._logits.get(tuple(ids), {len(ids) % 3: 1.0}))
            for name, bias in given.get("logit_bias", {}).items():
                logits[int(name)] = logits.get(int(name), -50.0) + bias
            ids.append(max(logits, key=lambda number: logits[number]))
            call.feed(Tokens(1, len(ids) - 1, (ids[-1],), letters(ids[-1:])))
            call.on_update(call)
        call.feed(Finished(1, "stop" if ids[-1:] == [END] else "length", 2, len(ids)))
        call.on_update(call)


def letters(ids: Sequence[int]) -> str:
    return "".join(LETTERS[number] for number in ids if number != END)


def told(
    logits: Mapping[tuple[int, ...], Mapping[int, float]], text: str, finish: str, tokens: int
) -> tuple[bool, int]:
    pool = cast(PoolConnection, Tables(logits))
    ties = NearTies(pool, {"max_new_tokens": 8, "num_return_sequences": 2, "min_new_tokens": 1})
    telling = ties.explain(ChatPrompt([]), 5, Ending(text, finish, tokens))
    return telling.near_tie, telling.token


def test_near_ties_are_told_by_the_engine_s_own_choice() -> None:
    # undisturbed it says abcabcab
    level = {(0, 1, 2): {0: 1.0, 5: 0.9995}}
    assert told(level, "abcfbcab", "length", 8) == (True, 3)
    assert told({(0, 1, 2): {0: 1.0, 5: 0.99}}, "abcfbcab", "length", 8) == (False, 3)
    assert told(level, "abcfbcaX", "length", 8) == (False, 3)  # a tie, and something else behind it
    assert told(level, "abcgbcab", "length", 8) == (False, 3)
    assert told(level, "abcabcab", "length", 8) == (True, 0)  # asked for once more it is the same


def test_a_near_tie_with_the_end_and_two_in_one_answer() -> None:
    assert told({(0, 1, 2): {0: 1.0, END: 0.9995}}, "abc", "stop", 4) == (True, 3)
    assert told({(0, 1, 2): {0: 1.0, END: 0.9}}, "abc", "stop", 4) == (False, 3)
    two = {(0,): {1: 1.0, 6: 0.9999}, (0, 6, 2, 0): {1: 1.0, 7: 0.9999}}
    assert told(two, "agcahcab", "length", 8) == (True, 1)
    assert told({(0,): two[0,]}, "agcahcab", "length", 8) == (False, 1)


def test_blocks_that_race_are_those_of_the_engine() -> None:
    assert NOISE_BLOCK == BLOCK
