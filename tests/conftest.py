"""For all tests: folders of their own, and a check that each leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # a slow machine is no mistake of the code
hypothesis.settings.load_profile("untimed")

MARK = "SAMPLERPOOL_TEST_MARK"
GRACE_S = 6.0
KEPT_THREADS = ("asyncio_", "ThreadPoolExecutor", "tqdm", "samplerpool-watch")
"""Pool threads of libraries that live as long as the process."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long; runs with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runtime, log and state folders for this test alone; the path is short, because socket paths must be."""
    folder = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))
    monkeypatch.setenv("SAMPLERPOOL_RUNTIME_DIR", str(folder / "run"))
    monkeypatch.setenv("SAMPLERPOOL_LOG_DIR", str(folder / "log"))
    monkeypatch.setenv("SAMPLERPOOL_STATE_DIR", str(folder / "state"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_left_behind(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test after which a process, thread, socket or file of a pool is left."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    threads = set(threading.enumerate())
    sockets = _open_sockets()
    yield
    deadline = time.monotonic() + GRACE_S
    while (left := _left(mark, own_folders, threads, sockets)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    for pid in _marked_processes(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


def _left(mark: str, folders: Path, threads: set[threading.Thread], sockets: int) -> list[str]:
    found = [f"process {pid}: {_command(pid)}" for pid in _marked_processes(mark)]
    found += [
        f"thread {thread.name}"
        for thread in set(threading.enumerate()) - threads
        if not thread.name.startswith(KEPT_THREADS)
    ]
    runtime = folders / "run"
    found += [f"file {path.name}" for path in runtime.iterdir()] if runtime.exists() else []
    extra = _open_sockets() - sockets
    if extra > 0:
        found.append(f"{extra} open sockets")
    return found


def _marked_processes(mark: str) -> list[int]:
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"


def _open_sockets() -> int:
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count
