"""Log files of real processes: rotated under their hands, on a disk that is full, followed meanwhile."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from samplerpool import SyncSampler
from samplerpool.config.logs import KEPT_LOGS
from samplerpool.errors import RequestError
from tests.process.conftest import DEADLINE_S, eventually

WRITER = """
import ctypes, faulthandler, logging, os, sys
from pathlib import Path
from samplerpool.config.logs import LogFile
faulthandler.enable()
log = LogFile(Path(sys.argv[1]), int(sys.argv[2]), "%(message)s")
libc = ctypes.CDLL(None)
for number in range(int(sys.argv[3])):
    logging.info("logged %d", number)
    print("printed", number)
    libc.dprintf(2, b"native %d\\n", number)
    log.rotate_if_large()
os.kill(os.getpid(), int(sys.argv[4]))
"""


def write(path: Path, max_bytes: int, lines: int, last_signal: int = 0) -> int:
    with open(path, "ab") as output:
        command = [sys.executable, "-c", WRITER, path, str(max_bytes), str(lines), str(last_signal)]
        return subprocess.run(list(map(str, command)), stdout=output, stderr=output, timeout=DEADLINE_S).returncode


def files(path: Path) -> list[Path]:
    """Oldest first."""
    names = [*(f"{path.name}.{number}" for number in range(KEPT_LOGS, 0, -1)), path.name]
    return [path.parent / name for name in names if (path.parent / name).exists()]


def test_no_line_is_lost_when_a_file_is_full(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    assert write(path, 4096, 900) == 0
    assert len(files(path)) == 4
    lines = "".join(file.read_text() for file in files(path)).splitlines()
    expected = [f"{how} {number}" for number in range(900) for how in ("logged", "printed", "native")]
    assert lines == expected[-len(lines) :]
    assert len(lines) > 900
    assert all(file.stat().st_size < 4096 + 100 for file in files(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(file.name for file in files(path))


def test_a_dying_process_writes_its_stacks_into_the_present_file(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    assert write(path, 4096, 300, signal.SIGSEGV) == -signal.SIGSEGV
    assert len(files(path)) > 1
    assert "Fatal Python error: Segmentation fault" in path.read_text()


FOLLOWER = """
import logging, os, sys
from pathlib import Path
from samplerpool.config.logs import LogFile
path = Path(sys.argv[1])
log = LogFile(path, 10, "%(message)s", rotates=False)
logging.info("far more than ten bytes")
log.follow()
logging.info("still in the same file")
os.replace(path, path.with_name("earlier"))
log.follow()
logging.info("where a file is missing")
path.write_text("begun by another: ")
log.follow()
logging.info("and gone on with")
"""


def test_a_process_goes_along_when_another_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    with open(path, "ab") as output:
        subprocess.run([sys.executable, "-c", FOLLOWER, str(path)], stdout=output, stderr=output, check=True)
    earlier = (tmp_path / "earlier").read_text().splitlines()
    assert earlier == ["far more than ten bytes", "still in the same file", "where a file is missing"]
    assert path.read_text() == "begun by another: and gone on with\n"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def small_disk(own_folders: Path) -> Iterator[Path]:
    """A disk of 64 KiB that holds the logs."""
    folder = own_folders / "log"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_harms_nobody(small_disk: Path) -> None:
    with SyncSampler.launch(engine="scripted", devices="cpu", pool="p", log_requests="all") as sampler:
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        log = small_disk / "p" / "worker-0.log"
        full = fill(sampler, log)
        for _ in range(20):
            assert "".join(sampler.generate("[[say:hello]]")) == "hello"
            with pytest.raises(RequestError, match="told to fail"):
                list(sampler.generate("[[fail]]"))
        with pytest.raises(RequestError, match="told to raise"):  # a traceback cannot be written either
            list(sampler.generate("[[raise:0]]"))
        assert log.stat().st_size == full
        filler.unlink()
        assert "".join(sampler.generate("[[say:hello]]")) == "hello"
        eventually(lambda: "outcome=stop" in log.read_text()[full:], "the log goes on")
        assert re.search(r"\[\d+ bytes could not be written here\]\n", log.read_text())


def fill(sampler: SyncSampler, log: Path) -> int:
    """Write into the log until it does not grow any more; its size then."""
    size = -1
    while log.stat().st_size != size:
        size = log.stat().st_size
        for _ in range(5):
            list(sampler.generate("[[say:hello]]"))
    return size


@contextlib.contextmanager
def following(*options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "samplerpool", "logs", "--follow", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        too_late = threading.Timer(2 * DEADLINE_S, follower.kill)  # its end ends the waiting for its lines
        too_late.start()
        try:
            yield follower
        finally:
            too_late.cancel()
            too_late.join()
            follower.kill()


def test_logs_are_followed_over_a_rotation(own_folders: Path) -> None:
    options = {"log_requests": "all", "max_log_bytes": 4096}
    with SyncSampler.launch(engine="scripted", devices="cpu", pool="p", **options) as sampler:
        log = own_folders / "log" / "p" / "worker-0.log"
        with following("p", "--worker", "0", "--lines", "1000") as follower:
            assert follower.stdout is not None
            asked, seen = 0, 0
            deadline = time.monotonic() + DEADLINE_S
            while not log.with_name("worker-0.log.2").exists():
                assert time.monotonic() < deadline
                for _ in range(5):
                    list(sampler.generate("[[say:hello]]"))
                asked += 5
                while seen < asked:  # at the speed of the follower, which looks now and then
                    line = follower.stdout.readline()
                    assert line
                    seen += "outcome=stop" in line
            sampler.close()
            rest, _ = follower.communicate(timeout=DEADLINE_S)
        assert follower.returncode == 0
        assert rest.splitlines()[-1].endswith("stopped")
        assert "outcome=stop" not in rest


def test_logs_of_a_worker_that_came_later_are_followed() -> None:
    with SyncSampler.launch(engine="scripted", devices="cpu", pool="p") as sampler, following("p") as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        subprocess.run([sys.executable, "-m", "samplerpool", "scale", "p", "2"], check=True, timeout=DEADLINE_S)
        while not (line := follower.stdout.readline()).startswith("worker-1"):
            assert line
        sampler.close()
        follower.communicate(timeout=DEADLINE_S)


def test_a_folder_that_nobody_may_write_is_said_at_launch(own_folders: Path) -> None:
    (own_folders / "log").write_text("not a folder")
    with pytest.raises(Exception, match="Not a directory"):
        SyncSampler.launch(engine="scripted", devices="cpu", pool="p")
