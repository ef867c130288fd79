"""Following a log that another process writes and rotates."""

from __future__ import annotations

import os
from pathlib import Path

from samplerpool.ray.logtail import MAX_BYTES, LogTail


def test_what_is_added_is_told_once_also_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    tail = LogTail(path)
    assert tail.read_new() == ""
    path.write_text("one\n")
    assert tail.read_new() == "one\n"
    assert tail.read_new() == ""
    with path.open("a") as file:
        file.write("two\n")
    os.replace(path, tmp_path / "worker.log.1")
    path.write_text("three\n")
    assert tail.read_new() == "two\nthree\n"
    tail.close()
    tail.close()


def test_too_much_is_cut_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    tail = LogTail(path)
    path.write_text("x" * MAX_BYTES + "the end")
    text = tail.read_new()
    assert text.startswith("\n[7 bytes are left out here]\n")
    assert text.endswith("the end")
    tail.close()
