"""The page about an output, in a real browser."""

from __future__ import annotations

from pathlib import Path

from samplerpool.cli.main import main
from tests.browser import Browser, browser
from tests.process.conftest import eventually
from tests.report_rows import HOSTILE, results, write_output

SHOWN = "return [...document.querySelectorAll('details.row')].filter((row) => !row.hidden).map((row) => row.id)"


def test_a_browser_shows_the_figures_and_finds_rows_and_nothing_in_a_row_gets_out(tmp_path: Path) -> None:
    found = results()
    output = write_output(tmp_path / "out.jsonl", found)
    assert main(["batch", "report", str(output)], standalone_mode=False) == 0
    with browser(tmp_path) as window:
        page = tmp_path / "out.jsonl.report.html"
        window.open(page)
        _check_figures(window, len(found))
        _check_search(window, len(found))
        _check_rows(window, len(found))
        for width in (360, 420, 1000):
            window.resize(width, 900)
            page_width = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert window.run(page_width) == 0, f"nothing is cut off at {width} pixels"
        assert window.run("return typeof window.hacked") == "undefined"
        assert window.console() == []
        assert set(window.requested()) <= {page.as_uri(), "data:,"}  # the icon, which is none


def _check_figures(window: Browser, rows: int) -> None:
    assert window.run("return document.title") == "out.jsonl: report of a batch with tiny<b>"
    assert window.text(".lead") == "temperature 0.7; seed 7; begun 1970-01-02 00:00 UTC"
    assert window.text("#tile-rows") == f"{rows}\nrows"
    assert window.text("#tile-answered") == f"{rows - 2}\nanswered"
    assert window.text("#tile-errors") == "2\nerrors"
    assert window.text("#tile-empty") == "1\nempty answers"
    table = (
        "return [...document.querySelectorAll(`[aria-labelledby=${arguments[0]}] tbody tr`)].map((r) => r.innerText)"
    )
    ends = [line.split() for line in window.run(table, "ends")]
    assert [line[:2] for line in ends] == [["stop", str(rows - 4)], ["length", "2"], ["error", "2"]]
    assert [line.split() for line in window.run(table, "workers")] == [
        ["0", "1,200", "48,000", "0", "90%"],
        ["1", "600", "24,000", "2", "25%"],
    ]
    assert "<script>window.hacked = 1</script> failed." in window.run(table, "errors")[0]
    charts = window.run(
        "return [...document.querySelectorAll('svg.chart')].map((c) => "
        "[c.getAttribute('role'), c.getAttribute('aria-label').length > 20, c.getBoundingClientRect().width > 300])"
    )
    assert charts == [["img", True, True]] * 6
    assert "36,000" not in window.text("#chart-completion")
    assert window.text("#chart-completion figcaption").startswith("120.0 on average over 10 min 00 s, 120.0 at most")


def _check_search(window: Browser, rows: int) -> None:
    assert len(window.run(SHOWN)) == rows
    window.type("#search", "Elephant")
    eventually(lambda: window.run(SHOWN) == ["row-3"], "the row with the elephant alone is shown")
    assert window.text("#found") == f"1 of {rows} rows"
    window.type("#search", "</TITLE><script>")
    eventually(lambda: window.run(SHOWN) == ["row-41"], "what looks like HTML is found as text")
    window.type("#search", "no such words")
    eventually(lambda: window.run(SHOWN) == [], "nothing is found")
    window.run("location.hash = 'row-3'")
    eventually(lambda: len(window.run(SHOWN)) == rows, "a link shows a row that was not found")
    assert window.run("return document.getElementById('row-3').open")
    window.click("#kind option[value=error]")
    eventually(lambda: window.run(SHOWN) == [f"row-{rows - 2}", f"row-{rows - 1}"], "errors alone are shown")
    window.click("#kind option")


def _check_rows(window: Browser, rows: int) -> None:
    row = f"#row-{rows - 3}"
    assert not window.run(f"return document.querySelector('{row}').open")
    window.click(f"{row} summary")
    assert window.text(f"{row} .turn.other h4") == "user"
    assert window.text(f"{row} .reasoning") == "reasoning\nThe user wants <i>weather</i>."
    assert window.text(f"{row} .tool-call").split("\n") == ["tool call look_up", "{", ' "city": "Zürich"', "}"]
    window.click("#open")
    for place, text in enumerate(HOSTILE[:4], 40):
        assert window.text(f"#row-{place} .turn.assistant .block") == text
    assert "nul ␀, bell ␇, delete ␡, half �, none �" in window.text("#row-44 .turn.assistant")
    long = window.text("#row-47 .turn.assistant")
    assert " 990,012 characters are left out here " in long
    assert long.endswith("the very end")
