"""``samplerpool doctor`` on this machine, with things that pools left behind and programs that hang."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from samplerpool.pool import machine
from samplerpool.pool.machine import ask_program, look
from samplerpool.wire.endpoint import find_pool
from tests.nobody import folder_of_mode, without_privileges
from tests.process.conftest import eventually
from tests.process.pools import entry, launch, stopped, wait_until

TIMEOUT_S = 90
QUICK_TORCH = """
from types import SimpleNamespace as Names
__version__, version = "2.0", Names(cuda=None)
backends = Names(cpu=Names(get_cpu_capability=lambda: "quick"))
cuda = Names(device_count=lambda: 0)
"""


@pytest.fixture
def quick_torch(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that doctor takes for torch, because torch itself takes a second to import."""
    module = own_folders / "modules" / "torch.py"
    module.parent.mkdir()
    module.write_text(QUICK_TORCH)
    monkeypatch.setenv("PYTHONPATH", f"{module.parent}:{os.environ.get('PYTHONPATH', '')}")
    return module


def doctor(code: int = 0, **environ: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "samplerpool", "doctor", "--json"]
    env = {**os.environ, **environ}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=env)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["ok"] == (code == 0)
    return told


def texts(told: dict[str, Any], check: str, level: str) -> list[str]:
    chosen = [f for f in told["findings"] if (f["check"], f["level"]) == (check, level)]
    return [f"{finding['text']} -> {finding['advice']}" for finding in chosen]


def test_this_machine_can_run_pools() -> None:
    told = doctor()
    assert {"python", "packages", "torch", "devices", "cores", "memory", "sockets", "logs", "leftovers"} <= {
        finding["check"] for finding in told["findings"]
    }
    assert all(set(finding) == {"check", "level", "text", "advice"} for finding in told["findings"])
    assert all(bool(finding["advice"]) == (finding["level"] != "ok") for finding in told["findings"])
    command = [sys.executable, "-m", "samplerpool", "doctor"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    assert "✓ python" in shown
    assert "Pools will not run here" not in shown


def test_what_a_dead_pool_left_is_told_and_not_touched(own_folders: Path, quick_torch: Path) -> None:
    pool = launch(pool="gone", private=False)
    worker = entry("gone").process
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: stopped(worker.pid), "the worker is stopped")
    os.kill(pool.connection.supervisor.pid, signal.SIGKILL)
    wait_until(lambda: not pool.connection.supervisor.alive(), "the supervisor is gone")
    try:
        before = sorted(path.name for path in (own_folders / "run").iterdir())
        [left] = texts(doctor(), "leftovers", "warning")
        assert "pool 'gone' died" in left
        assert f"running workers: {worker.pid}" in left
        assert "samplerpool status removes it" in left
        assert sorted(path.name for path in (own_folders / "run").iterdir()) == before
        assert worker.alive()
        subprocess.run([sys.executable, "-m", "samplerpool", "status"], check=True, timeout=TIMEOUT_S)
        assert texts(doctor(), "leftovers", "warning") == []
    finally:
        os.killpg(worker.pid, signal.SIGKILL) if worker.alive() else None
        pool._process.wait()


def test_a_running_pool_is_no_leftover_and_a_stray_socket_is(own_folders: Path, quick_torch: Path) -> None:
    pool = launch(pool="alive")
    stray = own_folders / "run" / "nobody-w0-0123456789ab.sock"
    stray.touch()
    os.utime(stray, (time.time() - 3600, time.time() - 3600))
    [left] = texts(doctor(), "leftovers", "warning")
    assert str(stray) in left
    stray.unlink()
    assert texts(doctor(), "leftovers", "ok") == ["none; running: alive -> "]
    assert find_pool("alive").supervisor.alive()
    pool.stop(5.0)


def test_an_open_runtime_folder_fails(own_folders: Path, quick_torch: Path) -> None:
    folder = own_folders / "open"
    folder.mkdir()
    folder.chmod(0o755)
    [text] = texts(doctor(1, SAMPLERPOOL_RUNTIME_DIR=str(folder)), "sockets", "failure")
    assert "chmod 700" in text


def test_the_session_s_folder_of_another_user_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``su``."""
    monkeypatch.delenv("SAMPLERPOOL_RUNTIME_DIR")
    with folder_of_mode(0o700) as session, without_privileges():
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
        places = {place.path: place for place in machine._places()}
        assert list(machine._leftovers([])) == []
    assert not places[f"{session}/samplerpool"].essential
    assert "no permission" in places[f"{session}/samplerpool"].problem


def test_a_torch_that_hangs_or_is_broken_fails_and_holds_nobody_up(
    quick_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_torch.write_text("raise ImportError('libcudart.so.13: cannot open')\n")
    [text] = texts(doctor(1), "torch", "failure")
    assert "ImportError: libcudart.so.13: cannot open" in text
    quick_torch.write_text("import time\nwhile True: time.sleep(1)\n")
    monkeypatch.setattr(machine, "TORCH_TIMEOUT_S", 0.5)
    assert look().torch.problem == "no answer within 0.5 s"


def test_nvidia_smi_is_asked_who_holds_a_gpu(tmp_path: Path, quick_torch: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '4242, /usr/bin/some, game, 512 MiB'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path}:{os.environ['PATH']}"
    [text] = texts(doctor(PATH=path), "gpu use", "warning")
    assert "/usr/bin/some, game (pid 4242) holds 512 MiB" in text
    program.write_text("#!/bin/sh\nexit 9\n")
    assert texts(doctor(PATH=path), "gpu use", "ok") == []


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    command = ["sh", "-c", f"sleep 1000 & echo $! > {note}; wait"]
    assert ask_program(command, 0.5) == ("", "no answer within 0.5 s")
    child = int(note.read_text())
    eventually(lambda: not Path(f"/proc/{child}").exists(), "the child is gone")
    assert ask_program(["/nowhere/program"], 0.5)[1] == "/nowhere/program cannot be started: No such file or directory"
