"""A supervisor as the first process of a PID namespace, as in a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samplerpool.wire.endpoint import running_pools
from tests.process.pools import wait_until

NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def allowed() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(not allowed(), reason="namespaces may not be made here")
def test_it_restarts_workers_reaps_orphans_and_ends_by_a_signal() -> None:
    command = [*NAMESPACE, sys.executable, "-m", "samplerpool", "launch", "--engine", "scripted", "--pool", "ns"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as outside:
        try:
            _live(outside)
        finally:
            outside.kill()  # and with it, what is inside
    assert outside.returncode == 0


def _live(outside: subprocess.Popen[str]) -> None:
    assert outside.stderr is not None
    while "Running until Ctrl-C." not in outside.stderr.readline():
        assert outside.poll() is None
    [supervisor] = children(outside.pid)
    [worker] = children(supervisor)
    enter = ["nsenter", "--target", str(supervisor), "--pid", "--mount"]
    subprocess.run([*enter, "sh", "-c", "sleep 1 & exit 0"], check=True)
    [orphan] = set(children(supervisor)) - {worker}  # handed to process 1
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: set(children(supervisor)) - {worker, orphan}, "another worker is there")
    wait_until(lambda: not there(orphan), "the orphan is reaped")
    assert running_pools() == []  # its numbers mean nothing out here, and its file stays
    assert Path(os.environ["SAMPLERPOOL_RUNTIME_DIR"], "ns.json").exists()
    os.kill(supervisor, signal.SIGTERM)
    outside.communicate(timeout=30)
