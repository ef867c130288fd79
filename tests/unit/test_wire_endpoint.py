"""Folders, socket paths, connection files, names."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from samplerpool.config.folders import runtime_folder, runtime_folders
from samplerpool.errors import PoolNameTaken, PoolNotFound, TransportError, UsageError
from samplerpool.wire.addresses import ipc_endpoint
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, WorkerEntry, connection_path, find_pool, running_pools
from samplerpool.wire.files import private_folder
from samplerpool.wire.names import name_lock


def connection(pool: str = "p", supervisor: ProcessId | None = None) -> ConnectionFile:
    worker = WorkerEntry(0, "ipc:///tmp/x.sock", "inc", "cpu", "ready", ProcessId.of(os.getpid()))
    return ConnectionFile(
        pool, "model", "scripted", "running", supervisor or ProcessId.of(os.getpid()), "ipc:///tmp/c.sock", (worker,)
    )


def test_a_private_folder_is_made_and_checked(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.raises(UsageError, match="open to others"):
        private_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UsageError, match="not a folder of yours"):
        private_folder(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        private_folder(tmp_path / "file")


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "theirs")
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="owner uid 12345"):
        private_folder(folder)


def test_socket_paths_are_bounded(tmp_path: Path) -> None:
    assert ipc_endpoint(Path("/run/x"), "p-w0-abc") == "ipc:///run/x/p-w0-abc.sock"
    with pytest.raises(UsageError, match="SAMPLERPOOL_RUNTIME_DIR"):
        ipc_endpoint(Path("/" + "x" * 90), "p-w0-abcdef")


def test_a_connection_file_survives_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    connection().write(path)
    assert ConnectionFile.read(path) == connection()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "workers": []}', "\x00"])
def test_what_is_no_connection_file_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(TransportError, match="not a connection file"):
        ConnectionFile.read(path)
    with pytest.raises(PoolNotFound):
        ConnectionFile.read(tmp_path / "none.json")


def test_pools_are_found_and_dead_ones_cleaned() -> None:
    folder = private_folder(runtime_folder(detached=True))
    with pytest.raises(PoolNotFound, match="samplerpool launch"):
        find_pool()
    connection("alive").write(connection_path(folder, "alive"))
    dead = replace(connection("dead", ProcessId(os.getpid(), 1)), endpoint=f"ipc://{folder}/dead.sock")
    (folder / "dead.sock").touch()
    dead.write(connection_path(folder, "dead"))
    foreign = replace(dead, pool="foreign", host="elsewhere")
    foreign.write(connection_path(folder, "foreign"))
    assert [pool.pool for pool in running_pools()] == ["alive"]
    assert sorted(p.name for p in folder.iterdir()) == ["alive.json", "foreign.json"]
    assert find_pool().pool == find_pool("alive").pool == "alive"
    with pytest.raises(PoolNotFound, match="running: alive"):
        find_pool("other")
    connection("second").write(connection_path(folder, "second"))
    with pytest.raises(PoolNotFound, match="alive, second"):
        find_pool()
    for name in ("alive", "second", "foreign"):
        connection_path(folder, name).unlink()


def test_pools_are_looked_for_in_private_folders_only(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder(runtime_folder(detached=True))
    connection("p").write(connection_path(folder, "p"))
    assert [pool.pool for pool in running_pools()] == ["p"]
    folder.chmod(0o777)
    assert running_pools() == []
    folder.chmod(0o700)
    (own_folders / "link").symlink_to(folder)
    monkeypatch.setenv("SAMPLERPOOL_RUNTIME_DIR", str(own_folders / "link"))
    assert running_pools() == []
    connection_path(folder, "p").unlink()


def test_a_name_is_held_by_one(own_folders: Path) -> None:
    with name_lock("p"):
        with pytest.raises(PoolNameTaken, match="samplerpool stop p"), name_lock("p"):
            pass
        with name_lock("q"):
            pass
    with name_lock("p"):
        pass
    assert list((own_folders / "run").iterdir()) == []


def test_folders_follow_the_environment() -> None:
    session = {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert runtime_folder(detached=False, environ=session) == Path("/run/user/7/samplerpool")
    assert runtime_folder(detached=True, environ=session) == Path(f"/tmp/samplerpool-{os.getuid()}")
    assert runtime_folders({"SAMPLERPOOL_RUNTIME_DIR": "/x", **session}) == [Path("/x")]
