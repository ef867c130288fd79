"""Show a few answers of a file that ``samplerpool batch`` wrote, and make sure that every row has one."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def question(row: dict[str, Any]) -> str:
    """The text of the last user turn; ``messages`` are in the v1 form."""
    asked = [message for message in row["messages"] if message["role"] == "user"][-1]
    return " ".join(block["value"] for block in asked["content"] if block["type"] == "text")


def show(row: dict[str, Any]) -> None:
    generation = row["generation"]
    print(f"\nrow {generation['index']}: {textwrap.shorten(question(row), 100)}")
    print(textwrap.indent(textwrap.fill(generation["text"].strip(), 100), "    "))
    print(f"    ({generation['completion_tokens']} tokens, finish reason: {generation['finish_reason']})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="the file that was answered")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="how many answers, spread over the file")
    options = parser.parse_args()

    answered = rows(options.answers)
    asked = sum(1 for line in options.prompts.read_text(encoding="utf-8").split("\n") if line.strip())
    failed = [row["generation"] for row in answered if row["generation"]["error"] is not None]
    good = [row for row in answered if row["generation"]["error"] is None]
    for row in good[:: max(1, len(good) // max(1, options.show))][: options.show]:
        show(row)
    for generation in failed:
        print(f"\nrow {generation['index']} was not answered: {generation['error']}")
    print(f"\n{len(good)} of {asked} rows answered")
    return 0 if len(good) == asked == len(answered) else 1


if __name__ == "__main__":
    sys.exit(main())
