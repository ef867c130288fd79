"""Leave no orphan: end this process when the one that it serves is gone, however that one ended."""

from __future__ import annotations

import contextlib
import os
import select
import threading

ORPHAN_EXIT_CODE = 71


def watch_parent(parent_pid: int, death_fd: int) -> None:
    """Watch a process, by pidfd and by a pipe whose other end it holds, and ``os._exit`` when it is gone.

    Both come through here because either may be missing: pidfds on systems without them, the pipe if none was given.
    The thread does nothing but wait in the kernel, so a busy interpreter or a stuck engine does not stop it.

    Args:
        parent_pid: 0 for none.
        death_fd: -1 for none.
    """
    descriptors = [death_fd] if death_fd >= 0 else []
    if parent_pid:
        try:
            descriptors.append(os.pidfd_open(parent_pid))
        except ProcessLookupError:
            os._exit(ORPHAN_EXIT_CODE)
        except (OSError, AttributeError):
            pass
    if descriptors:
        threading.Thread(target=_wait, args=(descriptors,), name="samplerpool-watch", daemon=True).start()


def _wait(descriptors: list[int]) -> None:
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN | select.POLLHUP)
    while True:
        with contextlib.suppress(InterruptedError):
            if poller.poll():
                os._exit(ORPHAN_EXIT_CODE)
