"""What the control groups of this process allow, both in version 1 and 2."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cgroup_folders(controller: str, *, root: Path = ROOT, own: Path = OWN) -> list[Path]:
    """This process's control groups up to the roots: a limit anywhere above holds as well.

    Args:
        controller: ``cpu`` or ``memory``.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = top / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return folders


def available_memory() -> int:
    """Bytes that this process may still take, by the machine's memory and its control groups' limits."""
    import psutil

    free = int(psutil.virtual_memory().available)
    room = memory_room()
    return free if room is None else min(free, room)


def memory_room(*, root: Path = ROOT, own: Path = OWN) -> int | None:
    """Bytes below the nearest memory limit, or None where there is none. Cached files do not count: they give way."""
    rooms = [room for folder in cgroup_folders("memory", root=root, own=own) if (room := _room(folder)) is not None]
    return min(rooms, default=None)


def _room(folder: Path) -> int | None:
    for limit_file, usage_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
            return max(0, limit - usage + _statistic(folder / "memory.stat", cached))
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
    return None


def _statistic(path: Path, name: str) -> int:
    values = dict(line.split() for line in path.read_text().splitlines())
    return int(values.get(name, 0))
