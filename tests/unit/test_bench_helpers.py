"""The benchmarks' own arithmetic: what they compare, count and draw."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    """Import a module of ``scripts/bench`` as the scripts themselves do."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_each_repeat_has_prompts_of_its_own(bench):
    w = bench("_workloads")
    for load in w.workloads(w.Source(w.built_in(), lambda text: len(text.split()))):
        repeats = [[str(conversation) for conversation in load.build(repeat)] for repeat in range(3)]
        everything = [text for texts in repeats for text in texts]
        assert len(set(everything)) == len(everything), load.name


def test_long_prompts_have_about_the_length_that_was_asked_for(bench):
    w = bench("_workloads")
    source = w.Source(w.built_in(), lambda text: len(text.split()))
    for conversation in source.long(4, 1_500, repeat=1):
        assert 1_430 <= len(conversation[0]["content"][0]["value"].split()) <= 1_500


def test_distinct_prompts_share_no_beginning(bench):
    w = bench("_workloads")
    source = w.Source(w.built_in(), len)
    beginnings = {conversation[0]["content"][0]["value"].split()[0] for conversation in source.distinct(32, 0)}
    assert len(beginnings) == 32


def test_flips_are_counted_up_to_the_first_difference(bench):
    compare = bench("repro").compare
    first = {(0, 0): [1, 2, 3], (0, 1): [4, 5, 6], (0, 2): [7], (0, 3): [8, 9]}
    second = {(0, 0): [1, 2, 3], (0, 1): [4, 0, 6], (0, 2): [7, 1, 1]}
    # Equal: 3 tokens. Differing in the second: 2 compared. Ended earlier: 1, and the one where the other went on.
    assert compare(first, second) == (3 + 2 + 2, 2)


def test_the_stopwatch_counts_a_part_within_another_only_once(bench, monkeypatch):
    step = bench("step")
    clock = iter(range(100))
    monkeypatch.setattr(step.time, "perf_counter", lambda: float(next(clock)))
    watch = step.Stopwatch()
    inner = watch.timed("inner", lambda: None)
    watch.timed("outer", lambda: (inner(), inner()))()
    # The clock moves on by 1 at each look: outer runs before, between and after the two inner ones.
    assert dict(watch.seconds) == {"outer": 3.0, "inner": 2.0}


def test_a_prefix_shared_by_all_prompts_counts_once(bench):
    batch, w = bench("batch"), bench("_workloads")
    model = batch.Model(Path(), list, str, len, body=1, head=1000)
    requests = w.Requests([], [[1, 2, 3], [1, 2, 4, 5]], max_new_tokens=8)
    # 7 prompt tokens of which 2 are shared; 6 new ones, the last of each answer not passed in again.
    assert model.work(requests, tokens=6) == (7 - 2 + 6 - 2) + 6 * 1000


def test_answers_are_compared_by_row_with_the_reference(bench):
    batch = bench("batch")

    def run(rows, texts):
        return batch.Run(1, 1.0, 1.0, 1, 1, 0.0, 0.0, rows, texts)

    runs = {"pool": run([0, 1, 2], ["a", "b", "c"]), "one_by_one": run([0, 2], ["a", "x"])}
    assert {name: r.identical for name, r in batch.compared(runs).items()} == {"pool": 1.0, "one_by_one": 0.5}


def test_the_chart_is_svg_with_bars_in_proportion(bench):
    chart = bench("_chart")
    text = chart.bar_chart("Tokens & more", [("one <group>", [chart.Bar("a", 100.0, 0), chart.Bar("b", 50.0, 1)])])
    root = ElementTree.fromstring(text)
    widths = [float(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
