"""What Tab offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from samplerpool.chat.completion import CompletionSources, candidates

SOURCES = CompletionSources(
    {"worker": lambda: ["0", "1"], "pool": lambda: ["mine"], "adapter": lambda: ["calm", "base"]}
)


def offered(before: str, sources: CompletionSources = SOURCES) -> list[str]:
    """The messages up to the cursor that would stand there."""
    return [before[: len(before) - each.replaces] + each.text for each in candidates(before, sources)]


@pytest.mark.parametrize(
    "before", ["", "a question", "//set", "/se\n/s", "not /se", "/nosuch ", "/system be", "/undo "]
)
def test_nothing_is_offered_for_what_only_the_user_knows(before: str) -> None:
    assert offered(before) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/ret", ["/retry "]),
        ("/RET", ["/retry "]),
        ("/help ret", ["/help retry"]),
        ("/set max", ["/set max_new_tokens "]),
        ("/unset max", ["/unset max_new_tokens"]),
        ("/set do_sample ", ["/set do_sample true", "/set do_sample false"]),
        ("/set do_sample t", ["/set do_sample true"]),
        ("/set adapter c", ["/set adapter calm"]),
        ("/set temperature ", []),
        ("/set nosuch ", []),
        ("/attach ", ["/attach mine", "/attach 0", "/attach 1"]),
        ("/compare 0 b", ["/compare 0 base"]),
    ],
)
def test_commands_and_what_they_take(before: str, after: list[str]) -> None:
    assert offered(before) == after


def test_parameters_come_with_their_help() -> None:
    (found,) = candidates("/set temp", SOURCES)
    assert (found.label, found.help) == (
        "temperature",
        "Divides the logits; 0 means greedy. (at least 0 and at most 100)",
    )


def test_files_and_folders_are_offered_below_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("two words.json", "twin.json", ".hidden", "od\x1bd"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert offered("/load tw") == ["/load twin.json", "/load two words.json"]
    assert offered("/load two w") == ["/load two words.json"]
    assert offered(f"/load {tmp_path}/f") == [f"/load {tmp_path}/folder/"]
    assert offered("/load ~/.h") == ["/load ~/.hidden"]
    assert offered("/load ") == ["/load folder/", "/load twin.json", "/load two words.json"]
    assert offered("/load absent/x") == offered("/load ~nobody-of-that-name/x") == offered("/load a\0/") == []


def test_a_source_that_fails_offers_nothing() -> None:
    def gone() -> list[str]:
        raise OSError("the pool is gone")

    assert offered("/attach ", CompletionSources({"pool": gone, "worker": lambda: ["0"]})) == ["/attach 0"]
