"""Whose files and folders are trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from samplerpool.errors import PoolNotFound, TransportError, UsageError
from samplerpool.wire.endpoint import ConnectionFile, ProcessId, connection_path, distrusted, find_pool
from samplerpool.wire.files import check_secret, file_problem, folder_problem, private_folder, read_trusted
from samplerpool.wire.keys import ClientKeys

ME, OTHER = os.geteuid(), 12345
PATH = Path("/x/p.json")
needs_root = pytest.mark.skipif(ME != 0, reason="only root can give files away")


def connection(keys: ClientKeys | None = None) -> ConnectionFile:
    nobody = ProcessId(0, 0)
    return ConnectionFile("p", "m", "scripted", "running", nobody, "ipc:///x", keys=keys)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644, 0o755])
@pytest.mark.parametrize("owner", [ME, 0])
def test_a_file_of_ours_or_the_system_s_that_others_cannot_change_is_trusted(owner: int, mode: int) -> None:
    assert file_problem(PATH, "thing", owner, stat.S_IFREG | mode) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664])
def test_a_file_that_others_can_change_is_not(mode: int) -> None:
    problem = file_problem(PATH, "thing", ME, stat.S_IFREG | mode)
    assert problem is not None
    assert problem.startswith(f"The thing /x/p.json may be changed by others (mode {mode:o})")
    assert problem.endswith("chmod 600 /x/p.json")


def test_a_file_of_another_user_s_is_not() -> None:
    problem = file_problem(PATH, "thing", OTHER, stat.S_IFREG | 0o600)
    assert problem is not None
    assert f"belongs to uid {OTHER}, not to you (uid {ME})" in problem
    assert "make a copy of your own" in problem


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TransportError, match="not a plain file"):
        read_trusted(tmp_path / "pipe", "thing")  # and nobody waits for somebody to write to it
    with pytest.raises(PoolNotFound):
        read_trusted(tmp_path / "none", "thing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(TransportError, match="no text"):
        read_trusted(tmp_path / "bytes", "thing")


def test_a_secret_may_not_be_read_by_others() -> None:
    check_secret(PATH, "thing", 0o600)
    for mode in (0o640, 0o604):
        with pytest.raises(TransportError, match=rf"holds a secret key .*mode {mode:o}.* chmod 600 /x/p.json"):
            check_secret(PATH, "thing", mode)


def test_connection_files_are_looked_at_before_they_are_believed(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    secret = connection(ClientKeys("s" * 40, "p" * 40, "x" * 40))
    secret.write(path)
    assert ConnectionFile.read(path) == secret
    assert "x" * 40 not in repr(secret)
    path.chmod(0o644)
    with pytest.raises(TransportError, match="holds a secret key"):
        ConnectionFile.read(path)
    connection(ClientKeys("s" * 40, "p" * 40)).write(path)
    path.chmod(0o644)
    ConnectionFile.read(path)
    path.chmod(0o646)
    with pytest.raises(TransportError, match="may be changed by others"):
        ConnectionFile.read(path)


@needs_root
def test_another_user_s_connection_file_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    connection().write(path)
    os.chown(path, OTHER, OTHER)
    with pytest.raises(TransportError, match=f"belongs to uid {OTHER}"):
        ConnectionFile.read(path)


def test_a_search_says_what_it_did_not_look_at(own_folders: Path) -> None:
    folder = private_folder(own_folders / "run")
    path = connection_path(folder, "p")
    connection().write(path)
    path.chmod(0o622)
    assert [str(path) in problem for problem in distrusted()] == [True]
    with pytest.raises(PoolNotFound, match=r"No pool is running.*Not looked at: .*may be changed by others"):
        find_pool()
    folder.chmod(0o770)
    with pytest.raises(PoolNotFound, match=r"There is no pool 'p'.*Not looked at: .*open to others.*chmod 700"):
        find_pool("p")
    path.unlink()


def test_a_folder_that_is_not_there_is_no_problem(tmp_path: Path) -> None:
    assert folder_problem(tmp_path / "none") is None
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="SAMPLERPOOL_RUNTIME_DIR"):
        private_folder(tmp_path / "file" / "below")
