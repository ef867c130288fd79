"""An output whose rows try what they can against a page about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from samplerpool.batch.history import HistoryFile
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.output import BatchOutput
from samplerpool.batch.tally import Progress, WorkerTally
from samplerpool.data.answers import Answer, RowResult
from samplerpool.data.rows import row_from
from samplerpool.errors import BadRow, EngineError

MANIFEST = Manifest(
    "in.jsonl",
    10,
    None,
    None,
    None,
    {"temperature": 0.7},
    {"name": "tiny<b>", "engine": "dense"},
    "1",
    7,
    created=86400,
)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script></style></title><script>window.hacked = 1</script>",
    '"><img src="http://127.0.0.1:9/x.png" onerror="window.hacked = 1">',
    "' onmouseover='window.hacked = 1' {{ 7 * 7 }} {% raw %}",
    "nul \x00, bell \x07, delete \x7f, half \ud83d, none \ufffe",
    "\u202eright to left\u2066 \u05e9\u05dc\u05d5\u05dd <!-- ]]> &amp; &lt;",
    "w" * 5000,
    "many " * 200_000 + "the very end",
)
REASONING: Any = {
    "role": "assistant",
    "content": [
        {"type": "reasoning", "value": "The user wants <i>weather</i>."},
        {"type": "text", "value": "I look it up."},
        {"type": "tool_call", "value": '{"name": "look_up", "arguments": {"city": "Z\\u00fcrich"}}'},
    ],
}


def answered(index: int, text: str, *, prompt: str = "Say it.", tokens: int = 0, **more: Any) -> RowResult:
    """A row with an answer, of as many tokens as it has characters, or as are told."""
    row = row_from({"prompt": prompt, "<b>column</b>": prompt[:2000]}, index, f"Row {index}")
    answer = Answer(
        text, more.pop("reason", "stop"), 10 + index % 5, tokens or len(text), 11, more.pop("message", None)
    )
    return RowResult(row, 0, 11, answer, **more)


def results(plain: int = 40) -> list[RowResult]:
    """``plain`` harmless rows, of which row 3 is about elephants, then the others."""
    found = [answered(i, "An elephant." if i == 3 else f"Answer number {i}.") for i in range(plain)]
    found += [answered(plain + i, text, prompt=text[:20_000]) for i, text in enumerate(HOSTILE)]
    after = len(found)
    found += [answered(after + i, "Twice.", reason="length") for i in range(2)]
    found += [answered(after + 2, "", tokens=1), answered(after + 3, "<think>...", message=REASONING)]
    row = row_from({"prompt": "?"}, after + 4, "Row")
    found.append(RowResult(row, 0, None, None, EngineError("<script>window.hacked = 1</script> failed.")))
    broken = row_from("{", after + 5, "in.jsonl, line 6")
    found.append(RowResult(broken, 0, None, None, broken.error or BadRow("in.jsonl, line 6: broken.")))
    return found


def write_output(path: Path, found: list[RowResult], *, sessions: int = 2) -> Path:
    """A complete output, as a run leaves it, with the history of as many processes."""
    with BatchOutput(path) as output:
        output.begin(replace(MANIFEST, output_format=output.format.name))
        for result in found:
            output.write(result)
        output.assemble()
    for session in range(sessions):
        with HistoryFile(path, resumed=session > 0, clock=lambda now=session: 1000.0 + 400 * now) as history:
            for second in range(0, 301, 5):
                workers = (WorkerTally(0, second * 2, second * 80, 8, utilisation=0.9),)
                workers += (WorkerTally(1, second, second * 40, 2, utilisation=0.25, restarts=1),)
                tokens = second * 120
                history.update(
                    Progress(second * 3, 3000, 0, tokens, 1.0, float(second), None, workers, 0, 0, tokens * 2)
                )
    return path
