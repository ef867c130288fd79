"""Two machines, as far as the network and their names go: a pool in one network namespace, its clients in another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from samplerpool.wire.endpoint import ConnectionFile, find_pool
from samplerpool.wire.keys import ClientKeys, KeyPair
from tests.process.pools import states, wait_for_successor, wait_until

PORT = 5600
POOL, CLIENT = "10.87.64.1", "10.87.64.2"
SAMPLERPOOL = [sys.executable, "-m", "samplerpool"]


def ip(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ip", *arguments], capture_output=True)


def allowed() -> bool:
    name = f"spt-try-{os.getpid()}"
    made = shutil.which("ip") is not None and ip("netns", "add", name).returncode == 0
    return made and ip("netns", "del", name).returncode == 0


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    here, there = f"spt-a-{os.getpid()}", f"spt-b-{os.getpid()}"
    for name in (here, there):
        assert ip("netns", "add", name).returncode == 0
    try:
        ip("-n", here, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", there)
        for name, address in ((here, POOL), (there, CLIENT)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            assert ip("-n", name, "link", "set", "cable", "up").returncode == 0
        yield here, there
    finally:
        for name in (here, there):
            ip("netns", "del", name)


def run_in(
    machine: str, *arguments: str, code: int = 0, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command there; with a folder of its own, under another host name too."""
    command = [*SAMPLERPOOL, *arguments]
    environ = dict(os.environ)
    if folder is not None:
        environ |= {f"SAMPLERPOOL_{name}_DIR": str(folder) for name in ("RUNTIME", "STATE", "LOG")}
        command = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh", *command]
    done = subprocess.run(
        ["ip", "netns", "exec", machine, *command], capture_output=True, text=True, env=environ, timeout=60
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.skipif(not allowed(), reason="network namespaces may not be made here")
def test_a_copied_connection_file_is_all_it_takes(machines: tuple[str, str], tmp_path: Path) -> None:
    here, there = machines
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    listen = ("--listen", f"tcp://0.0.0.0:{PORT}", "--advertise", POOL)
    run_in(here, "launch", "--engine", "scripted", "--pool", "far", "--detach", *listen)
    try:
        found = find_pool("far")
        assert (found.endpoint, found.workers[0].endpoint) == (f"tcp://{POOL}:{PORT}", f"tcp://{POOL}:{PORT + 1}")
        copy = elsewhere / "copy.json"
        shutil.copy(Path(os.environ["SAMPLERPOOL_RUNTIME_DIR"], "far.json"), copy)
        _works(there, copy, elsewhere)
        _refuses(there, found, elsewhere)
        os.kill(found.workers[0].process.pid, signal.SIGKILL)
        after = wait_for_successor(found.workers[0], "far")
        assert after.endpoint == found.workers[0].endpoint  # so that a firewall's opening stays right
        said = run_in(there, "chat", "--connect", str(copy), "--once", "[[say:again]]", folder=elsewhere)
        assert said.stdout.strip() == "again"  # although the copy tells of a process that is gone
        assert states("far") == ["ready"]
        assert "stopped" in run_in(there, "stop", "--connect", str(copy), folder=elsewhere).stdout
        wait_until(lambda: not found.supervisor.alive(), "the pool has ended")
    finally:
        run_in(here, "stop", "--all")


def _works(there: str, copy: Path, elsewhere: Path) -> None:
    (elsewhere / "in.jsonl").write_text("".join(json.dumps({"prompt": f"[[say:{n}]]"}) + "\n" for n in range(50)))
    out = elsewhere / "out.jsonl"
    run_in(there, "batch", str(elsewhere / "in.jsonl"), "-o", str(out), "--connect", str(copy), folder=elsewhere)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["generation"]["text"] for row in rows] == [str(n) for n in range(50)]
    [status] = json.loads(run_in(there, "status", "--connect", str(copy), "--json", folder=elsewhere).stdout)
    assert (status["pool"], status["state"], status["problem"]) == ("far", "running", None)


def _refuses(there: str, pool: ConnectionFile, elsewhere: Path) -> None:
    assert "No pool is running" in run_in(there, "chat", "--once", "x", code=2, folder=elsewhere).stderr
    assert pool.keys is not None
    pair = KeyPair.new()
    stranger = elsewhere / "stranger.json"
    replace(pool, keys=ClientKeys(pool.keys.server, pair.public, pair.secret)).write(stranger)
    said = run_in(there, "chat", "--connect", str(stranger), "--once", "x", code=1, folder=elsewhere).stderr
    assert "does not know this key" in said
