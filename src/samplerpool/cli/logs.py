"""``samplerpool logs``: what a pool's workers and its supervisor wrote, while it runs or afterwards."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import click

from samplerpool.cli.options import pool_argument
from samplerpool.cli.output import note
from samplerpool.config.folders import log_folder
from samplerpool.errors import PoolNotFound, UsageError
from samplerpool.wire.endpoint import ConnectionFile, running_pools

_POLL_S = 0.2


@click.command("logs")
@pool_argument
@click.option("--worker", type=click.IntRange(0), metavar="N", help="Only this worker.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", default=50, show_default=True, help="Last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until the pool ends or Ctrl-C.")
def command(pool: str | None, worker: int | None, lines: int, follow: bool) -> int:
    """Show the last lines that the workers of POOL wrote.

    Without a name: the one running pool, or else the one that ran last.
    """
    folder, connection = _find(pool)
    follower = Follower(_log_files(folder, worker), lines, click.echo)
    follower.show_new()
    while follow and connection is not None and connection.supervisor.alive():
        time.sleep(_POLL_S)
        follower.add(_log_files(folder, worker))
        follower.show_new()
    follower.close()
    return 0


def _find(pool: str | None) -> tuple[Path, ConnectionFile | None]:
    """The folder of a pool's logs, and its connection file if it runs."""
    running = [connection for connection in running_pools() if pool in (None, connection.pool)]
    if len(running) > 1:
        names = ", ".join(connection.pool for connection in running)
        raise PoolNotFound(f"{len(running)} pools are running: {names}. Say which one: samplerpool logs NAME")
    if running:
        return Path(running[0].log_folder), running[0]
    folders = [folder for folder in log_folder().glob(pool or "*") if folder.is_dir()]
    if not folders:
        raise PoolNotFound(f"There are no logs of {f'a pool {pool!r}' if pool else 'any pool'} in {log_folder()}.")
    latest = max(folders, key=lambda folder: folder.stat().st_mtime)
    note(f"Pool {latest.name!r} is not running; this is what its last run wrote.")
    return latest, None


def _log_files(folder: Path, worker: int | None) -> list[Path]:
    paths = sorted(folder.glob("*.log" if worker is None else f"worker-{worker}.log"))
    if not paths and worker is not None:
        raise UsageError(f"There is no log of a worker {worker} in {folder}.")
    return paths


class Follower:
    """Shows the ends of files, and then what is added to them, whole lines only.

    Args:
        lines: how many of the last lines of each file to begin with.
        show: takes a line. With several files, each line tells its file.
    """

    def __init__(self, paths: list[Path], lines: int, show: Callable[[str], None]) -> None:
        self._show = show
        self._lines = lines
        self._files: dict[Path, IO[str]] = {}
        self._partial: dict[Path, str] = {}
        self._prefixes: dict[Path, str] = {}
        self.add(paths)

    def add(self, paths: list[Path]) -> None:
        """Follow these files too, if they are new: of workers that came later."""
        if self._partial.keys() >= set(paths):
            return
        self._partial = {**dict.fromkeys(paths, ""), **self._partial}
        width = max(len(path.stem) for path in self._partial)
        self._prefixes = {path: f"{path.stem:{width}} | " if len(self._partial) > 1 else "" for path in self._partial}

    def show_new(self) -> None:
        """Show what has been written since the last call; a file that was replaced is read from its beginning."""
        for path in self._prefixes:
            known = self._files.get(path)
            if known is None:
                self._open(path, self._lines)
                continue
            replaced = _replaced(path, known)
            self._show_rest(path)  # after the look: what came before the file was replaced is all there
            if replaced:
                self._open(path, None)

    def _open(self, path: Path, last: int | None) -> None:
        with contextlib.suppress(FileNotFoundError):
            file = path.open(encoding="utf-8", errors="replace")
            if path in self._files:
                self._files[path].close()
            self._files[path] = file
            self._show_rest(path, last)

    def _show_rest(self, path: Path, last: int | None = None) -> None:
        *whole, self._partial[path] = (self._partial[path] + self._files[path].read()).split("\n")
        for line in whole if last is None else whole[max(0, len(whole) - last) :]:
            self._show(self._prefixes[path] + line)

    def close(self) -> None:
        """Show unfinished last lines and close the files."""
        for path, file in self._files.items():
            if self._partial[path]:
                self._show(self._prefixes[path] + self._partial[path])
            file.close()


def _replaced(path: Path, file: IO[str]) -> bool:
    try:
        return path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except OSError:  # just now it is neither the old one nor the new one
        return False
