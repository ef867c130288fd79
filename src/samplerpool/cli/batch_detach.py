"""``samplerpool batch --detach``: the run in a session of its own, which goes on after a logout.

The same command is started once more, as the leader of a new session, with its output in ``FILE.log``. Until its run
has begun, the first process stays, shows what the other one says, and ends as it ends: so whatever is wrong at the
start appears in the terminal, with the right exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import click

from samplerpool.batch.progress_file import ProgressRead, progress_path
from samplerpool.batch.spool import STANDARD_INPUT, is_stream
from samplerpool.cli.main import EXIT_INTERRUPTED
from samplerpool.errors import BatchError, OutputExists, UsageError

LOG_SUFFIX = ".log"
POLL_S = 0.1
_BEGUN_FD = "SAMPLERPOOL_BATCH_BEGUN_FD"


class Begun:
    """In the process that goes on: where it says that its run has begun. Anywhere else nothing comes of it."""

    def __init__(self) -> None:
        number = os.environ.pop(_BEGUN_FD, None)  # no worker's concern
        self._descriptor = None if number is None else int(number)
        self.detached = number is not None
        if self._descriptor is not None:
            os.set_inheritable(self._descriptor, False)

    def tell(self) -> None:
        """The run has begun. Idempotent."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                os.write(self._descriptor, b".")
            os.close(self._descriptor)
            self._descriptor = None


def detach(source: str, output: Path, resume: str) -> int:
    """Start this process's command once more, in a session of its own.

    Args:
        source: the batch's input, as it was named; ``output`` likewise.
        resume: the command with which to go on later, for people.

    Returns:
        0 when its run has begun; else the exit code with which it has ended before that.

    Raises:
        UsageError: it would read the terminal.
        BatchError: its log cannot be written.
    """
    path = Path(os.path.realpath(output))
    log = path.with_name(path.name + LOG_SUFFIX)
    if source == STANDARD_INPUT and sys.stdin.isatty():
        raise UsageError("A batch that is detached cannot read from the terminal; give the input as a file.")
    if (running := ProgressRead(path)).process is not None and not running.ended:  # whose log it is
        raise OutputExists(
            f"Process {running.fields['pid']} is writing {path} already; samplerpool batch stop ends it.",
            path=str(path),
        )
    name = shlex.quote(str(output))
    reader, writer = os.pipe()
    try:
        with _opened(log) as said:
            before = said.seek(0, os.SEEK_END)
            child = _start(source, said, writer)
            os.close(writer)
            writer = -1
            if not _wait_for_begin(child, reader, said):
                if not before:  # all of it has been shown
                    log.unlink(missing_ok=True)
                return _exit_code(child)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    click.echo(
        f"The batch goes on in the background, as process {child.pid}; what it says is in {log}.\n"
        f"  watch it:  samplerpool batch tail {name} -f    (and {progress_path(path)})\n"
        f"  stop it:   samplerpool batch stop {name}\n"
        f"  go on:     {resume}",
        err=True,
    )
    return 0


def _opened(log: Path) -> BinaryIO:
    try:
        return open(log, "a+b", buffering=0)
    except OSError as error:
        raise BatchError(f"The batch's log {log} cannot be written: {error.strerror}.", path=str(log)) from error


def _start(source: str, said: BinaryIO, writer: int) -> subprocess.Popen[bytes]:
    here = sys.path[:1] in ([""], [os.getcwd()])  # as with python -m; else nothing in this folder is to be imported
    return subprocess.Popen(
        [sys.executable, *([] if here else ["-P"]), "-m", "samplerpool", *sys.argv[1:]],
        stdin=None if is_stream(source) else subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
        env={**os.environ, _BEGUN_FD: str(writer)},
        start_new_session=True,
    )


def _wait_for_begin(child: subprocess.Popen[bytes], reader: int, said: BinaryIO) -> bool:
    """Show what it says, until it has begun (True) or ended."""
    shown = said.tell()
    while True:
        try:
            ready, _, _ = select.select([reader], [], [], POLL_S)
            begun = bool(ready) and os.read(reader, 1) == b"."
            if ready and not begun:
                child.wait()
            text = os.pread(said.fileno(), 1 << 20, shown)
            shown += len(text)
            click.echo(text, nl=False, err=True)
            if ready:
                return begun
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)  # which is not in the terminal's group


def _exit_code(child: subprocess.Popen[bytes]) -> int:
    code = child.wait()
    return EXIT_INTERRUPTED if code == -signal.SIGINT else code if code >= 0 else 128 - code
