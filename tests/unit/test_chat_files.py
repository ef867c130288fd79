"""The chat's files: whole or not at all, and whoever else writes to them."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from samplerpool.chat import files
from samplerpool.chat.autosave import KEPT, Autosave
from samplerpool.chat.editor import edit, editor_command
from samplerpool.chat.files import append_line, path_of, read_text, write_new
from samplerpool.errors import UsageError


def test_paths_are_written_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert path_of(" ~/a b.txt ") == Path("/home/me/a b.txt")
    assert path_of('"a b.txt"') == path_of("'a b.txt'") == Path("a b.txt")
    assert path_of("'") == Path("'")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(UsageError, match="longer than 4 bytes"):
        read_text(path, 4)


@pytest.mark.parametrize("links", [True, False])
def test_writing_replaces_only_what_may_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def link(source: object, target: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "f"
    write_new(path, "one", replace=False)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="is there already"):
        write_new(path, "two", replace=False)
    assert path.read_text() == "one"
    write_new(path, "three", replace=True)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("three", 0o640)
    assert [*tmp_path.iterdir()] == [path]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write_new(tmp_path / "none" / "f", "x", replace=False)
    with pytest.raises(UsageError, match="cannot be written"):
        append_line(tmp_path, "x")
    with pytest.raises(UsageError, match="cannot be written"):
        write_new(tmp_path / "a\0b", "x", replace=False)
    assert [*tmp_path.iterdir()] == []


def test_rows_of_several_writers_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('"unfinished"')

    def write(number: int) -> None:
        for _ in range(20):
            append_line(path, json.dumps(str(number) * 50_000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 81
    assert all(len(set(row)) == 1 for row in rows[1:])


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), UsageError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_row_that_is_not_written_to_its_end_leaves_the_others(
    fault: BaseException, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows"
    append_line(path, "one")
    real = os.write
    written: list[int] = []

    def short(handle: int, data: bytes) -> int:
        if written:
            raise fault
        written.append(real(handle, data[:2]))
        return written[0]

    monkeypatch.setattr(files.os, "write", short)
    with pytest.raises(raised, match="No space left" if raised is UsageError else None):
        append_line(path, "two")
    assert path.read_text() == "one\n"


# ---- conversations that are kept ----------------------------------------------------------------------------------


def autosave(folder: Path) -> Autosave:
    return Autosave(folder, lambda text: None)


def test_a_conversation_has_one_file_until_another_begins(tmp_path: Path) -> None:
    kept = autosave(tmp_path / "new")
    kept.save({"messages": [1]})
    first = kept.path
    kept.save({"messages": [1, 2]})
    assert kept.path == first is not None
    assert json.loads(first.read_text()) == {"messages": [1, 2]}
    kept.begin_another()
    kept.save({"messages": [3]})
    assert json.loads(first.read_text()) == {"messages": [1, 2]}
    assert (first.stat().st_mode & 0o777, first.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_latest_is_the_one_that_changed_last_but_not_the_present_one(tmp_path: Path) -> None:
    one, two = autosave(tmp_path), autosave(tmp_path)
    with pytest.raises(UsageError, match="No earlier conversation"):
        one.latest()
    one.save({})
    with pytest.raises(UsageError, match="No earlier conversation"):
        one.latest()
    two.save({})
    assert one.path is not None
    assert two.path is not None
    os.utime(one.path, (2e9, 2e9))
    assert two.latest() == autosave(tmp_path).latest() == one.path
    assert one.latest() == two.path


def test_old_conversations_are_removed(tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        (tmp_path / f"{number}.json").touch()
        os.utime(tmp_path / f"{number}.json", (number, number))
    (tmp_path / "notes.txt").touch()
    autosave(tmp_path).save({})
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == KEPT + 1
    assert "5.json" not in names
    assert {"6.json", "notes.txt"} <= names


def test_a_folder_that_cannot_be_written_for_a_while_costs_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = tmp_path / "new"
    kept = Autosave(folder, notes.append)
    kept.save({"messages": [1]})
    for path in [*folder.iterdir()]:
        path.unlink()
    folder.rmdir()
    folder.touch()
    kept.save({"messages": [2]})
    kept.save({"messages": [3]})
    assert len(notes) == 1
    folder.unlink()
    kept.save({"messages": [4]})
    assert kept.path is not None
    assert json.loads(kept.path.read_text()) == {"messages": [4]}


# ---- the editor ---------------------------------------------------------------------------------------------------


def test_which_editor() -> None:
    both = {"VISUAL": "code --wait", "EDITOR": "vi"}
    assert editor_command(both) == ["code", "--wait"]
    assert editor_command({**both, "VISUAL": " "}) == ["vi"]
    assert editor_command({}, found=lambda name: name if name == "vi" else None) == ["vi"]
    with pytest.raises(UsageError, match=r"set \$EDITOR"):
        editor_command({}, found=lambda name: None)
    with pytest.raises(UsageError, match=r"\$EDITOR is .* no command"):
        editor_command({"EDITOR": "'"})


def test_the_editor_is_given_a_private_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    script = tmp_path / "editor"
    log = tmp_path / "log"
    script.write_text(f'#!/bin/sh\nstat -c %a "$1" > {log}\necho "$1" >> {log}\necho more >> "$1"\necho >> "$1"\n')
    script.chmod(0o700)
    assert edit("ünï", {"EDITOR": str(script)}) == "ünï\nmore"
    mode, name = log.read_text().splitlines()
    assert mode == "600"
    assert not Path(name).exists()


def test_an_editor_that_fails_is_told() -> None:
    with pytest.raises(UsageError, match="'false' ended with code 1; nothing was changed"):
        edit("x", {"EDITOR": "false"})
    with pytest.raises(UsageError, match="'no-such-editor' cannot be started: No such file"):
        edit("x", {"EDITOR": "no-such-editor"})


def test_ctrl_c_in_the_editor_is_the_editors(tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\nkill -INT $PPID\necho more >> "$1"\n')
    script.chmod(0o700)
    before = signal.getsignal(signal.SIGINT)
    assert edit("x", {"EDITOR": str(script)}) == "x\nmore"
    assert signal.getsignal(signal.SIGINT) is before
