"""A client of many workers: more sockets than ZeroMQ has room for by itself, and as many descriptors as it may have."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from samplerpool.wire.sockets import client_context, open_dealer

ALLOW = """
import resource
from samplerpool.cli.batch_process import DESCRIPTORS, allow_descriptors
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
allow_descriptors()
allow_descriptors()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(DESCRIPTORS, most), most), "the limit is not what it may be"
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
allow_descriptors()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_client_has_sockets_for_more_than_a_thousand_workers(tmp_path: Path) -> None:
    import resource

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 4096:
        pytest.skip(f"a process may open {most} files here; this needs 4,096")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), most))
    try:
        with client_context() as context, ExitStack() as sockets:
            for number in range(1200):
                socket = open_dealer(context, f"ipc://{tmp_path}/{number}")
                sockets.callback(socket.close, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def test_a_batch_may_open_as_many_files_as_the_system_lets_it() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOW], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("(300, 300)\n", 0), done.stderr
