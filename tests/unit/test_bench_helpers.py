"""The benchmarks' own arithmetic: what they compare, count and draw."""

from __future__ import annotations

import importlib
import json
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


def document_of(bench, runs):
    """A document of runs given as (system, repeat, tokens a second, rows, answers)."""
    run, report = bench("_measure").Run, bench("_report")
    return report.Document(
        {},
        {"main": {"title": "some", "prompts": 3, "max_new_tokens": 8}},
        runs=[
            run("main", system, "session", repeat, rate, 1.0, 1.0, 10, 100.0, 1, 0.0, 0.0, rows, answers)
            for system, repeat, rate, rows, answers in runs
        ],
    )


def test_answers_are_compared_by_row_with_the_reference(bench):
    document = document_of(
        bench, [("pool", 0, 10, [0, 1, 2], ["a", "b", "c"]), ("one_by_one", 0, 10, [0, 2], ["a", "x"])]
    )
    found = {row.system: (row.identical, row.prompts) for row in bench("_report").figures(document, "main")}
    assert found == {"pool": (1.0, 3), "one_by_one": (0.5, 2)}


def test_ratios_are_taken_within_a_repeat(bench):
    everything = ([0, 1, 2], ["a", "b", "c"])
    document = document_of(
        bench,
        [
            *(("pool", repeat, rate, *everything) for repeat, rate in enumerate((30, 10, 20))),
            *(("vllm", repeat, rate, *everything) for repeat, rate in enumerate((10, 10, 10))),
        ],
    )
    (vllm,) = [row for row in bench("_report").figures(document, "main") if row.system == "vllm"]
    assert (vllm.tokens_per_s, vllm.ratio, vllm.share) == (10, 2.0, 0.1)


def test_documents_are_put_together_and_others_refused(bench, tmp_path):
    report = bench("_report")
    one = document_of(bench, [("pool", 0, 10, [0], ["a"])])
    other = document_of(bench, [("pool", 1, 20, [0], ["a"])])
    for name, document in (("one", one), ("other", other)):
        report.write(document, tmp_path / name, None)
    whole = report.merged([tmp_path / "one", tmp_path / "other", tmp_path / "one"])
    assert [run.repeat for run in whole.runs] == [0, 1]
    other.about["cpu"] = "another"
    report.write(other, tmp_path / "other", None)
    with pytest.raises(SystemExit, match="cannot be put together: cpu"):
        report.merged([tmp_path / "one", tmp_path / "other"])


def test_the_chart_is_svg_with_bars_in_proportion(bench):
    chart = bench("_chart")
    groups = [("one <group>", [chart.Bar("a", 100.0, 0), chart.Bar("b", 50.0, 1, "2 ×")])]
    root = ElementTree.fromstring(chart.bar_chart("Tokens & more", "longer is faster", "tokens/s", groups))
    widths = [float(bar.get("width")) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)


def test_lost_duplicated_and_changed_rows_are_told_from_error_rows_that_had_to_be(bench):
    compare = bench("recovery").compare
    whole = {0: "a", 1: "b", 2: "c", 3: "d"}
    assert compare(whole, [(0, "a"), (1, "b"), (2, "c"), (3, None)], [3]) == (0, 0, 0, 1)
    assert compare(whole, [(0, "a"), (0, "a"), (2, None), (3, "x")], []) == (2, 1, 1, 0)


def test_the_median_of_rounds_is_that_of_each_figure(bench):
    scale = bench("scale")
    rounds = [[{"case": "a", "us": us, "gap": {"before": us + 1}}] for us in (3, 9, 5)]
    assert scale.median_of(rounds) == [{"case": "a", "us": 5, "gap": {"before": 6}}]


def test_an_output_with_rows_missing_twice_or_out_of_order_is_noticed(bench, tmp_path: Path):
    scale = bench("_scale_batch")
    rows = [
        json.dumps({"id": f"row-{n}", "generation": {"completion_tokens": scale.ANSWER_TOKENS + 1}}) for n in range(4)
    ]
    output = tmp_path / "answers.jsonl"
    for lines, wrong in ((rows, 0), (rows[:3], 1), ([*rows, rows[3]], 2), ([rows[1], rows[0], *rows[2:]], 2)):
        output.write_text("\n".join(lines) + "\n")
        assert scale.check_output(output, 4, scale.ANSWER_TOKENS) == wrong


# ---- how long a skewed run takes, on simulated time ----------------------------------------------------------------

PACES_S = {  # seconds a token; each worker works on so many requests at a time
    "equal": (16, [0.02] * 4),
    "of four speeds": (16, [0.01, 0.02, 0.03, 0.04]),
    "of two speeds, large batches": (64, [0.02, 0.06]),
}


@pytest.mark.parametrize("pool", PACES_S)
@pytest.mark.parametrize("seed", range(3))
def test_a_skewed_run_is_near_the_lower_bound(bench, pool, seed):
    b = bench("_simulated")
    batch, paces_s = PACES_S[pool]
    machines = [b.Machine(batch, pace_s) for pace_s in paces_s]
    lengths = b.zipf_lengths(3000, seed, longest=1024)
    bound_s = b.lower_bound_s(lengths, machines)
    known = b.Simulation(lengths, machines, known=True).run()
    unknown = b.Simulation(lengths, machines, known=False).run()
    assert bound_s <= known.seconds <= 1.01 * bound_s
    longest_s = max(lengths) * min(machine.pace_s for machine in machines)
    assert unknown.seconds <= bound_s + 1.5 * longest_s  # the longest row may happen to be the last one
    assert unknown.wasted <= 0.1 * sum(lengths)
    assert b.static_split_s(lengths, machines) >= 1.05 * bound_s


def test_without_taking_over_a_slow_worker_would_hold_the_run_up(bench, monkeypatch):
    b = bench("_simulated")
    machines = [b.Machine(16, pace_s) for pace_s in (0.01, 0.02, 0.03, 0.04)]
    lengths = b.zipf_lengths(3000, 0, longest=1024)
    with_it = b.Simulation(lengths, machines, known=False).run()
    monkeypatch.setattr("samplerpool.batch.state.take_over", lambda *_: [])
    without = b.Simulation(lengths, machines, known=False).run()
    assert with_it.taken_over > 0 == without.taken_over
    assert with_it.seconds < 0.95 * without.seconds
