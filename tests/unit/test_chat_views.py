"""What commands show: columns of text as it streams, tokens, help."""

from __future__ import annotations

import random

import pytest

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.side_by_side import SideBySide
from samplerpool.chat.styles import STYLES, Line
from samplerpool.chat.views import (
    alternative_lines,
    cells,
    colour_lines,
    flowing,
    help_lines,
    stats_lines,
    worker_lines,
)
from samplerpool.client.facts import WorkerFacts
from samplerpool.types import TokenLogprobs


def plain(line: Line) -> str:
    return "".join(text for _, text in line)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_help_fits_the_terminal(width: int) -> None:
    lines = [plain(line) for line in help_lines(width)]
    assert max(map(len, lines[:-1])) <= max(width, 47)


def test_items_flow_into_lines() -> None:
    items = [[("", "aa"), ("dim", "b")], [("", "世界")], [("", "c" * 20)], [("", "d")]]
    assert [plain(line) for line in flowing(items, 10)] == ["aab  世界", "c" * 20, "d"]


def test_tokens_in_the_shades_of_their_probability() -> None:
    entries = [TokenLogprobs(1, -0.01, ()), TokenLogprobs(2, -9999.0, ()), TokenLogprobs(3, -0.7, ())]
    lines = list(colour_lines(["a", "b\nc", "d"], entries))
    assert lines[:2] == [[("p9", "a"), ("p0", "b")], [("p0", "c"), ("p4", "d")]]
    assert {style for line in lines for style, _ in line} <= {*STYLES}


def test_alternatives_stand_in_columns() -> None:
    entries = [TokenLogprobs(1, -0.01, [(1, -0.01), (2, -5.0)]), TokenLogprobs(2, -1.0, [(1, -0.5), (2, -1.0)])]
    lines = [plain(line) for line in alternative_lines(["a", "世"], entries, {1: "a", 2: "世"})]
    assert lines == [
        ' 99.0%  "a"    99.0% "a"    0.7% "世"  ',
        ' 36.8%  "世"   60.7% "a"   36.8% "世"  ',
    ]


def test_stats_of_answers_of_which_little_is_known() -> None:
    stats = [AnswerStats(None, None, None, None, 1.0), AnswerStats("stop", 11, 5, 0.5, 1.5)]
    lines = [plain(line).split(maxsplit=1)[-1] for line in stats_lines(stats, None, None)]
    assert [line.split()[-1] for line in lines[:3]] == ["2", "11", "5"]
    assert any("0.500 s (median)" in line for line in lines)
    assert any("10.0 (median)" in line for line in lines)


def test_workers_that_are_gone_say_why() -> None:
    workers = [WorkerFacts(0, coming=True, down_reason="It died."), WorkerFacts(1, up=True, model="m", adapters=("x",))]
    text = "\n".join(plain(line) for line in worker_lines(workers, 1))
    assert "  0  coming back\n     It died.\n* 1  ready  m" in text
    assert "adapters: x" in text


# ---- side by side -------------------------------------------------------------------------------------------------


def run(width: int, pieces: list[tuple[int, str]]) -> list[str]:
    columns = SideBySide(width)
    lines = [plain(line) for side, text in pieces for line in columns.feed(side, text)]
    return lines + [plain(line) for side in (0, 1) for line in columns.end(side)]


def test_a_line_is_shown_when_both_halves_are_final() -> None:
    columns = SideBySide(23)
    assert list(columns.feed(0, "one two three")) == []
    assert [plain(line) for line in columns.feed(1, "a\nb")] == ["one two    │ a"]
    assert [plain(line) for line in columns.end(0)] == []
    assert [plain(line) for line in columns.feed(1, "\nc\n")] == ["three      │ b", "           │ c"]
    assert list(columns.end(1)) == []


@pytest.mark.parametrize("seed", range(30))
def test_pieces_do_not_matter_and_nothing_is_lost(seed: int) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices("ab 世é\n", weights=[6, 6, 4, 1, 1, 1], k=draw.randrange(120))) for _ in range(2)]
    whole = run(33, [(0, texts[0]), (1, texts[1])])
    pieces = []
    rest = list(texts)
    while any(rest):
        side = draw.choice([side for side in (0, 1) if rest[side]])
        size = draw.randrange(1, 9)
        pieces.append((side, rest[side][:size]))
        rest[side] = rest[side][size:]
    assert run(33, pieces) == whole
    assert all(cells(line.split(" │ ")[0]) == 15 and cells(line) <= 33 for line in whole)
    for side, text in enumerate(texts):
        shown = "".join(line.split(" │ ")[side] for line in whole)
        assert shown.replace(" ", "") == "".join(text.split())


def test_columns_need_little_room_and_obey_nothing() -> None:
    lines = run(10, [(0, "x" * 20), (1, "\x1b[2J\tz")])
    assert lines == ["xxxxxxxx │ ␛[2J", "xxxxxxxx │ z", "xxxx     │ "]
