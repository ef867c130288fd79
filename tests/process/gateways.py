"""HTTP gateways for the tests, started as a user types it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 30.0


class Served:
    """A running ``samplerpool serve``.

    Args:
        arguments: of the command; the port is any that is free.
        env: variables beside this process's own.
    """

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "samplerpool", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=self._log, env={**os.environ, **(env or {})})
        found = self._waited_for(r"Serving (?P<model>.+?)( of pool .*)? at (?P<url>http://\S+)/v1")
        self.model, self.root = found["model"], found["url"]
        self.url = f"{self.root}/v1"

    def said(self) -> str:
        """All that it wrote."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def _waited_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + DEADLINE_S
        while (found := re.search(pattern, self.said())) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.fail(f"the gateway did not start: {self.said()}")
            time.sleep(0.02)
        return found

    def waits_for(self, text: str) -> None:
        """Until it has written something."""
        self._waited_for(re.escape(text))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """End it, if it runs."""
        if self.process.poll() is None and self.end() != 0:
            pytest.fail(f"it did not end well: {self.said()}")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        self._log.close()


def own_folder(folder: Path) -> dict[str, str]:
    """Variables that make a pool's files, and what finds it, live in a folder."""
    return {f"SAMPLERPOOL_{name}_DIR": str(folder / name.lower()) for name in ("RUNTIME", "LOG", "STATE")}
