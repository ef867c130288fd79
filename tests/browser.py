"""A real browser for tests: Chromium, told what to do by ChromeDriver in the W3C's protocol (JSON over HTTP)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""By which the protocol marks a reference to an element."""


class Browser:
    """One window of a browser."""

    def __init__(self, driver: str, folder: Path) -> None:
        self._driver = driver
        options = {"args": [*FLAGS, f"--user-data-dir={folder}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _send(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def open(self, path: Path) -> None:
        """A page on disk."""
        self._send("POST", f"{self._session}/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: object) -> Any:
        """What a function body of JavaScript returns."""
        return self._send("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def _element(self, selector: str) -> str:
        found = self._send("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return f"{self._session}/element/{found[_ELEMENT]}"

    def click(self, selector: str) -> None:
        """On the first element of a CSS selector, which has to be visible."""
        self._send("POST", self._element(selector) + "/click", {})

    def type(self, selector: str, text: str) -> None:
        """Replace a field's text, key by key."""
        element = self._element(selector)
        self._send("POST", element + "/clear", {})
        self._send("POST", element + "/value", {"text": text})

    def text(self, selector: str) -> str:
        """As it is seen."""
        return str(self._send("GET", self._element(selector) + "/text"))

    def resize(self, width: int, height: int) -> None:
        """The window."""
        self._send("POST", f"{self._session}/window/rect", {"width": width, "height": height})

    def console(self) -> list[str]:
        """What has been said there since the last call."""
        return [entry["message"] for entry in self._send("POST", f"{self._session}/se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """URLs that pages on disk, and not the browser's own ones, have asked for since the last call."""
        entries = self._send("POST", f"{self._session}/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")]

    def close(self) -> None:
        """The window and the browser."""
        self._send("DELETE", self._session)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser for this test; where there is none, the test is skipped.

    Args:
        folder: for the browser's files.
    """
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs a browser; on Debian: apt-get install chromium chromium-driver")
    port_file = folder / "driver.log"
    command = ["chromedriver", "--port=0"]
    home = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    with port_file.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=home, start_new_session=True)
    try:
        window = Browser(f"http://127.0.0.1:{_port(process, port_file)}", folder / "profile")
        try:
            yield window
        finally:
            window.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Which the driver has chosen, and tells when it is ready."""
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("ChromeDriver was started successfully on port "):
                return int(line.rpartition("port ")[2].rstrip("."))
        time.sleep(0.05)
    raise AssertionError(f"chromedriver does not start: {log.read_text()}")
