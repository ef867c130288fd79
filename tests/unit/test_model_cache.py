"""The folder of converted models: complete or not there, built once, and clear about what keeps it from being built."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from samplerpool.errors import ModelNotFound, StartFailed
from samplerpool.model.cache import cached_folder, content_key, is_complete, require_space
from tests.nobody import folder_of_mode, without_privileges


def ignore(_: str) -> None:
    pass


def build(folder: Path) -> None:
    (folder / "weights").write_text("w" * 100)


def must_not_build(folder: Path) -> None:
    raise AssertionError("built again")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "key-v1"


def test_built_once_and_then_found(target: Path) -> None:
    assert cached_folder(target, build, ignore) == target
    assert (target / "weights").read_text() == "w" * 100
    assert cached_folder(target, must_not_build, ignore) == target


def test_an_interrupted_build_leaves_nothing_that_is_believed(target: Path) -> None:
    def interrupted(folder: Path) -> None:
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(target, interrupted, ignore)
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["key-v1.lock"]
    assert cached_folder(target, build, ignore) == target


def test_what_a_killed_process_left_is_cleared_away(target: Path) -> None:
    partial = target.with_name("key-v1.partial")
    partial.mkdir(parents=True)
    (partial / "half").write_text("x")
    cached_folder(target, build, ignore)
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "weights"]
    assert not partial.exists()


def test_a_folder_that_lost_something_is_built_again(target: Path) -> None:
    for damage in (lambda: (target / "weights").write_text("short"), lambda: (target / "manifest.json").unlink()):
        cached_folder(target, build, ignore)
        damage()
        assert not is_complete(target)
        cached_folder(target, build, ignore)
        assert is_complete(target)


def test_others_wait_for_the_one_that_builds(target: Path) -> None:
    builds: list[int] = []
    waiting = threading.Semaphore(0)
    progress: list[str] = []

    def slow(folder: Path) -> None:
        builds.append(1)
        assert waiting.acquire(timeout=20)  # until the other one has said that it waits
        build(folder)

    def say(line: str) -> None:
        progress.append(line)
        waiting.release()

    threads = [threading.Thread(target=cached_folder, args=(target, slow, say)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]
    assert progress == ["waiting for another process that is converting this model"]
    assert is_complete(target)


def test_a_finished_conversion_is_used_while_the_lock_is_held(target: Path) -> None:
    cached_folder(target, build, ignore)
    with (target.parent / "key-v1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cached_folder(target, must_not_build, ignore) == target


def test_errors_of_the_conversion_come_through(target: Path) -> None:
    def fails(folder: Path) -> None:
        raise StartFailed("damaged")

    with pytest.raises(StartFailed, match=r"^damaged$"):
        cached_folder(target, fails, ignore)


def test_a_full_disk_is_one_sentence(target: Path) -> None:
    def too_big(folder: Path) -> None:
        require_space(folder, 10**18)

    with pytest.raises(StartFailed, match=r"disk of the cache folder .* is full .*SAMPLERPOOL_CACHE_DIR"):
        cached_folder(target, too_big, ignore)
    with pytest.raises(OSError) as caught:
        require_space(target.parent, 10**18)
    assert caught.value.errno == errno.ENOSPC
    assert not target.exists()


def test_a_read_only_cache_is_one_sentence() -> None:
    words = r"cannot be written \(Permission denied\); .*SAMPLERPOOL_CACHE_DIR"
    with folder_of_mode(0o555) as closed, without_privileges(), pytest.raises(StartFailed, match=words):
        cached_folder(closed / "models" / "key", build, ignore)


def test_a_key_follows_the_content(tmp_path: Path) -> None:
    one, two, three, memos = (tmp_path / name for name in ("one", "two", "three", "memos"))
    one.write_text("same")
    two.write_text("same")
    three.write_text("other")
    assert content_key(one, memos) == content_key(two, memos) != content_key(three, memos)
    assert content_key(one, memos) == content_key(one, tmp_path / "elsewhere")
    one.write_text("changed")
    assert content_key(one, memos) != content_key(two, memos)


def test_a_key_is_remembered_and_a_broken_memory_is_not_believed(tmp_path: Path) -> None:
    file, memos = tmp_path / "file", tmp_path / "memos"
    file.write_text("content")
    key = content_key(file, memos)
    (memo,) = memos.iterdir()
    assert memo.read_text() == key
    memo.write_text("half")
    assert content_key(file, memos) == key
    with pytest.raises(ModelNotFound, match="No such file"):
        content_key(tmp_path / "gone", memos)
