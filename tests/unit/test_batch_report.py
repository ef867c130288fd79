"""What a report counts, which rows it chooses, and what stands in its page."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.history import history_path
from samplerpool.batch.journal import Journal, Outcome
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.report.charts import bin_edges, length_chart
from samplerpool.batch.report.choice import chosen_rows
from samplerpool.batch.report.counts import MOST_KINDS, Counts, Lengths, Repeats
from samplerpool.batch.report.facts import facts, reading
from samplerpool.cli.main import main
from samplerpool.data.answers import RowResult, output_row
from samplerpool.data.json_text import to_json
from samplerpool.errors import BatchError, UsageError
from tests.report_rows import HOSTILE, MANIFEST, REASONING, answered, results, write_output

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from(["messages", "generation", "reference", "role", "content", "type", "value", "text", "error"])


def counted(found: list[RowResult]) -> Counts:
    counts = Counts()
    for result in found:
        counts.add(output_row(result))
    return counts


def report(output: Path, *arguments: str) -> str:
    """The page, as the command writes it."""
    assert main(["batch", "report", str(output), *arguments], standalone_mode=False) == 0
    return output.with_name(output.name + ".report.html").read_text()


class Elements(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs


# ---- counting -------------------------------------------------------------------------------------------------------


def test_all_rows_are_counted() -> None:
    counts = counted(results(plain=40))
    counts.add(None, "line 9: broken")
    assert (counts.rows, counts.answered, counts.empty, counts.unreadable) == (55, 52, 1, 1)
    assert counts.finish_reasons == {"stop": 50, "length": 2, "error": 2}
    assert {kind: error.count for kind, error in counts.errors.items()} == {
        "EngineError": 1,
        "BadRow": 1,
        "Unreadable": 1,
    }
    assert counts.errors["EngineError"].examples == [(52, "<script>window.hacked = 1</script> failed.")]
    assert (counts.with_reasoning, counts.with_tool_calls, counts.parse_errors) == (1, 1, 0)
    assert counts.completion.rows == counts.prompt.rows == 52
    assert counts.completion.longest == len(HOSTILE[-1])
    assert counts.extremes("longest")[:2] == [47, 46]
    assert counts.extremes("shortest")[:2] == [48, 49]
    told = counts.repeats.found()
    assert (told.groups, told.answers, told.one_in) == (1, 2, 1)
    assert list(told.largest) == [(2, [48, 49])]


def test_an_answer_of_reasoning_alone_is_empty_and_one_of_a_tool_call_is_not() -> None:
    alone: Any = {"role": "assistant", "content": [REASONING["content"][0], {"type": "text", "value": "\n"}]}
    call: Any = {"role": "assistant", "content": [REASONING["content"][2]]}
    counts = counted([answered(0, "<think>", message=alone), answered(1, "<call>", message=call)])
    assert (counts.empty, counts.only_reasoning, counts.with_tool_calls) == (1, 1, 1)


def test_quantiles_are_those_of_all_answers() -> None:
    lengths = Lengths(Counter({1: 50, 10: 45, 1000: 5}))
    assert (lengths.rows, lengths.total, lengths.shortest, lengths.longest) == (100, 5500, 1, 1000)
    assert [lengths.quantile(share) for share in (0.0, 0.5, 0.51, 0.95, 0.96, 1.0)] == [1, 1, 10, 10, 1000, 1000]


def test_duplicates_are_estimated_where_there_are_more_answers_than_are_kept() -> None:
    repeats = Repeats(most=1000)
    for place in range(30_000):
        repeats.add(place, f" answer {place % 10_000}\n")
    told = repeats.found()
    assert told.one_in >= 32
    assert told.groups == pytest.approx(10_000, rel=0.15)
    assert told.answers == 3 * told.groups
    assert all(count == 3 and len({place % 10_000 for place in places}) == 1 for count, places in told.largest)


def test_kinds_without_end_are_taken_together() -> None:
    counts = Counts()
    for number in range(3 * MOST_KINDS):
        counts.add({"generation": {"error": f"E{number}: no", "finish_reason": f"r{number}"}})
    assert len(counts.errors) == len(counts.finish_reasons) == MOST_KINDS + 1
    assert counts.errors["others"].count == counts.finish_reasons["others"] == 2 * MOST_KINDS


@settings(max_examples=40)
@given(
    st.dictionaries(
        NAMES | st.text(max_size=5), ANY | st.dictionaries(NAMES, ANY) | st.lists(st.dictionaries(NAMES, ANY))
    )
)
def test_nothing_in_a_row_is_taken_for_granted(columns: dict[str, Any]) -> None:
    seen = facts(columns)
    Counts().add(columns)
    shown = reading(columns, 3, ["longest"])
    assert "longest" in shown.tags
    assert (shown.error is None) == (seen.error is None)
    to_json(seen.text)


# ---- rows to read ---------------------------------------------------------------------------------------------------


def test_what_is_peculiar_comes_first_and_others_from_all_over() -> None:
    counts = Counts()
    for number in range(5000):
        error = f"Kind{number % 2}: no" if number % 50 == 0 else None
        text = "the same" if number % 7 == 1 else "x" * (number % 999)
        tokens = len(text)
        counts.add({"generation": {"error": error, "text": text, "completion_tokens": tokens, "finish_reason": "stop"}})
    chosen = chosen_rows(counts, counts.repeats.found(), 60)
    assert chosen == chosen_rows(counts, counts.repeats.found(), 60)
    assert (len(chosen), list(chosen)) == (60, sorted(chosen))
    tags = Counter(tag for each in chosen.values() for tag in each)
    assert set(tags) == {"error", "empty", "duplicate", "longest", "shortest"}
    assert (tags["longest"], tags["shortest"]) == (5, 5)
    others = [place for place, each in chosen.items() if not each]
    assert len(others) == 20
    assert max(others) - min(others) > 3000
    assert list(chosen_rows(counts, counts.repeats.found(), 0)) == []
    assert len(chosen_rows(counts, counts.repeats.found(), 9000)) == 5000


def test_long_texts_are_cut_and_it_is_said() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "value": "y" * 30_000}]} for _ in range(9)]
    row = {"messages": [*messages, {"role": "assistant", "content": [{"type": "text", "value": HOSTILE[-1]}]}]}
    shown = reading(row, 0, ())
    assert sum(len(b.text) + len(b.tail) for turn in shown.turns for b in turn.blocks) <= 41_000
    assert shown.left_out == 6
    assert [turn.title for turn in shown.turns] == ["user"] * 3 + ["assistant, answer"]
    many = [{"type": "text", "value": "z"}] * 900
    (turn,) = reading({"messages": [{"role": "assistant", "content": many}]}, 0, ()).turns
    assert (len(turn.blocks), turn.blocks[-1].text) == (51, "850 more blocks")
    (block,) = reading({"messages": row["messages"][-1:]}, 0, ()).turns[0].blocks
    assert len(block.text) + len(block.tail) + block.left_out == len(HOSTILE[-1])
    assert block.tail.endswith("the very end")


# ---- charts ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_bins_hold_all_lengths(one: int, other: int, logarithmic: bool) -> None:
    edges = bin_edges(min(one, other), max(one, other), logarithmic=logarithmic)
    assert edges == sorted(set(edges))
    assert len(edges) >= 2
    assert edges[0] == min(one, other)
    assert edges[-1] > max(one, other)


def test_charts_take_the_pages_colours_and_hold_nothing_from_elsewhere() -> None:
    drawn = length_chart("a", 'of "tokens"', Lengths(Counter({0: 5, 3: 9, 5000: 1})), "tokens")
    assert drawn.startswith('<svg role="img" aria-label="of &quot;tokens&quot;" class="chart" viewBox=')
    assert "var(--series)" in drawn
    assert "tokens, logarithmic" in drawn
    assert not re.search(r"#0[123]0[123]|<style|<metadata|http(?!://www.w3.org/(?:2000/svg|1999/xlink))", drawn)
    assert drawn == length_chart("a", 'of "tokens"', Lengths(Counter({0: 5, 3: 9, 5000: 1})), "tokens")


# ---- the page -------------------------------------------------------------------------------------------------------


def test_nothing_of_a_row_becomes_part_of_the_pages_structure(tmp_path: Path) -> None:
    hostile = Elements(report(write_output(tmp_path / "hostile.jsonl", results())))
    assert (hostile.tags["script"], hostile.tags["style"], hostile.tags["img"]) == (1, 1, 0)
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    links = {value for name, value in hostile.attributes if name == "href"}
    assert all(str(link).startswith(("#", "data:,")) for link in links)
    identifiers = Counter(value for name, value in hostile.attributes if name == "id")
    assert max(identifiers.values()) == 1
    assert {str(link)[1:] for link in links if str(link).startswith("#row-")} <= set(identifiers)


def test_a_page_is_the_same_each_time_but_for_its_date(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out.jsonl", results())
    first, second = report(output), report(output)
    assert re.sub("<footer>.*</footer>", "", first) == re.sub("<footer>.*</footer>", "", second)
    assert "begun 2 times. Dashed lines are pauses, which are left out of the time: 1 min 40 s." in first


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
def test_every_format_gives_the_same_page(tmp_path: Path, name: str) -> None:
    found = [result for result in results() if "\ud83d" not in (result.answer.text if result.answer else "")]
    pages = []
    for each in ("out.jsonl", name):
        page = report(write_output(tmp_path / each, found))
        pages.append(re.sub("<footer>.*</footer>|jsonl.zst|jsonl.gz|jsonl|parquet", "", page))
    assert pages[0] == pages[1]


def test_a_run_that_is_not_finished_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    MANIFEST.write(tmp_path / "out.jsonl.run.json")
    with Journal(tmp_path / "out.jsonl.journal", 1) as journal:
        for index, text in ((1, "old"), (0, "first"), (1, "newer")):
            journal.append(index, 0, Outcome.ANSWERED, b"8 bytes.", to_json(output_row(answered(index, text))) + b"\n")
        journal.sync()
        page = report(output)
    assert "Not the whole output: the run was ended before it was complete, and 2 rows are there." in page
    assert '<li id="tile-rows"><b>2</b>' in page
    assert "newer" in page
    assert "old" not in page.partition('id="row-1"')[2].partition("</details>")[0]
    assert "No throughput over time and no use of the workers: out.jsonl.history.jsonl is not there" in page


def test_openais_form_has_a_report_with_its_answers(tmp_path: Path) -> None:
    requests = [answered(i, f"Text {i}.", tokens=7) for i in range(3)] + [answered(3, "x", message=REASONING)]
    output = tmp_path / "out.jsonl"
    with BatchOutput(output, output_format=OutputFormat("openai")) as made:
        made.begin(MANIFEST.__class__(**{**vars(MANIFEST), "output_format": "openai"}))
        for request in requests:
            made.write(request)
        made.assemble()
    with output.open("a") as file:
        error = {
            "custom_id": "e",
            "response": {"status_code": 400, "body": {"error": {"code": "bad", "message": "No."}}},
        }
        file.write(json.dumps({**error, "error": None}) + "\n")
        file.write(
            json.dumps({"custom_id": "f", "response": None, "error": {"code": "WorkerDied", "message": "Gone."}})
        )
    history_path(output).unlink(missing_ok=True)
    page = report(output)
    assert '<li id="tile-rows"><b>6</b>' in page
    assert '<li id="tile-errors"><b>2</b>' in page
    assert '<li id="tile-completion-tokens"><b>22</b>' in page
    assert "tool_calls</bdi>" in page
    assert '<span class="kind">reasoning</span>The user wants &lt;i&gt;weather&lt;/i&gt;.' in page
    assert "Text 2." in page
    assert "is not there: either it was removed" in page


def test_another_programs_answers_have_a_report(tmp_path: Path) -> None:
    output = tmp_path / "theirs.jsonl"
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    output.write_text("".join(json.dumps(row) + "\n" for row in ({"messages": turns}, {"messages": turns})) + "{\n")
    page = report(output)
    assert "theirs.jsonl was not written by a samplerpool batch, so its course is not known" in page
    assert "2 answers are also those of other rows: 1 different one." in page
    assert "No numbers of tokens are told in these rows." in page
    assert "Unreadable" in page
    output.write_text('{"question": "Who?"}\n{')
    with pytest.raises(BatchError, match=r"None of the 2 rows of .* has an answer"):
        report(output)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_only_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out.jsonl", results(5))
    assert report(output, "--rows", "3").count('<details class="row"') == 3
    before = output.read_bytes()
    for target, words in (
        (output, "is there already, and no report; choose another --to"),
        (tmp_path / "none" / "page.html", "none does not exist; make it"),
        (tmp_path, "is not a regular file"),
    ):
        with pytest.raises(UsageError, match=words):
            report(output, "--to", str(target))
    assert output.read_bytes() == before
    report(output, "--to", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert not list(tmp_path.glob("*.new"))
    with pytest.raises(UsageError, match="is a folder; name the file"):
        report(tmp_path)
    with pytest.raises(BatchError, match=r"There is no .*other.jsonl.run.json"):
        report(tmp_path / "other.jsonl")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'samplerpool\[report\]'"):
        report(tmp_path / "out.jsonl")
