"""What control groups allow."""

from __future__ import annotations

from pathlib import Path

from samplerpool.config.cgroups import cgroup_folders, memory_room


def groups(folder: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return {"root": folder / "root", "own": folder / "own"}


def test_the_nearest_memory_limit_counts_without_cached_files(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "1000\n",
        "a/b/memory.current": "700\n",
        "a/b/memory.stat": "anon 500\ninactive_file 150\n",
        "a/memory.max": "2000\n",
        "a/memory.current": "1900\n",
        "a/memory.stat": "inactive_file 0\n",
        "memory.stat": "inactive_file 9\n",
    }
    assert memory_room(**groups(tmp_path, "0::/a/b\n", files)) == 100
    assert memory_room(**groups(tmp_path, "0::/a/b\n", {"a/memory.max": "max\n"})) == 450


def test_memory_limits_of_version_1(tmp_path: Path) -> None:
    files = {
        "memory/c/memory.limit_in_bytes": "1000\n",
        "memory/c/memory.usage_in_bytes": "990\n",
        "memory/c/memory.stat": "total_inactive_file 40\n",
    }
    places = groups(tmp_path, "4:memory:/c\n1:cpu,cpuacct:/d\n0::/\n", files)
    assert memory_room(**places) == 50
    assert cgroup_folders("cpu", **places)[:2] == [tmp_path / "root" / "cpu" / "d", tmp_path / "root" / "cpu"]


def test_without_a_limit_there_is_no_room_to_tell(tmp_path: Path) -> None:
    assert memory_room(**groups(tmp_path, "0::/a\n", {"memory.stat": "x 1\n"})) is None
    assert memory_room(root=tmp_path, own=tmp_path / "nowhere") is None
