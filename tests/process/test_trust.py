"""Another user looks at folders and files: what is trusted, and by whom it may be read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nobody import NOBODY, folder_of_mode
from tests.process.pools import DEADLINE_S, launch

LOOK = """
import os, sys
from pathlib import Path
from samplerpool.errors import SamplerPoolError
from samplerpool.wire.endpoint import ConnectionFile, find_pool
from samplerpool.wire.files import private_folder

os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))  # only now: where the interpreter lies may be closed to others
for look, path in ((private_folder, sys.argv[1]), (ConnectionFile.read, sys.argv[2]), (lambda _: find_pool(), "")):
    try:
        look(Path(path))
        print("trusted")
    except SamplerPoolError as error:
        print(type(error).__name__, error.message)
"""


def looked_at(folder: Path, file: Path) -> list[str]:
    """What a process of another user says of them."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder), str(file), str(NOBODY)],
        capture_output=True,
        text=True,
        env={**os.environ, "SAMPLERPOOL_RUNTIME_DIR": str(folder)},
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_pool_is_its_user_s_alone(own_folders: Path) -> None:
    pool = launch(pool="mine", listen="tcp://127.0.0.1:*")
    try:
        folder = own_folders / "run"
        own_folders.chmod(0o711)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        answers = looked_at(folder, folder / "mine.json")
        assert answers[0].startswith(f"UsageError The runtime folder {folder} is not a folder of yours (owner uid 0)")
        assert (
            answers[1]
            == f"TransportError The connection file {folder / 'mine.json'} cannot be read: Permission denied."
        )
        assert answers[2].startswith("PoolNotFound No pool is running.")
        assert "Not looked at: The runtime folder" in answers[2]
        assert "set SAMPLERPOOL_RUNTIME_DIR" in answers[2]
        with folder_of_mode(0o777) as shared:  # what lies about for everybody
            copy = shared / "copy.json"
            copy.write_text((folder / "mine.json").read_text())
            for owner, mode, answer in (
                (NOBODY, 0o600, "trusted"),
                (NOBODY, 0o604, "may be read by others (mode 604)"),
                (NOBODY, 0o602, "may be changed by others (mode 602)"),
                (12345, 0o644, f"belongs to uid 12345, not to you (uid {NOBODY})"),
            ):
                copy.chmod(mode)
                os.chown(copy, owner, owner)
                assert answer in looked_at(shared, copy)[1]
    finally:
        pool.stop(0.0)
