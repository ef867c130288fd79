"""The folder of converted models: made once by one process, complete or not there at all. Free of torch."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samplerpool.config.folders import CACHE_VARIABLE
from samplerpool.errors import ModelNotFound, StartFailed

MANIFEST = "manifest.json"
"""Name and size of every other file of a converted model, written last."""

Build = Callable[[Path], None]
Progress = Callable[[str], None]


def content_key(file: Path, memo_folder: Path) -> str:
    """A short hash of the file's content, remembered in ``memo_folder`` for as long as the file stays untouched.

    Raises:
        ModelNotFound: the file cannot be read.
    """
    try:
        stat = file.stat()
        identity = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}|{stat.st_dev}"
        memo = memo_folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.key"
        with suppress(OSError):
            if len(key := memo.read_text(encoding="ascii")) == 24:
                return key
        with file.open("rb") as opened:
            key = hashlib.file_digest(opened, "sha256").hexdigest()[:24]
    except OSError as error:
        raise ModelNotFound(f"The model {str(file)!r} cannot be read: {error.strerror}.", model=str(file)) from error
    # Only a memory: without it (a read-only cache) the file is just read again.
    with suppress(OSError):
        memo_folder.mkdir(parents=True, exist_ok=True)
        partial = memo.with_suffix(f".{os.getpid()}")
        partial.write_text(key, encoding="ascii")
        partial.replace(memo)
    return key


def cached_folder(target: Path, build: Build, on_progress: Progress) -> Path:
    """``target``, built first if it is not there yet.

    One process builds while the others wait. ``build`` fills a temporary folder, which is renamed once all of it is on
    the disk; so a folder of that name is complete, whatever interrupts the building.

    Args:
        build: fills the folder that it is given; an ``OSError`` from it is taken to be the disk's.
        on_progress: called with a short line when there is something to wait for.

    Raises:
        StartFailed: the cache cannot be written or the disk is full. What else ``build`` raises comes through.
    """
    if is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock"), on_progress):
            if not is_complete(target):
                _remove_leftovers(target)
                _build(target, build)
    except OSError as error:
        raise _cache_failed(target.parent, error) from error
    return target


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size (something may have cleaned up the cache)."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def require_space(folder: Path, needed_bytes: int) -> None:
    """Make sure that the disk of ``folder`` has room, before much time goes into filling it.

    Raises:
        OSError: it has not (``ENOSPC``).
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OSError(errno.ENOSPC, f"{needed_bytes / 1e6:,.0f} MB are needed, {free_bytes / 1e6:,.0f} MB are free")


def _build(target: Path, build: Build) -> None:
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir()
    try:
        build(partial)
        files = [file for file in sorted(partial.iterdir()) if file.is_file()]
        manifest = partial / MANIFEST
        manifest.write_text(json.dumps({file.name: file.stat().st_size for file in files}), encoding="utf-8")
        for path in (*files, manifest, partial):
            _flush_to_disk(path)
        partial.rename(target)
        _flush_to_disk(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """What a killed process left behind; nobody else builds while the lock is held."""
    for folder in (target, target.with_name(f"{target.name}.partial")):
        if folder.exists():
            shutil.rmtree(folder)


@contextmanager
def _locked(file: Path, on_progress: Progress) -> Iterator[None]:
    """Hold the lock of this file. The kernel lets go of it when its holder dies; the file itself stays."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress("waiting for another process that is converting this model")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cache_failed(folder: Path, error: OSError) -> StartFailed:
    if error.errno == errno.ENOSPC:
        reason = f"the disk of the cache folder {str(folder)!r} is full ({error.strerror})"
    else:
        reason = f"the cache folder {str(folder)!r} cannot be written ({error.strerror or error})"
    return StartFailed(
        f"The converted model could not be saved: {reason}; make room or access, or set {CACHE_VARIABLE} to "
        "another folder."
    )
